from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.data.subsets import class_sizes, long_tail_rows
from fedsim.errors import InputError
from fedsim.rng import numpy_generator

TABLES = [
    # classes, largest, imbalance: the published protocols (CIFAR-10 and 100, Fashion-MNIST)
    (10, 5000, 50, [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100], 13_996),
    (10, 5000, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], 12_406),
    (10, 6000, 50, [6000, 3884, 2515, 1628, 1054, 682, 442, 286, 185, 120], 16_796),
    (10, 6000, 100, [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60], 14_886),
    (100, 500, 50, [500, 480, 462], 12_608),
    (100, 500, 100, [500, 477, 455], 10_847),
]


@pytest.mark.parametrize(("classes", "largest", "imbalance", "first", "total"), TABLES)
def test_exponential_sizes_equal_the_published_tables(
    classes: int, largest: int, imbalance: int, first: list[int], total: int
) -> None:
    sizes = class_sizes(classes, largest, imbalance)
    assert sizes.dtype == np.int64
    assert sizes[: len(first)].tolist() == first
    assert sizes.sum() == total
    assert sizes[-1] == largest // imbalance


@pytest.mark.parametrize(("profile", "classes"), [("exponential", 7), ("pareto", 16)])
def test_whole_numbers_are_met_where_floating_point_falls_below(profile: str, classes: int) -> None:
    # 64^(-c/6) = 1/2, 1/4, ... and (c + 1)^(-ln 81 / ln 16) = (c + 1)^(-log2 3): 3^-1, 3^-2, ...
    if profile == "exponential":
        assert class_sizes(classes, 6400, 64).tolist() == [6400, 3200, 1600, 800, 400, 200, 100]
    else:
        sizes = class_sizes(classes, 8100, 81, "pareto")
        assert sizes[[0, 1, 3, 7, 15]].tolist() == [8100, 2700, 900, 300, 100]
        # Class 2: 8100 * 3^(-1.58496) = 8100 * 0.175296 = 1419.9.
        assert sizes[2] == 1419


@settings(deadline=None, max_examples=60)
@given(
    classes=st.integers(2, 40),
    largest=st.integers(1, 9000),
    imbalance=st.sampled_from([1, 1.5, 2, 10, 50, 64, 100, 1000]),
)
def test_exponential_sizes_are_floors_in_exact_arithmetic(
    classes: int, largest: int, imbalance: float
) -> None:
    # m <= n_max IF^(-c / (C - 1)) exactly where m^(C - 1) IF^c <= n_max^(C - 1).
    sizes = class_sizes(classes, largest, imbalance).tolist()
    factor = Fraction(str(imbalance))
    for c, size in enumerate(sizes):
        bound = Fraction(largest) ** (classes - 1) / factor**c
        assert size == 1 or Fraction(size) ** (classes - 1) <= bound
        assert Fraction(size + 1) ** (classes - 1) > bound


@pytest.mark.parametrize(
    ("classes", "share", "expected"),
    [
        (4, 0.5, [90, 90, 9, 9]),
        (5, 0.5, [90, 90, 90, 9, 9]),
        (10, 0.3, [90] * 7 + [9] * 3),  # 0.3 * 10 is 3, not 2.99...
        (3, 0.0, [90, 90, 90]),
        (3, 1.0, [90, 9, 9]),  # the largest class keeps its size
    ],
)
def test_step_sizes(classes: int, share: float, expected: list[int]) -> None:
    assert class_sizes(classes, 90, 10, "step", share).tolist() == expected


def test_step_of_a_fractional_imbalance() -> None:
    assert class_sizes(2, 11, 1.1, "step").tolist() == [11, 10]  # 11 / 1.1 = 10 exactly


def test_no_class_is_empty_and_one_class_is_enough() -> None:
    assert class_sizes(4, 10, 1000).tolist() == [10, 1, 1, 1]
    for profile in ("exponential", "pareto", "step"):
        assert class_sizes(1, 7, 100, profile).tolist() == [7]
        assert class_sizes(3, 7, 1, profile).tolist() == [7, 7, 7]


