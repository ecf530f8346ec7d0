import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import apportion, equal_parts, join, stable_order


@given(st.lists(st.integers(0, 2**31 - 1), max_size=30))
def test_stable_order_is_that_of_a_stable_sort(keys: list[int]) -> None:
    array = np.array(keys, np.int64)
    assert stable_order(array).tolist() == np.argsort(array, kind="stable").tolist()


@pytest.mark.parametrize(
    ("total", "parts", "expected"),
    [(7, 3, [3, 2, 2]), (2, 4, [1, 1, 0, 0]), (6, 2, [3, 3]), ([5, 3], [2, 3], [3, 2, 1, 1, 1])],
)
def test_equal_parts(total: int | list[int], parts: int | list[int], expected: list[int]) -> None:
    assert equal_parts(np.array(total), np.array(parts)).tolist() == expected


@pytest.mark.parametrize(
    ("total", "weights", "low", "high", "expected"),
    [
        (12, [3, 2, 1], 0, 12, [6, 4, 2]),
        (10, [3, 2, 1], 0, 10, [5, 3, 2]),  # 5, 3.33, 1.67: the largest fraction is rounded up
        (10, [8, 1, 1], 2, 10, [6, 2, 2]),  # 8, 1, 1 with at least 2
        (10, [8, 1, 1], 0, 4, [4, 3, 3]),  # 8, 1, 1 with at most 4
        (12, [5, 5, 5], 4, 4, [4, 4, 4]),
        (3, [1e-300, 1.0, 1.0], 1, 3, [1, 1, 1]),
        (5, [1e-300, 1.0], 0, 3, [2, 3]),
        (2, [1, 1, 1], 0, 2, [1, 1, 0]),
    ],
)
def test_apportion_by_hand(
    total: int, weights: list[float], low: int, high: int, expected: list[int]
) -> None:
    w = np.array(weights, float)
    bounds = np.full(len(w), low), np.full(len(w), high)
    assert apportion(total, w, *bounds).tolist() == expected


@given(st.data())
def test_apportion_keeps_total_and_bounds(data: st.DataObject) -> None:
    k = data.draw(st.integers(1, 12))
    low = np.array(data.draw(st.lists(st.integers(0, 5), min_size=k, max_size=k)))
    high = low + np.array(data.draw(st.lists(st.integers(0, 50), min_size=k, max_size=k)))
    high[0] += 1
    weights = data.draw(st.lists(st.floats(1e-12, 1e12), min_size=k, max_size=k))
    total = data.draw(st.integers(int(low.sum()), int(high.sum())))
    numbers = apportion(total, np.array(weights), low, high)
    assert numbers.sum() == total
    assert (numbers >= low).all()
    assert (numbers <= high).all()


def test_joined_assignments_keep_clients_server_and_roles() -> None:
    one = Assignment(np.array([5, 3]), np.array([0, 2]), server=np.array([9]))
    two = Assignment(
        np.array([1, 2, 4]),
        np.array([0, 1, 3]),
        labelled=np.array([0, 1]),
        modality=np.array([2, 1]),
    )
    both = join([one, two])
    assert both.indices.tolist() == [5, 3, 1, 2, 4]
    assert both.pointers.tolist() == [0, 2, 3, 5]
    assert both.server.tolist() == [9]
    assert both.labelled.tolist() == [1, 0, 1]
    assert both.modality.tolist() == [0, 2, 1]
    assert len(join([one, one]).labelled) == 0
