"""The sampler's nodes alone, fed with logits: what it draws follows the exact distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnxscript import GraphBuilder
from scipy import stats
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from hgt_infer.export.sampling_graph import SamplingInputs, sample
from hgt_infer.sampling import GRAPH_UNIFORMS

ROWS_PER_RUN = 250
MIN_P_VALUE = 1e-4  # false alarms of a right sampler: 1 in 10,000 per setting

SETTINGS = [
    pytest.param({"temperature": 1.0, "top_k": 50, "top_p": 0.95}, id="the model card's"),
    pytest.param({"temperature": 0.7, "top_k": 0, "top_p": 0.9}, id="wide nucleus"),
    pytest.param({"temperature": 1.0, "top_k": 0, "top_p": 1.0}, id="pure temperature"),
    pytest.param({"temperature": 1.0, "top_k": 1, "top_p": 1.0}, id="k 1"),
    pytest.param({"temperature": 1.0, "top_k": 0, "top_p": 0.01}, id="p 0.01"),
]


class Sampler:
    """A session of the sampler's nodes for one vocabulary."""

    def __init__(self, vocab_size: int, eos_token_ids: tuple[int, ...] = ()) -> None:
        graph = ir.Graph([], [], nodes=[], opset_imports={"": 21}, name="sampler")
        builder = GraphBuilder(graph)
        logits = builder.input("logits", ir.DataType.FLOAT, ["batch", vocab_size])
        columns = {
            name: builder.input(name, ir.DataType[dtype], ["batch", width])
            for name, dtype, width in [
                ("temperature", "FLOAT", 1),
                ("top_k", "INT64", 1),
                ("top_p", "FLOAT", 1),
                ("too_short", "BOOL", 1),
                ("uniforms", "FLOAT", GRAPH_UNIFORMS),
            ]
        }
        outputs = sample(
            builder, logits, SamplingInputs(**columns), vocab_size=vocab_size, eos_token_ids=eos_token_ids
        )
        for value, name, dtype in zip(outputs, ("token_ids", "unresolved"), ("INT64", "BOOL"), strict=True):
            value.type = ir.TensorType(ir.DataType[dtype])
            builder.add_output(value, name)
        model = ir.Model(graph, ir_version=10)
        self.session = ort.InferenceSession(
            ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"]
        )

    def __call__(
        self,
        logits: NDArray[np.float32],
        uniforms: NDArray[np.float32],
        *,
        temperature: Any,
        top_k: Any,
        top_p: Any,
        too_short: Any = False,
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        def column(value: Any, dtype: type) -> NDArray[Any]:
            return np.array(np.broadcast_to(value, len(logits)), dtype)[:, None]

        token_ids, unresolved = self.session.run(
            ["token_ids", "unresolved"],
            {
                "logits": logits,
                "temperature": column(temperature, np.float32),
                "top_k": column(top_k, np.int64),
                "top_p": np.where(column(top_p, np.float32) < 1, column(top_p, np.float32), np.float32(2)),
                "too_short": column(too_short, np.bool_),
                "uniforms": uniforms.astype(np.float32),
            },
        )
        return token_ids, unresolved


def exact_probs(logits: NDArray[np.float32], settings: dict[str, float]) -> NDArray[np.float64]:
    """The distribution that transformers' own warpers leave, in float64."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(settings["temperature"])])
    if settings["top_k"]:
        warpers.append(TopKLogitsWarper(int(settings["top_k"])))
    if settings["top_p"] < 1:
        warpers.append(TopPLogitsWarper(settings["top_p"]))
    scores = warpers(torch.zeros((1, 1), dtype=torch.long), torch.tensor(logits[None], dtype=torch.float64))
    return torch.softmax(scores[0], dim=-1).numpy()


def draw(
    sampler: Sampler, logits: NDArray[np.float32], settings: dict[str, float], num_draws: int = 4_000
) -> NDArray[np.int64]:
    rng = np.random.default_rng(0)
    rows = np.repeat(logits[None], ROWS_PER_RUN, axis=0)
    drawn, num_unresolved = [], 0
    for _ in range(num_draws // ROWS_PER_RUN):
        token_ids, unresolved = sampler(
            rows, rng.random((ROWS_PER_RUN, GRAPH_UNIFORMS), np.float32), **settings
        )
        drawn.append(token_ids[~unresolved])
        num_unresolved += int(unresolved.sum())
    assert num_unresolved < num_draws / 200
    return np.concatenate(drawn)


def assert_follows(drawn: NDArray[np.int64], probs: NDArray[np.float64]) -> None:
    """Chi-squared; tokens expected fewer than 8 times share one bin."""
    counts = np.bincount(drawn, minlength=len(probs))
    assert counts[probs == 0].sum() == 0, "a token outside the support was drawn"
    expected = probs * len(drawn)
    common = expected >= 8
    bins = [np.append(x[common], x[~common].sum()) for x in (counts, expected)]
    if bins[1][-1] < 8:  # too few to be a bin: the rest against each other
        bins = [np.append(x[:-2], x[-2:].sum()) if len(x) > 1 else x for x in bins]
    if len(bins[0]) > 1:
        assert stats.chisquare(*bins, sum_check=False).pvalue > MIN_P_VALUE


@pytest.fixture(scope="module")
def gpt2_sampler() -> Sampler:
    return Sampler(50257)


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_follow_the_exact_distribution(gpt2_sampler: Sampler, settings: dict[str, float]) -> None:
    """Heavy-tailed logits over GPT-2's vocabulary: the 0.9 nucleus holds thousands of tokens."""
    logits = np.random.default_rng(1).normal(0, 2.5, 50257).astype(np.float32)
    assert_follows(draw(gpt2_sampler, logits, settings), exact_probs(logits, settings))


@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_follow_the_exact_distribution_on_logits_of_gpt2(
    gpt2_sampler: Sampler, settings: dict[str, float], reference_data: Path
) -> None:
    folder = reference_data / "reference"
    num_rows = len(json.loads((folder / "gpt2_last_logits.json").read_text()))
    rows = np.fromfile(folder / "gpt2_last_logits.f32", np.float32).reshape(num_rows, -1)
    index = [case.values[0] for case in SETTINGS].index(settings)  # type: ignore[union-attr]
    logits = rows[index % num_rows]
    assert_follows(draw(gpt2_sampler, logits, settings, 20_000), exact_probs(logits, settings))


@pytest.mark.parametrize("vocab_size", [3, 64, 300, 1000])
@pytest.mark.parametrize("settings", SETTINGS)
def test_draws_follow_the_exact_distribution_in_small_vocabularies(
    vocab_size: int, settings: dict[str, float]
) -> None:
    logits = np.random.default_rng(vocab_size).normal(0, 1, vocab_size).astype(np.float32)
    settings = {**settings, "top_k": min(settings["top_k"], vocab_size)}
    assert_follows(draw(Sampler(vocab_size), logits, settings), exact_probs(logits, settings))


def test_a_row_does_not_depend_on_the_rows_beside_it(gpt2_sampler: Sampler) -> None:
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (6, 50257)).astype(np.float32)
    uniforms = rng.random((6, GRAPH_UNIFORMS), np.float32)
    settings = {
        "temperature": np.array([1.0, 0.7, 1.3, 1.0, 0.5, 2.0]),
        "top_k": np.array([50, 0, 0, 1, 256, 3]),
        "top_p": np.array([0.95, 0.9, 1.0, 1.0, 0.5, 0.01]),
    }
    together, _ = gpt2_sampler(logits, uniforms, **settings)
    alone = [
        gpt2_sampler(logits[i : i + 1], uniforms[i : i + 1], **{k: v[i] for k, v in settings.items()})[0][0]
        for i in range(6)
    ]
    assert together.tolist() == alone


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits = np.zeros((1, 300), np.float32)
    logits[0, [7, 100, 250]] = 5.0
    uniforms = np.full((1, GRAPH_UNIFORMS), 0.999, np.float32)
    token_ids, _ = Sampler(300)(logits, uniforms, temperature=1.0, top_k=1, top_p=1e-6)
    assert token_ids.tolist() == [7]


