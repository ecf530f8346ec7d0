"""Partitions by class: pathological, shards, disjoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.errors import InputError
from tests.support.partitions import class_counts, divide, samples_of

BALANCED = samples_of(np.repeat(np.arange(10), 30))
TAIL = samples_of(np.repeat(np.arange(4), [400, 100, 20, 4]))


@pytest.mark.parametrize(("clients", "k"), [(5, 2), (15, 2), (10, 3), (7, 9), (30, 10), (1, 10)])
def test_pathological_clients_have_exactly_k_classes(clients: int, k: int) -> None:
    counts = class_counts(divide(BALANCED, "pathological", clients, classes=k), BALANCED)
    assert ((counts > 0).sum(axis=1) == k).all()
    holders = (counts > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1
    # A class of 30 is dealt in equal parts to those that hold it.
    for c in range(10):
        parts = counts[counts[:, c] > 0, c]
        assert parts.max() - parts.min() <= 1


def test_pathological_with_equal_classes_makes_equal_clients() -> None:
    # 20 x 2 places for 10 classes: 4 holders of 25 samples each.
    samples = samples_of(np.repeat(np.arange(10), 100))
    assert divide(samples, "pathological", 20, classes=2).sizes.tolist() == [50] * 20


def test_pathological_pairs_of_classes_are_all_equally_likely() -> None:
    # 6 clients, 2 of 4 classes, 3 holders a class. By symmetry each of the 6 pairs is expected
    # once a draw, 200 times over 200 draws; a pair's count within a draw has a variance below 1.
    samples = samples_of(np.repeat(np.arange(4), 12))
    pairs = np.zeros((4, 4))
    for seed in range(200):
        held = class_counts(divide(samples, "pathological", 6, seed, classes=2), samples) > 0
        for row in held:
            a, b = np.flatnonzero(row)
            pairs[a, b] += 1
    upper = pairs[np.triu_indices(4, 1)]
    assert upper.sum() == 1200
    np.testing.assert_allclose(upper, 200, atol=4 * np.sqrt(200))


def test_pathological_on_a_long_tail_gives_large_classes_more_clients() -> None:
    counts = class_counts(divide(TAIL, "pathological", 12, classes=2), TAIL)
    assert ((counts > 0).sum(axis=1) == 2).all()
    # 24 places by 400, 100, 20, 4: c w clipped to 1 and 12. The first is full; 12 places by
    # 100, 20, 4 are 9.68, 1.94, and at least 1: 10 would be 9.17 + 1.83 + 1 = 9, 2, 1.
    assert (counts > 0).sum(axis=0).tolist() == [12, 9, 2, 1]


@pytest.mark.parametrize(
    ("samples", "clients", "k", "message"),
    [
        (BALANCED, 20, 0, r"partition\.classes must be >= 1, got 0"),
        (BALANCED, 20, 11, r"partition\.classes must be <= 10, the number of classes, got 11"),
        (BALANCED, 4, 2, r"clients x partition\.classes must be >= 10, .* got '4 x 2 = 8'"),
        (TAIL, 300, 2, r"clients x partition\.classes must be <= 424, .* got 300 x 2 = 600"),
        (BALANCED, 301, 1, r"partition\.clients must be <= 300, the number of samples, got '1 x "),
    ],
)
def test_impossible_pathological(samples: Any, clients: int, k: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(samples, "pathological", clients, classes=k)


def test_shards_are_runs_of_the_sorted_samples() -> None:
    # 300 samples in 20 shards of 15: two a class of 30, so a client of 2 shards has 30 samples of
    # one class (its two shards) or 15 of two.
    own = divide(BALANCED, "shards", 10, shards=2)
    counts = class_counts(own, BALANCED)
    assert own.sizes.tolist() == [30] * 10
    assert set(counts[counts > 0].tolist()) <= {15, 30}
    assert ((counts > 0).sum(axis=1) <= 2).all()
    assert (counts.sum(axis=0) == 30).all()


def test_one_shard_a_client_is_sorted_and_cut() -> None:
    own = divide(samples_of([1, 0, 1, 0, 0]), "shards", 2, shards=1)
    parts = sorted(sorted(part.tolist()) for part in np.split(own.indices, own.pointers[1:-1]))
    # 0 0 0 | 1 1 : one client has positions 1, 3, 4, the other 0, 2.
    assert parts == [[0, 2], [1, 3, 4]]


def test_too_many_shards() -> None:
    with pytest.raises(InputError, match=r"partition\.shards must be <= 300, .*'100 x 4 = 400'"):
        divide(BALANCED, "shards", 100, shards=4)
    with pytest.raises(InputError, match=r"partition\.shards must be >= 1, got 0"):
        divide(BALANCED, "shards", 10, shards=0)


def test_disjoint_is_two_whole_classes_a_client_for_five_of_ten() -> None:
    counts = class_counts(divide(BALANCED, "disjoint", 5), BALANCED)
    assert ((counts > 0).sum(axis=1) == 2).all()
    assert set(counts[counts > 0].tolist()) == {30}
    other = class_counts(divide(BALANCED, "disjoint", 5, seed=1), BALANCED)
    assert (counts != other).any()


def test_disjoint_where_the_classes_do_not_divide() -> None:
    counts = class_counts(divide(BALANCED, "disjoint", 4), BALANCED)
    assert (counts > 0).sum(axis=1).tolist() == [3, 3, 2, 2]


def test_disjoint_groups_of_clients_share_their_classes() -> None:
    own = divide(BALANCED, "disjoint", 7, classes=5)  # 2 groups of 150: 4 and 3 clients
    assert own.sizes.tolist() == [38, 38, 37, 37, 50, 50, 50]
    held = class_counts(own, BALANCED) > 0
    assert (held[:4].any(axis=0) != held[4:].any(axis=0)).all()


def test_disjoint_groups_may_be_divided_by_another_partition() -> None:
    own = divide(BALANCED, "disjoint", 10, classes=5, within={"name": "shards", "shards": 1})
    # 150 samples of 5 classes in 5 shards of 30: one class a client.
    assert ((class_counts(own, BALANCED) > 0).sum(axis=1) == 1).all()


@pytest.mark.parametrize(
    ("clients", "options", "message"),
    [
        (11, {}, r"partition\.clients must be <= 10, the number of classes, unless .* got 11"),
        (6, {"classes": 3}, r"partition\.classes must divide 10, the number of classes, got 3"),
        (6, {"classes": 0}, r"partition\.classes must divide 10, the number of classes, got 0"),
        (
            4,
            {"classes": 2},
            r"partition\.clients must be >= 5, the number of groups of 2 cl.*got 4",
        ),
    ],
)
def test_impossible_disjoint(clients: int, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(BALANCED, "disjoint", clients, **options)


def test_disjoint_with_more_clients_in_a_group_than_samples() -> None:
    with pytest.raises(InputError, match=r"20 clients are 5 for the 4 samples of one group"):
        divide(TAIL, "disjoint", 20, classes=1)
