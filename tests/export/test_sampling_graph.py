"""The sampler, fed with logits: what it draws follows the exact distribution."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.chi_squared import assert_follows
from support.graph_rows import Array, GraphSampler, sampler_of, uniforms
from support.transformers_filters import FILTERS, params_of, processors, theirs
from support.transformers_filters import exact_probs as transformers_probs

from hgt_infer.sampling.random_numbers import GRAPH_UNIFORMS
from hgt_infer.sampling.settings import GRAPH_MAX_TOP_K

ROWS_PER_RUN = 25  # so few logits stay in a processor's cache
LARGEST_UNIFORM = 1 - 2**-24

MODEL_CARD = {"top_k": 50, "top_p": 0.95}


def exact_probs(
    logits: Array,
    *,
    bias: dict[int, float] | None = None,
    penalty: float = 1.0,
    token_ids: tuple[int, ...] = (0,),
    **filters: Any,
) -> NDArray[np.float64]:
    """The distribution that transformers' own processors leave, in float64, behind a text of token_ids."""
    biases = tuple((id_, float(x)) for id_, x in (bias or {}).items())
    params = params_of(logit_bias=biases, repetition_penalty=penalty, **filters)
    scores = torch.tensor(logits, dtype=torch.float64)
    adjusted = theirs(processors(params, len(token_ids)), scores, list(token_ids))
    return transformers_probs(adjusted.numpy(), params)


