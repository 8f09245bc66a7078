"""Whether what was drawn follows a distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

MIN_P_VALUE = 1e-4  # false alarms of a right sampler: 1 in 10,000 per setting


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
