"""The decoder of a tiny checkpoint: which tokens give logits, and none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from support.tiny_model import Array, TinyModel

from hgt_infer.export import build_graph
from hgt_infer.export.checkpoint import read_checkpoint

NUM_TOKENS = 24


@pytest.fixture(scope="module")
def tiny_session(checkpoint: Path) -> Any:
    source = read_checkpoint(checkpoint)
    model = build_graph(source.config, source.weights, precision="fp32")
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def texts(reference_model: Any) -> tuple[Array, Array]:
    """Three texts of 24 ids, and transformers' logits [3, 24, V]."""
    ids = np.random.default_rng(10).integers(0, reference_model.config.vocab_size, (3, NUM_TOKENS))
    with torch.inference_mode():
        return ids, reference_model(torch.tensor(ids)).logits.numpy()


def test_every_token_of_a_prefill_gives_the_logits_of_single_steps(
    tiny_session: Any, texts: tuple[Array, Array]
) -> None:
    ids, expected = texts
    logits = TinyModel(tiny_session, 3)(ids, NUM_TOKENS).reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    model = TinyModel(tiny_session, 3)
    for position in range(NUM_TOKENS):
        step = model(ids[:, position : position + 1], 1)
        np.testing.assert_allclose(step, logits[:, position], atol=1e-4)


@pytest.mark.parametrize("num_outputs", [1, 2, 23])
def test_the_last_tokens_alone_may_be_asked_for(
    tiny_session: Any, texts: tuple[Array, Array], num_outputs: int
) -> None:
    ids, expected = texts
    logits = TinyModel(tiny_session, 3)(ids, num_outputs)
    np.testing.assert_allclose(
        logits.reshape(3, num_outputs, -1), expected[:, NUM_TOKENS - num_outputs :], atol=1e-4
    )


def test_a_prefill_without_outputs_fills_the_cache(tiny_session: Any, texts: tuple[Array, Array]) -> None:
    ids, expected = texts
    model = TinyModel(tiny_session, 3)
    model(ids[:, :-1], 0)
    np.testing.assert_allclose(model(ids[:, -1:], 1), expected[:, -1], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 7, 16])
def test_chunks_on_top_of_a_past_equal_the_whole(
    tiny_session: Any, texts: tuple[Array, Array], chunk: int
) -> None:
    """One row, as the attention takes several tokens on top of a past for one row only."""
    ids, expected = texts
    model = TinyModel(tiny_session, 1)
    chunks = [ids[:1, start : start + chunk] for start in range(0, NUM_TOKENS, chunk)]
    logits = [model(ids, ids.shape[1]) for ids in chunks]
    np.testing.assert_allclose(np.concatenate(logits), expected[0], atol=1e-4)


def test_a_step_does_not_depend_on_how_long_the_longest_row_is_said_to_be(
    tiny_session: Any, texts: tuple[Array, Array]
) -> None:
    """A captured graph is replayed with one total_sequence_length, that of the cache."""
    ids, _ = texts
    exact, largest = TinyModel(tiny_session, 3), TinyModel(tiny_session, 3)
    for position in range(NUM_TOKENS):
        step = ids[:, position : position + 1]
        np.testing.assert_array_equal(exact(step, 1), largest(step, 1, total_sequence_length=64))