def rows_of(labels: list[int], imbalance: float = 4, seed: int = 0, **options: object) -> list[int]:
    rng = numpy_generator(seed, "long-tail")
    classes = max(labels) + 1
    rows = long_tail_rows(np.array(labels), classes, imbalance, "exponential", rng, **options)  # type: ignore[arg-type]
    assert rows.dtype == np.int64
    return rows.tolist()


def test_rows_are_ascending_random_members_of_the_right_number() -> None:
    labels = np.tile([0, 1, 2], 40)
    rows = rows_of(labels.tolist())
    assert rows == sorted(set(rows))
    assert np.bincount(labels[rows]).tolist() == [40, 20, 10]
    assert rows != rows_of(labels.tolist(), seed=1)
    assert rows == rows_of(labels.tolist())


def test_every_member_is_equally_likely() -> None:
    # Class 1: 3 of its 12 samples; over 400 seeds each 100 times, deviation sqrt(400/4*3/4) = 8.7.
    labels = [0] * 12 + [1] * 12
    picks = np.concatenate([rows_of(labels, seed=s) for s in range(400)])
    counts = np.bincount(picks, minlength=24)[12:]
    assert counts.sum() == 1200
    assert np.abs(counts - 100).max() < 4 * 8.7


def test_samples_without_a_class_do_not_stay() -> None:
    labels = np.array([-1, 0, 1, -1, 0, 1, -1])
    rng = numpy_generator(0, "long-tail")
    rows = long_tail_rows(labels, 2, 2, "exponential", rng)
    assert np.bincount(labels[rows]).tolist() == [2, 1]


def test_the_default_largest_is_the_mean_class_size() -> None:
    labels = [0] * 9 + [1] * 4 + [2] * 4  # 17 / 3
    assert np.bincount(np.array(labels)[rows_of(labels, 1.25)]).tolist() == [5, 4, 4]
    assert len(rows_of(labels, 1, largest=4)) == 12


def test_a_class_with_too_few_samples_is_named_with_what_would_fit() -> None:
    labels = [0] * 100 + [1] * 30 + [2] * 20  # the tail 50, 25, 12 fits; 61, 30, 15 is the last
    assert len(rows_of(labels, largest=61)) == 61 + 30 + 15
    message = (
        r"dataset\.largest must be <= 61 for the exponential tail of imbalance 4, got 70: "
        r"class 1 has 30 samples, the tail needs 35"
    )
    with pytest.raises(InputError, match=message):
        rows_of(labels, largest=70)
    with pytest.raises(InputError, match=r"no exponential tail .* fits the data: class 1 has 0"):
        rows_of([0, 0, 2, 2], largest=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 5, 2), "at least 1 class, got 0"),
        ((3, 0, 2), r"dataset\.largest must be >= 1, got 0"),
        ((3, 5, 0.5), r"dataset\.imbalance must be >= 1 and finite, got 0\.5"),
        ((3, 5, float("inf")), r"dataset\.imbalance must be >= 1 and finite, got inf"),
        ((3, 5, float("nan")), r"dataset\.imbalance must be >= 1 and finite, got nan"),
        ((3, 5, 2, "zipf"), r"dataset\.profile must be one of exponential, pareto, step, got 'zi"),
        ((3, 5, 2, "step", 1.5), r"step_share must be in \[0, 1\], got 1\.5"),
    ],
)
def test_bad_values(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        class_sizes(*arguments)  # type: ignore[arg-type]


def test_bad_labels() -> None:
    rng = numpy_generator(0, "long-tail")
    with pytest.raises(InputError, match=r"labels must be in 0\.\.1, got 2"):
        long_tail_rows(np.array([0, 1, 2]), 2, 2, "exponential", rng)
    with pytest.raises(InputError, match="at least 1 sample a class, the mean is, got 0"):
        long_tail_rows(np.array([0]), 2, 2, "exponential", rng)


def test_the_default_is_less_where_a_class_has_fewer_than_the_mean() -> None:
    # 10 a class in the mean, but class 0 has 9: sizes 9, floor(9 / 2), floor(9 / 4) for IF 4.
    labels = np.repeat([0, 1, 2], [9, 10, 11])
    rows = long_tail_rows(labels, 3, 4.0, "exponential", numpy_generator(0, "long-tail"))
    assert np.bincount(labels[rows]).tolist() == [9, 4, 2]
