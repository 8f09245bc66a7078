"""One specification, three samplers: the host keeps what transformers does, the graph and the kernel draw it.

Rows with and without equal tokens; of those that are cut off at top_p the ones with the lowest ids stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.chi_squared import assert_follows
from support.graph_rows import sampler_of, uniforms
from support.kernel_rows import Rows
from support.transformers_filters import FILTERS, exact_probs, params_of

from hgt_infer.engine.sequence import SequenceParams
from hgt_infer.export.sampling_graph import NARROW_MAX_TOP_K, NARROW_WINDOW, WIDE_WINDOW
from hgt_infer.sampling.host import filtered_probs
from hgt_infer.sampling.random_numbers import GRAPH_UNIFORMS
from hgt_infer.sampling.settings import GRAPH_MAX_TOP_K, graph_settings

V = 600  # more than the graph's window, so that it takes each of its ways
NUM_DRAWS = 4_000
Logits = NDArray[np.float32]


def some_logits(seed: int = 0, *, has_ties: bool = False) -> Logits:
    logits = (np.random.default_rng(seed).normal(size=V) * 2).astype(np.float32)
    return np.round(logits * 2) / 2 if has_ties else logits


def plateau(num_above: int, num_equal: int) -> Logits:
    """Some likelier tokens, then equal ones, then the rest far below, in a random order of ids."""
    logits = np.full(V, -9, np.float32)
    logits[: num_above + num_equal] = 0
    logits[:num_above] = np.linspace(0.5, 0.1, num_above)
    return np.random.default_rng(num_above).permutation(logits)


ROWS = {
    "distinct": some_logits(),
    "ties": some_logits(has_ties=True),
    "equal": np.zeros(V, np.float32),
    "a plateau across the end of the window": plateau(200, 300),
    "a plateau behind the window": plateau(300, 200),
}
CASES = pytest.mark.parametrize("filters", FILTERS, ids=str)
EACH_ROW = pytest.mark.parametrize("logits", ROWS.values(), ids=ROWS)


def draw_by_graph(logits: Logits, params: SequenceParams, num_draws: int) -> NDArray[np.int64]:
    row = graph_settings(params, 1, V)
    taken = {"temperature": row.temperature, "top_k": row.top_k, "top_p": row.top_p, "min_p": row.min_p}
    token_ids, unresolved = sampler_of(V)(logits, uniforms(num_draws, params.seed), **taken)
    return token_ids[~unresolved]  # the host draws the others


def draw_by_kernel(logits: Logits, params: SequenceParams, num_draws: int) -> NDArray[np.int64]:
    fields = {name: getattr(params, name) for name in ("seed", "temperature", "top_k", "top_p", "min_p")}
    return Rows(np.tile(logits, (num_draws, 1)), **fields).step().astype(np.int64)


SAMPLERS = pytest.mark.parametrize("draw", [draw_by_graph, draw_by_kernel])
Draw = Callable[[Logits, SequenceParams, int], NDArray[np.int64]]


@EACH_ROW
@CASES
def test_the_host_keeps_as_many_as_transformers_and_of_equals_the_lowest_ids(
    filters: dict[str, Any], logits: Logits
) -> None:
    params = params_of(**filters)
    ours, expected = filtered_probs(logits, params), exact_probs(logits, params)
    np.testing.assert_allclose(np.sort(ours), np.sort(expected), rtol=1e-9, atol=1e-300)
    for value in np.unique(logits):
        is_kept = ours[logits == value] > 0
        assert (np.diff(is_kept.astype(int)) <= 0).all()


@SAMPLERS
@EACH_ROW
@CASES
def test_the_graph_and_the_kernel_draw_the_hosts_distribution(
    filters: dict[str, Any], logits: Logits, draw: Draw
) -> None:
    params = params_of(**filters, seed=3)
    drawn = draw(logits, params, NUM_DRAWS)
    if draw is draw_by_kernel:
        assert len(drawn) == NUM_DRAWS
    if len(drawn):  # the graph leaves a row whose ties its window does not hold
        assert_follows(drawn, filtered_probs(logits, params))
    else:
        window = NARROW_WINDOW if params.top_k <= NARROW_MAX_TOP_K else WIDE_WINDOW
        assert (logits >= np.sort(logits)[-params.top_k]).sum() > window


@pytest.mark.parametrize("top_p", [0.7501, 0.8301, 0.9501])
@EACH_ROW
def test_the_graph_accepts_the_candidates_that_the_host_keeps(logits: Logits, top_p: float) -> None:
    """A row for each token, which is all of the row's candidates: it is drawn, or none is."""
    params = params_of(temperature=3.0, top_p=top_p)
    probs = filtered_probs(logits, params_of(temperature=3.0))
    kept = filtered_probs(logits, params) > 0
    assert kept.sum() > WIDE_WINDOW
    middles = np.repeat((np.cumsum(probs) - probs / 2)[:, None], GRAPH_UNIFORMS, axis=1)
    token_ids, unresolved = sampler_of(V)(logits, middles, temperature=3.0, top_p=top_p)
    np.testing.assert_array_equal(~unresolved, kept)
    np.testing.assert_array_equal(token_ids[kept], np.flatnonzero(kept))


@pytest.mark.parametrize(
    ("vocab_size", "top_p", "num_kept"), [(500, 0.95, 475), (500, 0.9501, 476), (300, 0.99, 297)]
)
def test_of_equal_tokens_as_many_stay_as_reach_the_mass(vocab_size: int, top_p: float, num_kept: int) -> None:
    logits = np.zeros(vocab_size, np.float32)
    middles = np.repeat((np.arange(vocab_size)[:, None] + 0.5) / vocab_size, GRAPH_UNIFORMS, axis=1)
    _, unresolved = sampler_of(vocab_size)(logits, middles, top_p=top_p)
    by_host = filtered_probs(logits, params_of(top_p=top_p))
    for is_kept in (~unresolved, by_host > 0):
        np.testing.assert_array_equal(is_kept, np.arange(vocab_size) < num_kept)
    assert (exact_probs(logits, params_of(top_p=top_p)) > 0).sum() == num_kept


@SAMPLERS
@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32),
    has_ties=st.booleans(),
    top_k=st.integers(0, V + 5),
    top_p=st.one_of(st.just(1.0), st.floats(1e-6, 1.0)),
    min_p=st.one_of(st.just(0.0), st.floats(0, 1.0)),
    temperature=st.floats(0.05, 50),
)
def test_only_tokens_that_the_filters_leave_are_drawn(
    draw: Draw, seed: int, has_ties: bool, top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    logits = some_logits(seed, has_ties=has_ties)
    if draw is draw_by_graph and GRAPH_MAX_TOP_K < top_k < V:
        top_k = GRAPH_MAX_TOP_K
    top_p, min_p, temperature = (float(np.float32(x)) for x in (top_p, min_p, temperature))
    params = params_of(seed=seed, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    # What float32 and float64 may see differently at a border is let through.
    wider = params_of(
        top_k=top_k, top_p=min(1.0, top_p + 1e-5), min_p=min_p * (1 - 1e-5), temperature=temperature
    )
    assert (filtered_probs(logits, wider)[draw(logits, params, 50)] > 0).all()
