import numpy as np
import pytest

from fedsim.data.partitions.iid import iid
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import samples_of


def test_every_sample_once_in_equal_parts() -> None:
    own = iid(samples_of(np.zeros(11, np.int64)), 4, numpy_generator(0, "partition"))
    assert own.sizes.tolist() == [3, 3, 3, 2]
    assert sorted(own.indices.tolist()) == list(range(11))
    assert own.indices.tolist() != list(range(11))


def test_classes_are_mixed() -> None:
    # 1,000 of 5,000 samples are of class 1, 100 clients of 50: 10 in the mean, and without
    # replacement a variance of 50 * 0.2 * 0.8 * (4950 / 4999) = 7.92.
    labels = np.repeat([0, 1], [4000, 1000])
    own = iid(samples_of(labels), 100, numpy_generator(0, "partition"))
    ones = labels[own.indices].reshape(100, 50).sum(axis=1)
    assert ones.mean() == 10
    assert 4.5 < ones.var() < 12.5  # chi-squared of 99, four standard deviations


def test_same_seed_same_parts() -> None:
    labels = np.zeros(50, np.int64)
    first, second, other = (
        iid(samples_of(labels), 5, numpy_generator(seed, "partition")).indices.tolist()
        for seed in (0, 0, 1)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("clients", "message"),
    [
        (0, r"partition\.clients must be >= 1, got 0"),
        (4, r"partition\.clients must be <= 3, the number of samples, got 4"),
    ],
)
def test_bad_number_of_clients(clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        iid(samples_of(np.zeros(3, np.int64)), clients, numpy_generator(0, "partition"))
