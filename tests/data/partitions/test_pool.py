import numpy as np
import pytest

from fedsim.data.partitions.pool import pool
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import samples_of


def test_every_client_draws_from_the_whole_pool() -> None:
    own = pool(
        samples_of(np.zeros(5, np.int64)), 10_000, numpy_generator(0, "partition"), samples=4
    )
    assert own.sizes.tolist() == [4] * 10_000
    # 40,000 draws of 5 values: 8,000 of each, standard deviation 80.
    counts = np.bincount(own.indices)
    assert len(counts) == 5
    assert np.abs(counts - 8000).max() < 4 * 80


def test_memory_of_100_000_clients() -> None:
    own = pool(samples_of(np.zeros(8000, np.int64)), 100_000, numpy_generator(0, "partition"))
    assert own.indices.nbytes + own.pointers.nbytes == 100_000 * 8 * 4 + 100_001 * 8


def test_same_seed_same_draws() -> None:
    labels = np.zeros(100, np.int64)
    first, second, other = (
        pool(samples_of(labels), 5, numpy_generator(seed, "partition")).indices.tolist()
        for seed in (0, 0, 1)
    )
    assert first == second != other


@pytest.mark.parametrize(
    ("n", "clients", "samples", "message"),
    [
        (3, 0, 8, r"partition\.clients must be >= 1, got 0"),
        (3, 2, 0, r"partition\.samples must be >= 1, got 0"),
        (0, 2, 8, "needs a data set with samples, got 0"),
    ],
)
def test_bad_options(n: int, clients: int, samples: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pool(samples_of(np.zeros(n, np.int64)), clients, numpy_generator(0, "p"), samples=samples)
