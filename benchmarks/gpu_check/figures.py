"""The arithmetic of the checks: statistics of draws, of logits, and of tokens that two sides gave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure.comparison import first_difference
from benchmarks.measure.workloads import TokenIds

MIN_EXPECTED = 5.0
"""Draws that a class of the chi-squared test is expected to get at least; rarer tokens share one."""

ROWS_AT_ONCE = 64
NEVER = -1e30  # a logit in place of -infinity, without its arithmetic


@dataclass(frozen=True)
class ChiSquared:
    """Pearson's test of draws against a distribution.

    statistic, degrees: χ² and its degrees of freedom. p: how likely so large a χ² is by chance.
    num_outside: draws of tokens whose probability is 0; there must be none.
    """

    statistic: float
    degrees: int
    p: float
    num_outside: int


def chi_squared(token_ids: Sequence[int], probs: NDArray[np.float64]) -> ChiSquared:
    """Test drawn token ids against their distribution [V]."""
    observed = np.bincount(token_ids, minlength=len(probs))
    expected = len(token_ids) * probs
    is_class = expected >= MIN_EXPECTED
    pairs = [(observed[is_class], expected[is_class])]
    rest = ~is_class & (probs > 0)
    if expected[rest].sum() > 0:
        pairs.append((observed[rest].sum(keepdims=True), expected[rest].sum(keepdims=True)))
    counts, means = (np.concatenate(column) for column in zip(*pairs, strict=True))
    statistic = float(((counts - means) ** 2 / means).sum())
    degrees = len(counts) - 1
    return ChiSquared(statistic, degrees, chi_squared_p(statistic, degrees), int(observed[probs == 0].sum()))


def chi_squared_p(statistic: float, degrees: int) -> float:
    """How likely a χ² is at least `statistic`, by Wilson and Hilferty's cube root ("The distribution of
    chi-square", 1931): within 1e-3 of the exact value from 5 degrees of freedom on. 1 where there are none.
    """
    if degrees == 0:
        return 1.0
    variance = 2 / (9 * degrees)
    z = ((statistic / degrees) ** (1 / 3) - (1 - variance)) / math.sqrt(variance)
    return 0.5 * math.erfc(z / math.sqrt(2))


@dataclass(frozen=True)
class LogitsDifference:
    """How far logits [N, V] are from a reference, and the distributions that they stand for.

    max_abs, mean_abs: of the differences. max_excess: the most that a difference exceeds what is allowed,
    negative where all is well. mean_kl, max_kl: Kullback-Leibler divergence from the reference's
    distribution, in nats, over the N rows. top1: share of rows with the same likeliest token.
    num_not_finite: values that are NaN or infinite where the reference's are not the same.
    """

    num_rows: int
    max_abs: float
    mean_abs: float
    max_excess: float
    mean_kl: float
    max_kl: float
    top1: float
    num_not_finite: int


def compare_logits(
    actual: Sequence[NDArray[np.float32]],
    reference: Sequence[NDArray[np.float32]],
    *,
    absolute: float,
    relative: float,
) -> LogitsDifference:
    """Compare N rows of logits [V]; a difference of absolute + relative · |reference| is allowed."""
    pairs = list(zip(actual, reference, strict=True))
    parts = [  # few rows at a time: they are compared in float64
        _compare_rows(pairs[start : start + ROWS_AT_ONCE], absolute, relative)
        for start in range(0, len(pairs), ROWS_AT_ONCE)
    ]
    weights = [part.num_rows for part in parts]

    def mean(name: str) -> float:
        return float(np.average([getattr(part, name) for part in parts], weights=weights))

    return LogitsDifference(
        num_rows=sum(weights),
        max_abs=max(part.max_abs for part in parts),
        mean_abs=mean("mean_abs"),
        max_excess=max(part.max_excess for part in parts),
        mean_kl=mean("mean_kl"),
        max_kl=max(part.max_kl for part in parts),
        top1=mean("top1"),
        num_not_finite=sum(part.num_not_finite for part in parts),
    )


def _compare_rows(
    pairs: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]], absolute: float, relative: float
) -> LogitsDifference:
    actual, reference = (np.stack(side).astype(np.float64) for side in zip(*pairs, strict=True))
    is_finite = np.isfinite(actual) & np.isfinite(reference)
    known = np.where(is_finite, reference, 0)
    difference = np.abs(np.where(is_finite, actual, 0) - known)
    p_log, q_log = (_log_softmax(np.where(is_finite, side, NEVER)) for side in (reference, actual))
    kl = np.maximum((np.exp(p_log) * (p_log - q_log)).sum(axis=1), 0)
    return LogitsDifference(
        num_rows=len(actual),
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        max_excess=float((difference - (absolute + relative * np.abs(known))).max()),
        mean_kl=float(kl.mean()),
        max_kl=float(kl.max()),
        top1=float((actual.argmax(axis=1) == reference.argmax(axis=1)).mean()),
        num_not_finite=int((~is_finite & (actual != reference)).sum()),
    )


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result


@dataclass(frozen=True)
class Agreement:
    """Token ids of the same requests from two sides.

    first: (request, step) of the first difference. num_equal_tokens: before each request's first difference.
    """

    num_requests: int
    num_different: int
    first: tuple[int, int] | None
    num_equal_tokens: int

    @property
    def is_perfect(self) -> bool:
        return self.num_different == 0

    @property
    def flips(self) -> float:
        """Share of tokens, up to each request's first difference, at which the sides part: by rounding it is
        small, by a fault it is not.
        """
        return self.num_different / max(1, self.num_equal_tokens + self.num_different)

    def __str__(self) -> str:
        if self.is_perfect:
            return f"{self.num_requests:,} of {self.num_requests:,} equal"
        assert self.first is not None
        request, step = self.first
        return (
            f"{self.num_different:,} of {self.num_requests:,} differ, first request {request} at step {step}"
        )


def agreement(expected: TokenIds, actual: TokenIds) -> Agreement:
    """Compare the token ids of requests in the same order; another number of requests is an error."""
    different: list[tuple[int, int]] = []
    num_equal_tokens = 0
    for request, (a, b) in enumerate(zip(expected, actual, strict=True)):
        step = first_difference(a, b)
        num_equal_tokens += step
        if tuple(a) != tuple(b):
            different.append((request, step))
    return Agreement(len(expected), len(different), next(iter(different), None), num_equal_tokens)
