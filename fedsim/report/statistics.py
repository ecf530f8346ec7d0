"""Means, intervals and paired tests over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and the ends of its confidence interval; NaN where there are too few values."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """Return the mean and Student's t interval of independent values; one value has no interval."""
    from scipy import stats

    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 1) * x.std(ddof=1) / math.sqrt(len(x)))
    return Interval(mean, mean - half, mean + half)


def paired_p(differences: Sequence[float]) -> float:
    """Return the two-sided p of the paired t test; NaN for fewer than 2 pairs.

    Differences that are all the same have no spread to test against: p is 1 where they are 0, else
    NaN.
    """
    from scipy import stats

    x = np.asarray(differences, np.float64)
    if len(x) < 2:
        return math.nan
    if np.ptp(x) == 0:
        return 1.0 if x[0] == 0 else math.nan
    return float(stats.ttest_1samp(x, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number (Holm 1979, step-down); NaN stays and counts not.

    The corrected value is the smallest level at which the hypothesis is rejected in the family.
    """
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    ranked = sorted(known, key=lambda i: p_values[i])
    corrected = [math.nan] * len(p_values)
    highest = 0.0
    for rank, i in enumerate(ranked):
        highest = max(highest, min(1.0, (len(ranked) - rank) * p_values[i]))
        corrected[i] = highest
    return corrected
