import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.data.feature_cache import FeatureCache
from fedsim.errors import InputError


class Squares:
    """Row i has the features (i, i^2); remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, rows: np.ndarray) -> torch.Tensor:
        self.asked += rows.tolist()
        return torch.tensor([[float(r), float(r * r)] for r in rows])


@pytest.fixture(autouse=True)
def _cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))


def test_each_row_is_computed_once_by_all_processes() -> None:
    compute, again = Squares(), Squares()
    cache = FeatureCache("vit", 10, (2,))
    assert cache.get(np.array([3, 7]), compute).tolist() == [[3.0, 9.0], [7.0, 49.0]]
    assert cache.get(np.array([7, 1, 3]), compute).tolist() == [[7, 49], [1, 1], [3, 9]]
    assert compute.asked == [3, 7, 1]
    other = FeatureCache("vit", 10, (2,))
    assert other.get(np.array([1, 0]), again).tolist() == [[1, 1], [0, 0]]
    assert again.asked == [0]
    FeatureCache("another", 10, (2,)).get(np.array([1]), again)
    assert again.asked == [0, 1]


def test_rows_beyond_the_bound_are_computed_anew() -> None:
    compute = Squares()
    cache = FeatureCache("vit", 10, (2,), max_bytes=4 * 8)
    for _ in range(2):
        assert cache.get(np.array([4, 2]), compute).tolist() == [[16**0.5, 16], [2, 4]]
    assert compute.asked == [4, 2, 4]
    nothing = FeatureCache("tiny", 10, (2,), max_bytes=0)
    assert nothing.get(np.array([5]), compute).tolist() == [[5, 25]]


@pytest.mark.parametrize("left", [None, 0, 3 * 8, 10 * 8 - 1])
def test_values_that_were_lost_are_computed_anew(left: int | None, tmp_path: Path) -> None:
    """Of ten known rows the file of values is missing, or cut to so many bytes."""
    rows = np.arange(10)
    expected = FeatureCache("vit", 10, (2,)).get(rows, Squares())
    values = tmp_path / "features" / "vit.f32"
    if left is None:
        values.unlink()
    else:
        os.truncate(values, left)
    compute, again = Squares(), Squares()
    assert FeatureCache("vit", 10, (2,)).get(rows, compute).equal(expected)
    assert compute.asked == rows.tolist()
    assert FeatureCache("vit", 10, (2,)).get(rows, again).equal(expected)
    assert again.asked == []


def test_a_larger_bound_keeps_what_is_known() -> None:
    compute = Squares()
    FeatureCache("vit", 10, (2,), max_bytes=4 * 8).get(np.arange(4), Squares())
    assert FeatureCache("vit", 10, (2,)).get(np.array([3, 5]), compute).tolist() == [
        [3, 9],
        [5, 25],
    ]
    assert compute.asked == [5]


def test_what_is_returned_is_the_callers_own() -> None:
    cache, compute = FeatureCache("vit", 4, (2,)), Squares()
    cache.get(np.array([2]), compute).zero_()
    assert cache.get(np.array([2]), compute).tolist() == [[2, 4]]


def test_misuse_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="file name"):
        FeatureCache("../x", 4, (2,))
    with pytest.raises(ValueError, match=r"shape \(1, 3\), got \(1, 2\)"):
        FeatureCache("wrong", 4, (3,)).get(np.array([0]), Squares())
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "file"))
    with pytest.raises(InputError, match="FEDSIM_CACHE"):
        FeatureCache("vit", 4, (2,))
