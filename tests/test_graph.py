"""The graph of a tiny checkpoint: which tokens give logits, and none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from test_sampling_graph import Array, uniforms

from hgt_infer.export.checkpoint import read_checkpoint
from hgt_infer.export.graph import build_graph

NUM_TOKENS = 24


class TinyModel:
    """A session of the tiny checkpoint's graph and a cache of its own for a batch."""

    def __init__(self, session: Any, num_rows: int) -> None:
        self.session = session
        caches = [x for x in session.get_inputs() if x.name.startswith("past_")]
        self.cache = {x.name: np.zeros((num_rows, x.shape[1], 64, x.shape[3]), np.float32) for x in caches}
        self.length = 0

    def __call__(self, ids: Array, output_index: Array, **rows: Any) -> dict[str, Array]:
        """Run ids [B, S] behind what is in the cache; rows are settings of the B · P outputs."""
        (num_rows, num_tokens), num_outputs = ids.shape, output_index.size
        position_ids = np.arange(self.length, self.length + num_tokens)
        self.length += num_tokens
        vocab_size = self.session.get_outputs()[2].shape[1]
        settings: dict[str, Array] = {
            "temperature": np.ones(num_outputs, np.float32),
            "top_k": np.ones(num_outputs, np.int64),
            "top_p": np.full(num_outputs, 2, np.float32),
            "min_p": np.zeros(num_outputs, np.float32),
            "min_length": np.zeros(num_outputs, np.int32),
            "uniforms": uniforms(num_outputs),
            "is_adjusted": np.zeros(num_outputs, np.bool_),
            "logit_bias": np.zeros((num_outputs, vocab_size), np.float32),
            "repetition_penalty": np.ones((num_outputs, vocab_size), np.float32),
        }
        inputs = {
            "input_ids": ids,
            "position_ids": np.tile(position_ids, (num_rows, 1)),
            "output_index": output_index.astype(np.int64),
            "seqlens_k": np.full(num_rows, self.length - 1, np.int32),
            "total_sequence_length": np.array(self.length, np.int32),
        }
        names = [x.name for x in self.session.get_outputs()]
        outputs = dict(
            zip(names, self.session.run(names, inputs | settings | rows | self.cache), strict=True)
        )
        self.cache = {name: outputs[name.replace("past", "present")] for name in self.cache}
        return outputs


@pytest.fixture(scope="module")
def tiny_session(checkpoint: Path) -> Any:
    source = read_checkpoint(checkpoint)
    model = build_graph(
        source.config,
        source.weights,
        precision="fp32",
        eos_token_ids=source.generation_defaults.eos_token_ids,
    )
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def texts(reference_model: Any) -> tuple[Array, Array]:
    """Three texts of 24 ids, and transformers' logits [3, 24, V]."""
    ids = np.random.default_rng(10).integers(0, reference_model.config.vocab_size, (3, NUM_TOKENS))
    with torch.inference_mode():
        return ids, reference_model(torch.tensor(ids)).logits.numpy()


def all_tokens(num_rows: int, num_tokens: int) -> Array:
    return np.tile(np.arange(num_tokens), (num_rows, 1))


def test_every_token_of_a_prefill_gives_the_logits_of_single_steps(
    tiny_session: Any, texts: tuple[Array, Array]
) -> None:
    ids, expected = texts
    outputs = TinyModel(tiny_session, 3)(ids, all_tokens(3, NUM_TOKENS))
    logits = outputs["logits"].reshape(expected.shape)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert outputs["token_ids"].tolist() == outputs["logits"].argmax(1).tolist()  # top_k 1
    model = TinyModel(tiny_session, 3)
    for position in range(NUM_TOKENS):
        step = model(ids[:, position : position + 1], np.zeros((3, 1)))
        np.testing.assert_allclose(step["logits"], logits[:, position], atol=1e-4)


def test_any_tokens_may_be_asked_for_in_any_order(tiny_session: Any, texts: tuple[Array, Array]) -> None:
    ids, expected = texts
    output_index = np.array([[5, 2], [23, 0], [2, 2]])
    outputs = TinyModel(tiny_session, 3)(ids, output_index)
    for row in range(3):
        logits = outputs["logits"][2 * row : 2 * row + 2]
        np.testing.assert_allclose(logits, expected[row, output_index[row]], atol=1e-4)


def test_a_prefill_without_outputs_fills_the_cache(tiny_session: Any, texts: tuple[Array, Array]) -> None:
    ids, expected = texts
    model = TinyModel(tiny_session, 3)
    outputs = model(ids[:, :-1], np.empty((3, 0)))
    assert [outputs[name].shape[0] for name in ("token_ids", "unresolved", "logits")] == [0, 0, 0]
    step = model(ids[:, -1:], np.zeros((3, 1)))
    np.testing.assert_allclose(step["logits"], expected[:, -1], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 5, 7, 16])
def test_chunks_on_top_of_a_past_equal_the_whole(
    tiny_session: Any, texts: tuple[Array, Array], chunk: int
) -> None:
    """One row, as the attention takes several tokens on top of a past for one row only."""
    ids, expected = texts
    model = TinyModel(tiny_session, 1)
    chunks = [ids[:1, start : start + chunk] for start in range(0, NUM_TOKENS, chunk)]
    logits = [model(ids, all_tokens(1, ids.shape[1]))["logits"] for ids in chunks]
    np.testing.assert_allclose(np.concatenate(logits), expected[0], atol=1e-4)


def test_end_of_text_is_suppressed_by_the_position_of_each_output(
    tiny_session: Any, texts: tuple[Array, Array]
) -> None:
    """Adjusted so that end-of-text is the likeliest everywhere; the logits given back are not adjusted."""
    ids, expected = texts
    end_of_text = expected.shape[-1] - 1
    bias = np.zeros((3 * NUM_TOKENS, end_of_text + 1), np.float32)
    bias[:, end_of_text] = 1e3
    min_length = np.repeat([0, 10, NUM_TOKENS + 1], NUM_TOKENS).astype(np.int32)
    outputs = TinyModel(tiny_session, 3)(
        ids,
        all_tokens(3, NUM_TOKENS),
        is_adjusted=np.ones(len(bias), np.bool_),
        logit_bias=bias,
        min_length=min_length,
    )
    ends = outputs["token_ids"].reshape(3, NUM_TOKENS) == end_of_text
    assert ends[0].all()
    assert np.flatnonzero(ends[1]).tolist() == list(range(9, NUM_TOKENS))  # 10 tokens are there at position 9
    assert not ends[2].any()
    np.testing.assert_allclose(outputs["logits"].reshape(expected.shape), expected, atol=1e-4)
