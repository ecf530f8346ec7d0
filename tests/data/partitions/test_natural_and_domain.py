from typing import Any

import numpy as np
import pytest

from fedsim.errors import InputError
from tests.support.partitions import class_counts, divide, samples_of

# Owners 3, 5, 9 with 3, 1 and 2 samples.
OWNED = samples_of(np.zeros(6), owners=[3, 9, 3, 5, 9, 3])
# Domains a, b, c with 10, 20 and 30 samples.
DOMAINS = samples_of(np.arange(60) % 3, domains=np.repeat([0, 1, 2], [10, 20, 30]))


def parts(samples: Any, clients: int, seed: int = 0, **options: Any) -> list[list[int]]:
    own = divide(samples, "natural", clients, seed, **options)
    return [sorted(part.tolist()) for part in np.split(own.indices, own.pointers[1:-1])]


def test_every_owner_is_a_client_in_the_order_of_the_owners() -> None:
    assert parts(OWNED, 3) == [[0, 2, 5], [3], [1, 4]]


def test_the_largest_owners() -> None:
    assert parts(OWNED, 2, select="largest") == [[0, 2, 5], [1, 4]]
    assert parts(OWNED, 1, select="largest") == [[0, 2, 5]]


def test_small_owners_are_left_out() -> None:
    assert parts(OWNED, 2, min_size=2) == [[0, 2, 5], [1, 4]]
    with pytest.raises(InputError, match=r"must be 2, the number of owners of 2 samples, or .*t 3"):
        parts(OWNED, 3, min_size=2)


def test_random_owners_are_all_equally_likely() -> None:
    sizes = [len(parts(OWNED, 1, seed, select="random")[0]) for seed in range(300)]
    np.testing.assert_allclose(np.bincount(sizes)[1:], 100, atol=4 * 8.2)


def test_merged_owners_stay_whole() -> None:
    own = parts(OWNED, 2, select="merge")
    assert sorted(own[0] + own[1]) == [0, 1, 2, 3, 4, 5]
    for part in own:
        for whole in ([0, 2, 5], [3], [1, 4]):
            assert set(whole) <= set(part) or not set(whole) & set(part)
    samples = samples_of(np.zeros(10), owners=np.arange(10))
    assert [len(p) for p in parts(samples, 4, select="merge")] == [3, 3, 2, 2]


@pytest.mark.parametrize(
    ("samples", "clients", "options", "message"),
    [
        (OWNED, 2, {}, r"clients must be 3, the number of owners, or partition\.select .*, got 2"),
        (OWNED, 4, {"select": "largest"}, r"clients must be <= 3, the number of owners, got 4"),
        (OWNED, 4, {"select": "merge"}, r"clients must be <= 3, the number of owners, got 4"),
        (DOMAINS, 2, {}, "'natural', but the data set has no owners"),
    ],
)
def test_impossible_natural(
    samples: Any, clients: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        divide(samples, "natural", clients, **options)


def domains_of(own: Any) -> list[list[int]]:
    assert DOMAINS.domains is not None
    of = DOMAINS.domains[own.indices]
    return [sorted(set(part.tolist())) for part in np.split(of, own.pointers[1:-1])]


def test_one_client_a_domain() -> None:
    own = divide(DOMAINS, "domain", 3)
    assert own.sizes.tolist() == [10, 20, 30]
    assert domains_of(own) == [[0], [1], [2]]


def test_several_clients_a_domain_in_equal_shares() -> None:
    own = divide(DOMAINS, "domain", 6)
    assert own.sizes.tolist() == [5, 5, 10, 10, 15, 15]
    assert domains_of(own) == [[0], [0], [1], [1], [2], [2]]


def test_the_largest_domains_have_one_client_more() -> None:
    assert divide(DOMAINS, "domain", 5).sizes.tolist() == [10, 10, 10, 15, 15]


def test_another_partition_within_the_domains() -> None:
    own = divide(DOMAINS, "domain", 6, within={"name": "shards", "shards": 1})
    assert domains_of(own) == [[0], [0], [1], [1], [2], [2]]
    # Sorted by class and halved: of 30 samples of 3 classes each half has two classes.
    assert ((class_counts(own, DOMAINS)[4:] > 0).sum(axis=1) == 2).all()


def test_a_domain_without_samples_has_no_client() -> None:
    samples = samples_of(np.zeros(4), domains=[0, 2, 2, 0], names=("a", "b", "c"))
    own = divide(samples, "domain", 2)
    assert sorted(own.indices[:2].tolist()) == [0, 3]


@pytest.mark.parametrize(
    ("samples", "clients", "message"),
    [
        (DOMAINS, 2, r"partition\.clients must be >= 3, the number of domains, got 2"),
        (DOMAINS, 33, r"but 33 clients are 11 for the 10 of 'a'"),
        (OWNED, 3, "'domain', but the data set has no domains"),
    ],
)
def test_impossible_domain(samples: Any, clients: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(samples, "domain", clients)
