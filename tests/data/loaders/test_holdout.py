import numpy as np
import pytest

from fedsim.data.loaders.holdout import held_out, mark_fifth
from fedsim.errors import InputError


def test_share_of_each_group_is_rounded_half_up_and_never_all() -> None:
    groups = np.repeat([7, 3, 0, 9], [10, 5, 2, 1])
    marks = held_out(groups, 0.5, seed=0)
    counts = {int(g): int(marks[groups == g].sum()) for g in np.unique(groups)}
    # 2.5 becomes 3; 1 of 2; of a single sample none, as one must stay.
    assert counts == {7: 5, 3: 3, 0: 1, 9: 0}
    # 0.145 * 100 is 14.499999999999998 in floating point.
    assert held_out(np.zeros(100, np.int64), 0.145, seed=0).sum() == 15


def test_marks_never_change() -> None:
    groups = np.array([0, 1] * 6)
    assert np.flatnonzero(held_out(groups, 1 / 3, seed=1998)).tolist() == [1, 2, 4, 5]


def test_seed_decides_and_every_sample_can_be_marked() -> None:
    groups = np.zeros(20, np.int64)
    counts = sum(held_out(groups, 0.5, seed).astype(int) for seed in range(200))
    # Each of 20 samples is marked in half of 200 draws, with a deviation of 7.
    assert np.abs(np.asarray(counts) - 100).max() < 4 * 7.1


def test_a_fifth_of_each_stratum_is_marked() -> None:
    strata = np.array([3] * 10 + [1] * 2 + [0] * 3 + [3] * 2 + [7] * 1)
    marked = mark_fifth(strata, key=1)
    # 12/5 = 2.4, 2/5 = 0.4, 3/5 = 0.6 and 1/5
    assert {s: int(marked[strata == s].sum()) for s in (0, 1, 3, 7)} == {0: 1, 1: 0, 3: 2, 7: 0}
    assert mark_fifth(np.zeros(10, np.int64), key=1961).nonzero()[0].tolist() == [0, 7]
    assert not np.array_equal(mark_fifth(np.zeros(99), 1), mark_fifth(np.zeros(99), 2))


@pytest.mark.parametrize(
    ("share", "seed", "message"),
    [
        (0.0, 0, r"dataset\.test_share must be in \(0, 1\), got 0\.0"),
        (1.0, 0, r"dataset\.test_share must be in \(0, 1\), got 1\.0"),
        (float("nan"), 0, r"dataset\.test_share must be in"),
        (0.5, -1, r"dataset\.split_seed must be at least 0, got -1"),
        (0.1, 0, r"must leave a test sample of at least one class; the largest has 3, got 0\.1"),
    ],
)
def test_wrong_options(share: float, seed: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        held_out(np.array([0, 0, 0, 1]), share, seed)