def draw(sampler: GraphSampler, logits: Array, num_draws: int = 4_000, **settings: Any) -> NDArray[np.int64]:
    inputs = sampler.inputs(ROWS_PER_RUN, logits, **settings)
    drawn, num_unresolved = [], 0
    for run in range(num_draws // ROWS_PER_RUN):
        token_ids, unresolved = sampler.run(inputs, uniforms(ROWS_PER_RUN, run))
        drawn.append(token_ids[~unresolved])
        num_unresolved += int(unresolved.sum())
    assert num_unresolved < num_draws / 200
    return np.concatenate(drawn)


@pytest.fixture(scope="module")
def gpt2_logits() -> Array:
    """Heavy-tailed logits over GPT-2's vocabulary: the 0.9 nucleus holds thousands of tokens."""
    return np.random.default_rng(1).normal(0, 2.5, 50257).astype(np.float32)


@pytest.mark.parametrize(
    "settings", [MODEL_CARD, {}, {"temperature": 1.5, "top_p": 0.9, "min_p": 0.01}], ids=str
)
def test_draws_follow_the_exact_distribution(gpt2_logits: Array, settings: dict[str, Any]) -> None:
    drawn = draw(sampler_of(50257), gpt2_logits, 2_000, **settings)
    assert_follows(drawn, exact_probs(gpt2_logits, **settings))


@pytest.mark.integration
@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_draws_follow_the_exact_distribution_on_logits_of_gpt2(
    settings: dict[str, Any], reference_data: Path
) -> None:
    folder = reference_data / "reference"
    num_rows = len(json.loads((folder / "gpt2_last_logits.json").read_text()))
    rows = np.fromfile(folder / "gpt2_last_logits.f32", np.float32).reshape(num_rows, -1)
    logits = rows[FILTERS.index(settings) % num_rows]
    assert_follows(draw(sampler_of(50257), logits, 5_000, **settings), exact_probs(logits, **settings))


@pytest.mark.parametrize("vocab_size", [3, 64, 300])
def test_draws_follow_the_exact_distribution_in_small_vocabularies(vocab_size: int) -> None:
    logits = np.random.default_rng(vocab_size).normal(0, 1, vocab_size).astype(np.float32)
    for filters in FILTERS:
        settings: dict[str, Any] = filters | {"top_k": min(filters.get("top_k", 0), vocab_size)}
        assert_follows(draw(sampler_of(vocab_size), logits, **settings), exact_probs(logits, **settings))


ADJUSTMENTS = [
    pytest.param({"bias": {7: 9.0, 11: -3.0, 400: 8.0}}, id="bias"),
    pytest.param({"penalty": 1.4, "token_ids": (3, 7, 7, 900)}, id="repetition penalty"),
    pytest.param({"penalty": 0.6, "token_ids": (3, 7, 900)}, id="penalty below 1"),
    pytest.param({"bias": {3: 6.0, 7: -9.0, 8: 9.0}, "penalty": 1.2, "token_ids": (3, 7)}, id="both"),
]


def adjustment(vocab_size: int, settings: dict[str, Any]) -> dict[str, Any]:
    """The graph's inputs for settings of exact_probs."""
    bias, penalty = np.zeros(vocab_size, np.float32), np.ones(vocab_size, np.float32)
    for token_id, value in settings.get("bias", {}).items():
        bias[token_id] = value
    penalty[list(settings.get("token_ids", ()))] = settings.get("penalty", 1.0)
    return {"is_adjusted": True, "logit_bias": bias, "repetition_penalty": penalty}


@pytest.mark.parametrize(
    "settings", [MODEL_CARD, {"top_p": 0.95}, {"temperature": 2.0, "min_p": 0.05}], ids=str
)
@pytest.mark.parametrize("adjusted", ADJUSTMENTS)
def test_draws_follow_adjusted_logits(settings: dict[str, Any], adjusted: dict[str, Any]) -> None:
    logits = np.random.default_rng(7).normal(-6, 2, 1000).astype(np.float32)
    logits[[3, 900]] = 1.0, -1.0  # the penalty divides one and multiplies the other
    drawn = draw(sampler_of(1000), logits, **settings, **adjustment(1000, adjusted))
    assert_follows(drawn, exact_probs(logits, **settings, **adjusted))


def test_the_largest_adjusted_logit_is_transformers() -> None:
    """Greedy, on logits that all lie close together: a penalty a little off chooses another token."""
    rng = np.random.default_rng(8)
    for shift in [0, -1e-2] * 10:
        logits = rng.normal(shift, 1e-3, 50257).astype(np.float32)
        adjusted = {
            "bias": dict(zip(rng.integers(0, 50257, 2000).tolist(), rng.normal(0, 1e-3, 2000), strict=True)),
            "penalty": float(rng.uniform(0.5, 2)),
            "token_ids": tuple(rng.integers(0, 50257, 20_000).tolist()),
        }
        token_ids, _ = sampler_of(50257)(logits, uniforms(1), top_k=1, **adjustment(50257, adjusted))
        assert token_ids[0] == exact_probs(logits, **adjusted).argmax()


def test_a_row_does_not_depend_on_the_rows_beside_it() -> None:
    """Every way through the sampler beside every other, adjusted rows among them."""
    kinds = [
        {"top_k": 50, "top_p": 0.95},
        {"top_k": 1, "top_p": 1e-6},
        {"temperature": 1.3, "top_k": 3, "min_p": 0.2},
        {"temperature": 0.5, "top_k": 256, "top_p": 0.5},
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 1.3},
        {"temperature": 2.0, "top_p": 0.01},
        {"temperature": 1.5, "min_p": 0.02},
        {"temperature": 1.5, "min_p": 0.001, "top_p": 0.7},
        {"min_p": 0.1},
        {"top_k": 50, "is_adjusted": True},
        {"top_p": 0.95, "is_adjusted": True},
    ]
    off = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "is_adjusted": False}
    settings = {name: np.array([kind.get(name, value) for kind in kinds]) for name, value in off.items()}
    rng = np.random.default_rng(2)
    logits = rng.normal(0, 3, (len(kinds), 50257)).astype(np.float32)
    neutral = ~settings["is_adjusted"][:, None]
    adjustments = {
        "logit_bias": np.where(neutral, 0, rng.normal(0, 2, logits.shape)).astype(np.float32),
        "repetition_penalty": np.where(neutral, 1, rng.uniform(0.7, 1.5, logits.shape)).astype(np.float32),
    }
    alone, together = [], []
    for seed in range(25):
        u = uniforms(len(kinds), seed)
        together.append(np.stack(sampler_of(50257)(logits, u, **settings, **adjustments)))
        rows = [
            sampler_of(50257)(
                logits[i : i + 1],
                u[i : i + 1],
                **{name: values[i : i + 1] for name, values in (settings | adjustments).items()},
            )
            for i in range(len(kinds))
        ]
        alone.append(np.stack([np.concatenate(values) for values in zip(*rows, strict=True)]))
    np.testing.assert_array_equal(together, alone)


