from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.errors import InputError
from tests.support.partitions import class_counts, divide, samples_of


@pytest.mark.parametrize(
    ("n", "clients", "options", "expected"),
    [
        (11, 3, {}, [6, 3, 2]),  # 1 : 1/2 : 1/3
        (36, 3, {"exponent": 2.0}, [26, 7, 3]),  # 1 : 1/4 : 1/9 of 36: 26.45, 6.61, 2.94
        (9, 3, {"exponent": 0.0}, [3, 3, 3]),
        (12, 3, {"exponent": 3.0, "min_size": 3}, [6, 3, 3]),
        (6, 3, {"exponent": 9.0, "min_size": 2}, [2, 2, 2]),
        (4, 3, {"exponent": 60.0, "min_size": 0}, [4, 0, 0]),
        (12, 3, {"profile": "lognormal", "sigma": 0.0}, [4, 4, 4]),
        (12, 3, {"profile": "lognormal", "sigma": 1e6, "min_size": 1}, [10, 1, 1]),
    ],
)
def test_sizes_by_hand(n: int, clients: int, options: dict[str, Any], expected: list[int]) -> None:
    own = divide(samples_of(np.zeros(n)), "quantity", clients, **options)
    assert sorted(own.sizes.tolist(), reverse=True) == expected
    assert sorted(own.indices.tolist()) == list(range(n))


def test_the_large_client_is_a_random_one() -> None:
    samples = samples_of(np.zeros(11))
    largest = [int(np.argmax(divide(samples, "quantity", 3, s).sizes)) for s in range(150)]
    np.testing.assert_allclose(np.bincount(largest), 50, atol=4 * 5.8)


def test_lognormal_sizes_are_lognormal() -> None:
    samples = samples_of(np.zeros(2_000_000))
    sizes = divide(samples, "quantity", 1000, profile="lognormal", sigma=0.5).sizes
    logarithms = np.log(sizes)
    assert abs(logarithms.std() - 0.5) < 4 * 0.5 / np.sqrt(2000)
    standard = (logarithms - logarithms.mean()) / logarithms.std()
    assert stats.kstest(standard, "norm").pvalue > 0.01


def test_classes_are_mixed() -> None:
    samples = samples_of(np.arange(10_000) % 2)
    counts = class_counts(divide(samples, "quantity", 4), samples)
    sizes = counts.sum(axis=1)
    assert (np.abs(counts[:, 0] - sizes / 2) < 4 * np.sqrt(sizes) / 2).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exponent": -1.0}, r"partition\.exponent must be >= 0 and finite, got -1\.0"),
        ({"sigma": float("nan")}, r"partition\.sigma must be >= 0 and finite, got nan"),
        ({"min_size": 4}, r"must be <= 10, the number of samples, got '4 x 3 = 12'"),
        ({"profile": "zipf"}, r"partition\.profile must be 'power' or 'lognormal', got 'zipf'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(samples_of(np.zeros(10)), "quantity", 3, **options)
