"""The decoder of a tiny checkpoint: which tokens give logits, and none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.graph import build_graph

NUM_TOKENS = 24

Array = NDArray[Any]


class TinyModel:
    """A session of the tiny checkpoint's graph and a cache of its own for a batch."""

    def __init__(self, session: Any, num_rows: int) -> None:
        self.session = session
        caches = [x for x in session.get_inputs() if x.name.startswith("past_")]
        self.cache = {x.name: np.zeros((num_rows, x.shape[1], 64, x.shape[3]), np.float32) for x in caches}
        self.length = 0

    def __call__(self, ids: Array, num_outputs: int, total_sequence_length: int = 0) -> Array:
        """Run ids [B, S] behind what is in the cache: the logits of each row's last num_outputs tokens."""
        num_rows, num_tokens = ids.shape
        position_ids = np.arange(self.length, self.length + num_tokens, dtype=np.int32)
        self.length += num_tokens
        inputs = {
            "input_ids": ids.astype(np.int32),
            "position_ids": np.tile(position_ids, (num_rows, 1)),
            "first_output": np.array([num_tokens - num_outputs]),
            "seqlens_k": np.full(num_rows, self.length - 1, np.int32),
            "total_sequence_length": np.array(total_sequence_length or self.length, np.int32),
        }
        names = [x.name for x in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(names, inputs | self.cache), strict=True))
        self.cache = {name: outputs[name.replace("past", "present")] for name in self.cache}
        logits: Array = outputs["logits"]
        assert len(logits) == num_rows * num_outputs
        return logits


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
