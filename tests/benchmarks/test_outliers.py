"""The stand-in for trained weights has the statistics that its docstring names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.cases.quality import measure_quality, sample_texts
from benchmarks.measure.checkpoints import write_numpy_checkpoint
from benchmarks.measure.outliers import ELSEWHERE, FIRST, outlier_weights
from hgt_infer.artifact.config import ModelConfig
from hgt_infer.export.numpy_model import hidden_states

SIZES = {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 64, "vocab_size": 2000}
CONFIG = ModelConfig(**SIZES, n_inner=4 * SIZES["n_embd"], layer_norm_epsilon=1e-5)


def without_prefix(weights: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("transformer."): weight for name, weight in weights.items()}


@pytest.mark.parametrize("seed", range(3))
def test_the_planted_statistics_come_out(seed: int) -> None:
    weights = without_prefix(outlier_weights(SIZES, seed))
    assert {weight.dtype for weight in weights.values()} == {np.dtype(np.float32)}
    given: dict[str, Any] = {}
    ids = np.random.default_rng(5).integers(0, SIZES["vocab_size"], (4, 40))
    logits = hidden_states(CONFIG, weights, ids, given.__setitem__) @ weights["wte.weight"].T

    # The residual is the embeddings and what the layers' projections have added.
    residual = weights["wte.weight"][ids] + weights["wpe.weight"][:40]
    for layer in range(SIZES["n_layer"]):
        for name in (f"h.{layer}.attn.c_proj", f"h.{layer}.mlp.c_proj"):
            residual = residual + given[name] @ weights[f"{name}.weight"] + weights[f"{name}.bias"]
        first, others = np.abs(residual[:, 0]), np.abs(residual[:, 1:])
        massive, constant = ([channel // 3 for channel in values] for values in (FIRST, ELSEWHERE))
        if layer < SIZES["n_layer"] - 1:
            assert 2000 < first.max() < 5000
            assert first.mean(0).argmax() == 447 // 3
        else:
            assert first.max() < 2000  # taken back
        assert 30 < others[..., constant].mean() < 150
        assert np.median(others) < 6
        assert np.abs(np.delete(residual, [*massive, *constant], axis=-1)).max() < 40

        if layer:
            query, key, _ = split_heads(
                given[f"h.{layer}.attn.c_attn"] @ weights[f"h.{layer}.attn.c_attn.weight"]
                + weights[f"h.{layer}.attn.c_attn.bias"]
            )
            scores = np.exp(query[..., 20:, :] @ key.swapaxes(-1, -2) / CONFIG.head_size**0.5)
            scores *= np.tri(40)[20:]
            assert 0.25 < (scores[..., 0] / scores.sum(-1)).mean() < 0.95

    assert -125 < logits[:, 1:].mean() < -85
    assert 2.5 < logits[:, 1:].std(-1).mean() < 5
    assert 8 < (logits.max(-1) - logits.mean(-1)).mean() < 20


def split_heads(packed: Any) -> Any:
    heads = packed.reshape(*packed.shape[:-1], 3, CONFIG.n_head, CONFIG.head_size)
    return np.moveaxis(heads, (-3, -2), (0, -3))


def test_weights_are_those_of_the_seed() -> None:
    once, again, other = (outlier_weights(SIZES, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(once[name], again[name]) for name in once)
    assert not np.array_equal(once["transformer.wte.weight"], other["transformer.wte.weight"])


@pytest.mark.parametrize(("strength", "smallest", "largest"), [(0, 0, 1), (1, 2, 5), (3, 3, 6)])
def test_outliers_are_as_strong_as_asked_for(strength: float, smallest: float, largest: float) -> None:
    weights = without_prefix(outlier_weights(SIZES, strength=strength))
    given: dict[str, Any] = {}
    assert np.isfinite(hidden_states(CONFIG, weights, np.arange(40), given.__setitem__)).all()
    assert smallest < np.abs(given["h.2.attn.c_attn"][1:, 447 // 3]).mean() < largest


def test_quality_is_measured_over_texts_that_it_samples(tmp_path: Path) -> None:
    folder = write_numpy_checkpoint(tmp_path / "outliers", SIZES, outlier_weights)
    texts = sample_texts(folder, num_texts=3, num_tokens=7)
    assert [len(text) for text in texts] == [8, 8, 8]
    assert {text[0] for text in texts} == {SIZES["vocab_size"] - 1}
    quality = measure_quality(folder, texts, ["int8"])
    assert quality["num_tokens"] == 21
    assert 0 < quality["int8"]["kl"] < 0.1
