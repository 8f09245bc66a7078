"""Weights that int8 holds better: the same model, bounded scales, nearer logits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from support.tiny_model import TinyModel

from benchmarks.measure.checkpoints import write_numpy_checkpoint
from benchmarks.measure.outliers import outlier_weights
from hgt_infer.artifact.config import ModelConfig
from hgt_infer.export import build_graph, export_checkpoint, smoothing
from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.kernel_decoder import KernelDecoder
from hgt_infer.export.numpy_model import hidden_states
from hgt_infer.export.smoothing import MAX_SCALE, SmoothedWeights, channels_of

SIZES = {"n_layer": 3, "n_head": 4, "n_embd": 256, "n_positions": 64, "vocab_size": 500}
OUTLIERS = partial(outlier_weights, strength=3)  # LayerNorm leaves less of them the narrower the model is


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_numpy_checkpoint(tmp_path_factory.mktemp("stand_in") / "outliers", SIZES, OUTLIERS)


def logits(config: ModelConfig, weights: Mapping[str, NDArray[Any]], ids: NDArray[Any]) -> NDArray[Any]:
    return hidden_states(config, weights, ids) @ weights["wte.weight"].T


def test_the_smoothed_model_is_the_same_model(stand_in: Path) -> None:
    source = read_checkpoint(stand_in)
    weights = {name: weight.astype(np.float64) for name, weight in source.weights.items()}
    smoothed = SmoothedWeights(source.config, weights)
    assert smoothed.keys() == weights.keys()
    assert len(smoothed) == len(weights)
    changed = {
        name.split(".", 2)[-1] for name in weights if not np.array_equal(smoothed[name], weights[name])
    }
    assert changed == {
        f"{layer}.{kind}"
        for layer in ("ln_1", "ln_2", "attn.c_attn", "mlp.c_fc")
        for kind in ("weight", "bias")
    }
    ids = np.random.default_rng(1).integers(0, source.config.vocab_size, (2, 20))
    expected = logits(source.config, weights, ids)
    np.testing.assert_allclose(logits(source.config, smoothed, ids), expected, rtol=1e-9)


def test_int8_is_nearer_to_fp32_and_verified(stand_in: Path, tmp_path: Path) -> None:
    source = read_checkpoint(stand_in)
    config = source.config
    ids = np.random.default_rng(1).integers(0, config.vocab_size, (16, 24))
    expected = log_softmax(logits(config, dict(source.weights), ids))

    def divergence(model: Any) -> float:
        session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )
        actual = log_softmax(TinyModel(session, len(ids))(ids, ids.shape[1]).reshape(expected.shape))
        return float((np.exp(expected) * (expected - actual)).sum(-1).mean())

    smoothed = divergence(build_graph(config, source.weights, precision="int8"))
    assert (
        0
        < smoothed
        < 0.6
        * divergence(
            build_graph(
                config,
                source.weights,
                precision="int8",
                kernel_model=KernelDecoder(config, source.weights, "int8").build(),
            )
        )
    )
    assert export_checkpoint(stand_in, tmp_path / "int8", precision="int8").precision == "int8"


def log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def test_other_precisions_keep_their_weights(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hgt_infer.export.SmoothedWeights", None)
    source = read_checkpoint(checkpoint)
    for precision in ("fp32", "fp16"):
        build_graph(source.config, source.weights, precision=precision)
    with pytest.raises(TypeError):
        build_graph(source.config, source.weights, precision="int8")


@given(
    arrays(np.float32, (3, 2, 4), elements=st.floats(width=32)),
    arrays(np.float32, (4, 5), elements=st.floats(-1e6, 1e6, width=32)),
)
def test_shifts_and_scales_are_finite_whatever_comes(
    hidden: NDArray[np.float32], weight: NDArray[np.float32]
) -> None:
    with np.errstate(all="ignore"):
        shift, scale = channels_of(hidden, weight)
    assert np.isfinite(shift).all()
    assert ((scale >= 1 / MAX_SCALE) & (scale <= MAX_SCALE)).all()


def test_channels_without_a_size_keep_theirs() -> None:
    hidden = np.array([[1, 5, 0, 2], [3, 5, 0, -2]], np.float32)  # the second and the third are constant
    weight = np.array([[1, 1], [1, 1], [1, 1], [0, 0]], np.float32)
    shift, scale = channels_of(hidden, weight)
    assert shift.tolist() == [2, 5, 0, 0]
    assert scale.tolist() == [1, 1, 1, 1]


def test_a_context_of_one_token_is_enough(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "NUM_TOKENS", 1)
    source = read_checkpoint(stand_in)
    smoothed = SmoothedWeights(source.config, source.weights)
    assert np.isfinite(smoothed["h.0.mlp.c_fc.weight"]).all()