def test_greedy_takes_the_first_of_equal_logits() -> None:
    logits = np.zeros(300, np.float32)
    logits[[7, 100, 250]] = 5.0
    token_ids, _ = sampler_of(300)(logits, np.full((1, GRAPH_UNIFORMS), 0.999), top_k=1, top_p=1e-6)
    assert token_ids.tolist() == [7]


def test_ties_with_the_kth_logit_stay() -> None:
    logits = np.array([3.0, 2.0, 2.0, 2.0, 1.0], np.float32)
    drawn = draw(sampler_of(5), logits, top_k=2)
    assert set(drawn.tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize(("top_k", "num_ties"), [(1, 65), (50, 30), (51, 300), (200, 100)])
@pytest.mark.parametrize("companion", [0, 1, 256])
def test_a_row_with_more_ties_than_fit_is_left_to_the_host(top_k: int, num_ties: int, companion: int) -> None:
    logits = np.zeros(1000, np.float32)
    logits[: top_k - 1] = np.arange(top_k - 1, 0, -1)
    logits[top_k - 1 : top_k - 1 + num_ties] = 0.5
    rows = np.stack([logits, np.arange(1000, dtype=np.float32)])
    _, unresolved = sampler_of(1000)(rows, uniforms(2), temperature=40.0, top_k=[top_k, companion])
    assert unresolved.tolist() == [True, False]


def test_the_likeliest_token_stays_at_min_p_1() -> None:
    """A whole vocabulary of equals, more than the window holds, and one token above all others."""
    sampler = sampler_of(1000)
    logits = np.full(1000, -3.3, np.float32)
    token_ids, unresolved = sampler(logits, uniforms(500), temperature=0.7, min_p=1.0)
    assert not unresolved.any()
    assert len(set(token_ids.tolist())) > 300
    logits[321] = np.nextafter(logits[321], np.float32(0))
    token_ids, unresolved = sampler(logits, uniforms(500), temperature=1e-5, min_p=1.0)
    assert set(token_ids[~unresolved].tolist()) == {321}


@pytest.mark.parametrize("settings", [*FILTERS, {"top_k": 256}], ids=str)
@pytest.mark.parametrize("num_allowed", [1, 5, 60, 300, 999])
def test_a_masked_token_is_never_drawn(num_allowed: int, settings: Any) -> None:
    """Masks in the bias and in the logits themselves, and uniforms at both ends."""
    rng = np.random.default_rng(num_allowed)
    sampler = sampler_of(1000, (999,))
    logits = rng.normal(0, 2, 1000).astype(np.float32)
    bias = np.full(1000, -np.inf, np.float32)
    bias[rng.choice(1000, num_allowed, replace=False)] = 0
    u = np.concatenate([uniforms(300), np.zeros((1, 4)), np.full((1, 4), LARGEST_UNIFORM)])
    adjusted = {"is_adjusted": True, "logit_bias": bias, "repetition_penalty": rng.uniform(0.5, 2, 1000)}
    is_short = np.arange(len(u)) % 2 == 1 if num_allowed > 1 else False
    for inputs in ({"logits": logits, **adjusted}, {"logits": logits + bias}):
        token_ids, unresolved = sampler(**inputs, uniforms=u, too_short=is_short, **settings)  # type: ignore[arg-type]
        assert unresolved.mean() < 0.02
        assert (bias[token_ids[~unresolved]] == 0).all()
        assert not (token_ids[~unresolved & is_short] == 999).any()


@pytest.mark.parametrize("value", [-np.inf, np.nan, np.inf])
@pytest.mark.parametrize("settings", [MODEL_CARD, {}, {"top_p": 0.95}], ids=str)
def test_a_row_without_finite_largest_logit_is_left_to_the_host(
    settings: dict[str, Any], value: float
) -> None:
    logits = np.random.default_rng(9).normal(0, 1, (3, 1000)).astype(np.float32)
    logits[1] = value
    _, unresolved = sampler_of(1000)(logits, uniforms(3), **settings)
    assert unresolved.tolist() == [False, True, False]


@pytest.mark.parametrize(
    "settings", [{}, {"top_k": 1}, {"top_k": 2}, {"top_k": 50}, {"top_p": 0.99}, {"min_p": 1e-4}], ids=str
)
@pytest.mark.parametrize("eos_token_ids", [(4,), (4, 900)])
def test_end_of_text_is_never_drawn_from_a_row_that_is_too_short(
    settings: dict[str, Any], eos_token_ids: tuple[int, ...]
) -> None:
    vocab_size = 1000
    logits = np.random.default_rng(3).normal(0, 1, vocab_size).astype(np.float32)
    logits[list(eos_token_ids)] = 9.0  # by far the likeliest
    too_short = np.arange(400) % 2 == 0
    token_ids, unresolved = sampler_of(vocab_size, eos_token_ids)(
        logits, uniforms(400, 4), too_short=too_short, **settings
    )
    is_eos = np.isin(token_ids, eos_token_ids)
    assert not unresolved.any()
    assert not is_eos[too_short].any()
    assert is_eos[~too_short].mean() > 0.8
    logits[list(eos_token_ids)] = -np.inf
    expected = exact_probs(logits, **settings)
    assert (expected[token_ids[too_short]] > 0).all()


def test_suppressing_end_of_text_leaves_k_other_tokens() -> None:
    logits = np.array([5.0, 4.0, 3.0, 2.0, 1.0], np.float32)
    token_ids, _ = sampler_of(5, (0,))(logits, uniforms(2000, 5), top_k=2, too_short=True)
    assert set(token_ids.tolist()) == {1, 2}


def test_end_of_text_is_suppressed_by_each_rows_own_length() -> None:
    sampler = sampler_of(1000, (999,))
    logits = np.zeros(1000, np.float32)
    logits[999] = 9
    inputs = sampler.inputs(6, logits, top_k=1)
    inputs["min_length"] = np.full(6, 10, np.int32)
    inputs["seqlens_k"] = np.arange(6, 12, dtype=np.int32)  # 10 tokens are there at position 9
    token_ids, _ = sampler.run(
        inputs | {"logits": inputs["logits"] + np.arange(1000, dtype=np.float32) / 2000}, uniforms(6)
    )
    assert token_ids.tolist() == [998] * 3 + [999] * 3


@pytest.mark.parametrize("uniform", [0.0, LARGEST_UNIFORM])
@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_the_smallest_and_the_largest_uniform_stay_in_the_support(
    gpt2_logits: Array, uniform: float, settings: dict[str, Any]
) -> None:
    token_ids, unresolved = sampler_of(50257)(gpt2_logits, np.full((1, GRAPH_UNIFORMS), uniform), **settings)
    assert unresolved[0] or exact_probs(gpt2_logits, **settings)[token_ids[0]] > 0


def test_a_row_without_accepted_candidate_is_reported() -> None:
    """Flat logits, a nucleus of 600 tokens and candidates forced into the tail, but for the last one."""
    logits = np.linspace(0.5, 0, 1000, dtype=np.float32)
    u = np.full((2, GRAPH_UNIFORMS), 0.99)
    u[1, -1] = 0.5
    token_ids, unresolved = sampler_of(1000)(logits, u, top_p=0.6)
    assert unresolved.tolist() == [True, False]
    assert 300 < token_ids[1] < 600


@pytest.mark.parametrize("settings", FILTERS, ids=str)
def test_no_rows_give_no_tokens(settings: dict[str, Any]) -> None:
    token_ids, unresolved = sampler_of(50257)(np.empty((0, 50257)), uniforms(0), **settings)
    assert (token_ids.shape, unresolved.shape) == ((0,), (0,))


def test_the_largest_top_k_leaves_that_many_tokens() -> None:
    logits = np.random.default_rng(11).normal(0, 0.1, 1000).astype(np.float32)
    drawn = draw(sampler_of(1000), logits, 20_000, top_k=GRAPH_MAX_TOP_K)
    assert set(drawn.tolist()) == set(np.argsort(-logits)[:GRAPH_MAX_TOP_K].tolist())
