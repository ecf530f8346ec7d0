"""What holds for all partitions: one owner a sample, all samples owned, one seed one manifest."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim.components.lookup import names
from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.subsets import long_tail_rows
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import divide, fingerprint, samples_of

INNER = {"name": "dirichlet", "alpha": 0.5}

# name, options, fingerprint of 12 clients over `typical()` with seed 0. They are the same on any
# machine: a change of one of them changes every experiment with that partition.
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("iid", {}, "a5a7ff9c476eab31"),
    ("pool", {}, "83984fa2d03c1e67"),
    ("dirichlet", {"alpha": 0.3}, "920b9ac6d678567e"),
    ("dirichlet", {"alpha": 0.3, "variant": "multinomial"}, "b64703eeac717a3c"),
    ("dirichlet", {"alpha": 0.3, "variant": "balanced"}, "f2b0d731482b5547"),
    ("pathological", {"classes": 3}, "44432e3230cc946e"),
    ("shards", {}, "ba053490ff8a80ed"),
    ("quantity", {}, "1cc01e47306ab461"),
    ("quantity", {"profile": "lognormal"}, "3e7a2ab76d92c677"),
    ("domain", {}, "ece67684ca065bfd"),
    ("domain", {"within": INNER}, "65cde063c6d90c2a"),
    ("disjoint", {"classes": 2}, "14cc8df612d4c500"),
    ("natural", {"select": "merge"}, "b21e85f9310c3cd9"),
    ("modality", {"images": 3, "texts": 4, "pairs": 5, "within": INNER}, "4cbc916e49e2421f"),
    ("public", {"share": 0.25, "within": INNER}, "012e03d89cc89e2c"),
    ("server-labelled", {"server_share": 0.25, "within": {"name": "domain"}}, "b529864ce4305b71"),
    ("server-labelled", {"server_domain": "b", "within": {"name": "domain"}}, "0d20c761f6e08d77"),
]
OF_ALL_SAMPLES = [(n, o) for n, o, _ in CASES if n != "pool"]


def typical() -> Samples:
    """600 samples of a long-tailed set: 6 classes, 3 domains, 20 owners."""
    labels = np.repeat(np.arange(6), [240, 150, 100, 60, 30, 20])
    i = np.arange(600)
    return samples_of(labels, domains=i % 3, owners=(7 * i) % 20)


def check_owners(own: Assignment, n: int) -> None:
    together = np.concatenate([own.indices, own.server])
    assert np.sort(together).tolist() == list(range(n))


def test_no_partition_is_left_out() -> None:
    assert {name for name, _, _ in CASES} == set(names("partitions")) - {"file", "flower"}


@pytest.mark.parametrize(("name", "options", "known"), CASES)
def test_a_seed_makes_one_manifest_for_ever(name: str, options: dict[str, Any], known: str) -> None:
    own = divide(typical(), name, 12, **options)
    assert fingerprint(own) == known
    assert fingerprint(divide(typical(), name, 12, seed=1, **options)) != known


@pytest.mark.parametrize(("name", "options"), OF_ALL_SAMPLES)
@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    labels=st.lists(st.integers(-1, 4), min_size=1, max_size=60),
    clients=st.integers(1, 15),
)
def test_every_sample_has_one_owner_or_the_input_is_refused(
    name: str, options: dict[str, Any], seed: int, labels: list[int], clients: int
) -> None:
    n = len(labels)
    samples = samples_of(
        labels, domains=np.arange(n) % 3, owners=np.arange(n) % 17, names=("a", "b", "c")
    )
    if name == "modality":
        options = {**options, "images": clients // 2, "texts": 0, "pairs": clients - clients // 2}
    try:
        own = divide(samples, name, clients, seed, **options)
    except InputError:
        return
    assert own.num_clients == clients
    assert own.sizes.min() >= 1
    check_owners(own, n)


@pytest.mark.parametrize(("name", "options"), OF_ALL_SAMPLES)
def test_every_partition_works_on_top_of_a_long_tail(name: str, options: dict[str, Any]) -> None:
    whole = samples_of(
        np.arange(3000) % 6, domains=np.arange(3000) % 5, owners=np.arange(3000) % 40
    )
    rows = long_tail_rows(whole.labels, 6, 100, "exponential", numpy_generator(0, "long-tail"))
    assert whole.domains is not None
    assert whole.owners is not None
    tail = samples_of(
        whole.labels[rows], whole.domains[rows], whole.owners[rows], whole.domain_names
    )
    own = divide(tail, name, 12, **options)
    check_owners(own, len(rows))
    assert own.sizes.min() >= 1
    moved = own.on_rows(rows)
    assert set(moved.indices.tolist()) | set(moved.server.tolist()) == set(rows.tolist())


@pytest.mark.parametrize(
    ("name", "options"), [c for c in OF_ALL_SAMPLES if c[0] not in ("public", "server-labelled")]
)
def test_as_many_clients_as_samples(name: str, options: dict[str, Any]) -> None:
    if name == "modality":
        options = {**options, "images": 100, "texts": 100, "pairs": 100}
    if name == "pathological":
        options = {"classes": 1}
    if name == "shards":
        options = {"shards": 1}
    samples = samples_of(np.arange(300) % 6, domains=np.arange(300) % 3, owners=np.arange(300))
    own = divide(samples, name, 300, **options)
    assert own.sizes.tolist() == [1] * 300
    check_owners(own, 300)


@pytest.mark.parametrize("name", [n for n in names("partitions") if n not in ("file", "flower")])
@pytest.mark.parametrize("clients", [0, 1000])
def test_more_clients_than_samples_or_none_are_refused(name: str, clients: int) -> None:
    if name == "pool" and clients:
        return
    needed: dict[str, dict[str, Any]] = {
        "dirichlet": {"alpha": 1.0},
        "modality": {"images": clients},
        "public": {"size": 1},
        "server-labelled": {"server_share": 0.1},
    }
    with pytest.raises(InputError, match=r"partition\.clients"):
        divide(typical(), name, clients, **needed.get(name, {}))


def test_dirichlet_of_100_000_clients_and_a_million_samples_stays_below_50_mb() -> None:
    samples = Samples(np.random.default_rng(0).integers(0, 10, 1_000_000), 10)
    tracemalloc.start()
    try:
        own = divide(samples, "dirichlet", 100_000, alpha=0.3)
        highest = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert highest < 50e6
    assert own.sizes.min() >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("iid", {}),
        ("dirichlet", {"alpha": 0.3}),
        ("pathological", {"classes": 2}),
        ("shards", {}),
        ("quantity", {}),
        ("natural", {}),
        ("domain", {}),
        ("disjoint", {"classes": 2}),
        ("public", {"share": 0.1}),
    ],
)
def test_a_million_clients_are_two_arrays(name: str, options: dict[str, Any]) -> None:
    n, clients = 3_000_000, 1_000_000
    i = np.arange(n)
    samples = Samples((i * 7 + i // 10) % 10, 10, i % 4, ("a", "b", "c", "d"), i % clients)
    own = divide(samples, name, clients, **options)
    assert own.indices.nbytes == 4 * (n - len(own.server))
    assert own.pointers.nbytes == 8 * (clients + 1)
    assert own.sizes.min() >= 1
    assert np.bincount(np.concatenate([own.indices, own.server])).max() == 1
