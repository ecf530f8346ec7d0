"""Intervals and tests against textbook values and scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from fedsim.report.statistics import holm, mean_interval, paired_p


def test_interval_by_hand() -> None:
    """t(0.975, 2 degrees of freedom) is 4.3027; the deviation of 1, 2, 3 is 1."""
    found = mean_interval([1.0, 2.0, 3.0])
    assert found.mean == 2.0
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((2 - found.half, 2 + found.half))


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for values in rng.normal(5.0, 2.0, size=(2000, 4)):
        interval = mean_interval(values.tolist())
        covered += interval.low <= 5.0 <= interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize("values", [[], [3.0]])
def test_too_few_values_have_no_interval(values: list[float]) -> None:
    found = mean_interval(values)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(found.mean) == (not values)


def test_paired_p_is_scipys() -> None:
    a, b = [0.81, 0.83, 0.80, 0.85], [0.79, 0.80, 0.80, 0.81]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    assert paired_p(differences) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert math.isnan(paired_p([0.1]))
    assert paired_p([0.0, 0.0]) == 1.0
    assert math.isnan(paired_p([0.1, 0.1]))


def test_holm_by_hand() -> None:
    """Four tests: .005 x 4, .01 x 3, then .03 x 2 and .04 x 1, which may not fall below it."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    found = holm([0.02, math.nan, 0.6])
    assert found[0] == pytest.approx(0.04)  # of two tests, the missing one does not count
    assert math.isnan(found[1])
    assert found[2] == pytest.approx(0.6)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
