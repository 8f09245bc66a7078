"""The arithmetic of the check of a GPU, beside SciPy's and torch's."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch

from benchmarks.gpu_check.figures import (
    agreement,
    chi_squared,
    chi_squared_p,
    compare_logits,
)


@pytest.mark.parametrize("degrees", [5, 49, 300, 5_000])
@pytest.mark.parametrize("quantile", [0.5, 1e-2, 1e-4])
def test_p_of_chi_squared_is_scipys(degrees: int, quantile: float) -> None:
    statistic = scipy.stats.chi2.isf(quantile, degrees)
    assert chi_squared_p(statistic, degrees) == pytest.approx(quantile, abs=1e-3, rel=0.35)


def test_draws_from_the_distribution_pass_and_others_do_not() -> None:
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.full(300, 0.3))
    probs[probs < 1e-4] = 0
    probs /= probs.sum()
    found = chi_squared(rng.choice(300, 20_000, p=probs).tolist(), probs)
    assert found.p > 1e-3
    assert found.num_outside == 0
    assert found.degrees < np.count_nonzero(probs)
    skewed = probs**1.2
    assert chi_squared(rng.choice(300, 20_000, p=skewed / skewed.sum()).tolist(), probs).p < 1e-4


def test_draw_of_an_impossible_token_is_counted() -> None:
    found = chi_squared([0] * 50 + [1] * 50 + [2], np.array([0.5, 0.5, 0.0]))
    assert (found.num_outside, found.degrees) == (1, 1)


def test_only_one_possible_token_has_nothing_to_test() -> None:
    assert chi_squared([3] * 10, np.eye(5)[3]).p == 1.0


def test_logits_are_compared_by_rows_and_by_distributions() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=(130, 50)).astype(np.float32)
    actual = reference.copy()
    actual[100, 3] += 0.5
    found = compare_logits(list(actual), list(reference), absolute=0.1, relative=0.01)
    assert (found.num_rows, found.num_not_finite, found.top1) == (130, 0, pytest.approx(1, abs=0.01))
    assert found.max_abs == pytest.approx(0.5, abs=1e-6)
    assert found.mean_abs == pytest.approx(0.5 / 130 / 50, rel=1e-5)
    assert found.max_excess == pytest.approx(0.4 - 0.01 * abs(reference[100, 3]), abs=1e-6)
    p, q = (torch.log_softmax(torch.tensor(row[100]).double(), 0) for row in (reference, actual))
    divergence = torch.nn.functional.kl_div(q, p, reduction="sum", log_target=True).item()
    assert found.max_kl == pytest.approx(divergence, rel=1e-9)
    assert found.mean_kl == pytest.approx(divergence / 130, rel=1e-9)


def test_logits_that_are_not_finite_are_counted_unless_the_reference_has_them_too() -> None:
    reference = np.array([[0.0, -np.inf, 1.0]], np.float32)
    assert compare_logits(reference, reference, absolute=0, relative=0).num_not_finite == 0
    broken = np.array([[np.nan, -np.inf, np.inf]], np.float32)
    assert compare_logits(broken, reference, absolute=0, relative=0).num_not_finite == 2


def test_agreement_tells_where_the_first_request_parts() -> None:
    found = agreement([(1, 2), (3, 4, 5), (6,)], [(1, 2), (3, 4, 6), (6, 7)])
    assert (found.num_requests, found.num_different, found.first) == (3, 2, (1, 2))
    assert found.num_equal_tokens == 2 + 2 + 1
    assert found.flips == 2 / 7
    assert str(found) == "2 of 3 differ, first request 1 at step 2"
    assert str(agreement([(1,)], [(1,)])) == "1 of 1 equal"
