"""The benchmark's arithmetic and its checks; timings themselves are not tested."""

from __future__ import annotations

import pytest

from fedsim.bench.timing import Result, main
from fedsim.errors import InputError


def test_ratios_are_medians_of_each_turn() -> None:
    result = Result("W1", 10, 5, fedsim=[2.0, 9.0, 4.0, 6.0, 5.0, 1.0], turns=2)
    result.limit = [1.0, 2.0, 8.0, 4.0, 3.0, 2.5]
    assert result.ratios == [4.0 / 2.0, 5.0 / 3.0]


def test_unknown_workloads_and_bad_counts_are_refused() -> None:
    with pytest.raises(InputError, match=r"a workload must be one of W1, .*, got 'W5'\. Did you"):
        main(["w5"])
    with pytest.raises(InputError, match="repeats must be a whole number of at least 1, got 0"):
        main(["W1"], repeats=0)