def test_ties_with_the_kth_logit_stay() -> None:
    logits = np.array([3.0, 2.0, 2.0, 2.0, 1.0], np.float32)
    drawn = draw(Sampler(5), logits, {"temperature": 1.0, "top_k": 2, "top_p": 1.0})
    assert set(drawn.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("top_k", [0, 1, 2, 50])
@pytest.mark.parametrize("eos_token_ids", [(4,), (4, 900)])
def test_end_of_text_is_never_drawn_from_a_row_that_is_too_short(
    top_k: int, eos_token_ids: tuple[int, ...]
) -> None:
    vocab_size = 1000
    logits = np.random.default_rng(3).normal(0, 1, vocab_size).astype(np.float32)
    logits[list(eos_token_ids)] = 9.0  # by far the likeliest
    rows = np.repeat(logits[None], 400, axis=0)
    too_short = np.arange(400) % 2 == 0
    uniforms = np.random.default_rng(4).random((400, GRAPH_UNIFORMS), np.float32)
    token_ids, unresolved = Sampler(vocab_size, eos_token_ids)(
        rows, uniforms, temperature=1.0, top_k=top_k, top_p=1.0, too_short=too_short
    )
    is_eos = np.isin(token_ids, eos_token_ids)
    assert not unresolved.any()
    assert not is_eos[too_short].any()
    assert is_eos[~too_short].mean() > 0.8


def test_suppressing_end_of_text_leaves_k_other_tokens() -> None:
    logits = np.array([5.0, 4.0, 3.0, 2.0, 1.0], np.float32)
    sampler = Sampler(5, (0,))
    uniforms = np.random.default_rng(5).random((2000, GRAPH_UNIFORMS), np.float32)
    token_ids, _ = sampler(
        np.repeat(logits[None], 2000, axis=0), uniforms, temperature=1.0, top_k=2, top_p=1.0, too_short=True
    )
    assert set(token_ids.tolist()) == {1, 2}


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-24])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (0, 0.9), (50, 0.95), (1, 1.0)])
def test_the_smallest_and_the_largest_uniform_stay_in_the_support(
    gpt2_sampler: Sampler, uniform: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(6).normal(0, 2.5, (1, 50257)).astype(np.float32)
    settings = {"temperature": 1.0, "top_k": top_k, "top_p": top_p}
    token_ids, unresolved = gpt2_sampler(
        logits, np.full((1, GRAPH_UNIFORMS), uniform, np.float32), **settings
    )
    assert unresolved[0] or exact_probs(logits[0], settings)[token_ids[0]] > 0


def test_a_row_without_accepted_candidate_is_reported() -> None:
    """Flat logits, a nucleus of 600 tokens and candidates forced into the tail."""
    logits = np.linspace(0.5, 0, 1000, dtype=np.float32)[None]
    uniforms = np.full((1, GRAPH_UNIFORMS), 0.99, np.float32)
    _, unresolved = Sampler(1000)(logits, uniforms, temperature=1.0, top_k=0, top_p=0.6)
    assert unresolved.tolist() == [True]
