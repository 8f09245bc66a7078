"""Random numbers and the exact sampler of the host."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from test_sampling_graph import assert_follows, exact_probs

from hgt_infer.sampling import UNIFORMS_PER_STEP, filtered_probs, sample_row, uniforms


def test_uniforms_are_fixed_for_all_time() -> None:
    """A change here changes every seeded text that users have kept."""
    first = uniforms(1, 0, 2)[0] * 2**24
    assert first.tolist() == [5093026.0, 14238970.0, 2619506.0, 521879.0, 15103998.0]


def test_uniforms_differ_by_seed_by_sample_and_by_step() -> None:
    rows = [
        uniforms(seed, index, 3)[step] for seed in (0, 1, 2**64 - 1) for index in (0, 1) for step in range(3)
    ]
    assert len({tuple(row.tolist()) for row in rows}) == len(rows)


def test_uniforms_are_uniform_and_below_one() -> None:
    numbers = np.concatenate([uniforms(seed, index, 100).ravel() for seed in range(20) for index in range(5)])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-4


def test_neighbouring_seeds_and_samples_are_uncorrelated() -> None:
    first = np.stack([uniforms(seed, 0, 400).ravel() for seed in range(30)])
    second = np.stack([uniforms(3, index, 400).ravel() for index in range(30)])
    for streams in (first, second):
        off_diagonal = np.corrcoef(streams)[np.triu_indices(30, 1)]
        assert np.abs(off_diagonal).max() < 5 / np.sqrt(400 * UNIFORMS_PER_STEP)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 7, 500, 1000])
@pytest.mark.parametrize("top_p", [0.01, 0.6, 0.95, 1.0])
def test_filtered_probs_equal_transformers_warpers(temperature: float, top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(0).normal(0, 2, 1000).astype(np.float32)
    settings = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    np.testing.assert_allclose(filtered_probs(logits, **settings), exact_probs(logits, settings), atol=1e-12)


def test_rows_sampled_on_the_host_follow_the_exact_distribution() -> None:
    logits = np.random.default_rng(1).normal(0, 2, 1000).astype(np.float32)
    settings = {"temperature": 0.9, "top_k": 400, "top_p": 0.9}
    rng = np.random.default_rng(2)
    drawn = np.array([sample_row(logits, rng.random(), **settings) for _ in range(5000)])
    assert_follows(drawn, exact_probs(logits, settings))


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=40), st.floats(0, 1 - 2**-24), st.integers(0, 50))
def test_a_sampled_id_has_positive_probability(logits: list[float], uniform: float, top_k: int) -> None:
    row: NDArray[np.float32] = np.array(logits, np.float32)
    settings = {"temperature": 1.0, "top_k": top_k, "top_p": 0.9}
    assert filtered_probs(row, **settings)[sample_row(row, uniform, **settings)] > 0
