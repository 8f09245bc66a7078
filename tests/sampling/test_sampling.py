"""Random numbers of a sequence, the host's sampler and its log-probabilities."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from support.chi_squared import assert_follows
from support.transformers_filters import WARPERS, V, exact_probs, normal_logits, params_of, rows, token_ids

from hgt_infer.errors import EngineError, ParameterError
from hgt_infer.sampling.host import filtered_probs, sample_row
from hgt_infer.sampling.logprobs import token_logprobs
from hgt_infer.sampling.random_numbers import UNIFORMS_PER_STEP, uniforms


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


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_without_a_token_is_an_error(temperature: float) -> None:
    params = params_of(temperature=temperature, top_k=2, top_p=0.9, min_p=0.1, typical_p=0.9)
    with pytest.raises(ParameterError, match="the filters leave no token"):
        sample_row(np.full(5, -np.inf, np.float32), 0.5, params)
    for wrong in (np.nan, np.inf):
        with pytest.raises(EngineError, match="not finite"):
            sample_row(np.array([0, wrong, 0], np.float32), 0.5, params)


def test_a_tiny_temperature_takes_the_first_of_the_largest_logits() -> None:
    logits = np.array([1, 3, 3, -np.inf], np.float32)
    params = params_of(temperature=9e-6, top_p=0.1, typical_p=0.1)
    assert [sample_row(logits, uniform, params) for uniform in (0.0, 0.999)] == [1, 1]
    assert filtered_probs(logits, params).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("temperature", [1e-5, 1e300])
def test_extreme_temperatures_and_logits_give_probabilities(temperature: float) -> None:
    logits = np.array([3e38, -3e38, 0, -np.inf], np.float32)
    probs = filtered_probs(logits, params_of(temperature=temperature, top_p=0.99, typical_p=0.99))
    assert probs.sum() == pytest.approx(1)
    assert probs[3] == 0


def test_rows_sampled_on_the_host_follow_the_exact_distribution() -> None:
    logits = normal_logits(1, 1000)
    params = params_of(temperature=0.9, top_k=400, top_p=0.9, min_p=0.001, typical_p=0.95)
    rng = np.random.default_rng(2)
    drawn = np.array([sample_row(logits, rng.random(), params) for _ in range(5000)])
    assert_follows(drawn, exact_probs(logits, params))


@given(data=st.data(), uniform=st.floats(0, 1 - 2**-24))
def test_a_sampled_id_is_where_the_distribution_reaches_the_uniform(
    data: st.DataObject, uniform: float
) -> None:
    params, logits = params_of(**data.draw(st.fixed_dictionaries(WARPERS))), data.draw(rows)
    probs, token_id = filtered_probs(logits, params), sample_row(logits, uniform, params)
    assert probs[token_id] > 0
    assert probs[:token_id].sum() <= uniform + 1e-9
    assert probs[: token_id + 1].sum() >= uniform - 1e-9


def test_an_interval_of_uniforms_begins_with_its_border() -> None:
    params = params_of()
    equal = np.zeros(4, np.float32)
    assert [sample_row(equal, uniform, params) for uniform in (0.0, 0.25, 0.5, 0.75)] == [0, 1, 2, 3]
    assert sample_row(np.array([-3000, 0, 0], np.float32), 0.0, params) == 1


@given(logits=rows, token_id=token_ids, num_top=st.integers(0, V + 3))
def test_log_probabilities_equal_torch_and_are_in_order(
    logits: NDArray[np.float32], token_id: int, num_top: int
) -> None:
    exact = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1).tolist()
    found = token_logprobs(logits, token_id, num_top)
    assert found.token_id == token_id
    assert found.logprob == pytest.approx(exact[token_id], abs=1e-9)
    likeliest = sorted(range(V), key=lambda id_: (-logits[id_], id_))[:num_top]
    assert [id_ for id_, _ in found.top] == likeliest
    assert [logprob for _, logprob in found.top] == pytest.approx([exact[id_] for id_ in likeliest], abs=1e-9)
    assert all(logprob <= 0 for _, logprob in found.top)
    assert all(type(value) in (int, float) for pair in found.top for value in pair)


def test_log_probabilities_of_a_whole_vocabulary_equal_torch() -> None:
    logits = normal_logits(3, 50_257)
    exact = torch.log_softmax(torch.tensor(logits, dtype=torch.float64), -1)
    values, ids = exact.topk(20)
    found = token_logprobs(logits, 77, 20)
    assert found.logprob == pytest.approx(float(exact[77]), abs=1e-9)
    assert [id_ for id_, _ in found.top] == ids.tolist()
    assert [logprob for _, logprob in found.top] == pytest.approx(values.tolist(), abs=1e-9)
