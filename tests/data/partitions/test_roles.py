"""Partitions that give clients roles or the server samples: modality, public, server-labelled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fedsim.errors import InputError
from tests.support.partitions import class_counts, divide, samples_of

SAMPLES = samples_of(np.arange(60) % 3, domains=np.repeat([0, 1, 2], [10, 20, 30]))


def test_modalities_are_numbered_images_texts_pairs() -> None:
    own = divide(SAMPLES, "modality", 6, images=2, texts=3, pairs=1)
    assert own.modality.tolist() == [1, 1, 2, 2, 2, 0]
    assert own.sizes.tolist() == [10] * 6
    assert len(own.labelled) == 0


def test_modality_on_top_of_another_partition() -> None:
    own = divide(
        SAMPLES, "modality", 3, images=2, pairs=1, within={"name": "disjoint", "classes": 1}
    )
    assert ((class_counts(own, SAMPLES) > 0).sum(axis=1) == 1).all()
    assert own.modality.tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({}, r"images \+ texts \+ pairs must be 4, the number of clients, got '0 \+ 0 \+ 0 = 0'"),
        ({"images": 5}, r"must be 4, the number of clients, got '5 \+ 0 \+ 0 = 5'"),
        ({"images": 5, "texts": -1}, r"partition\.texts must be >= 0, got -1"),
    ],
)
def test_numbers_that_do_not_fit(numbers: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(SAMPLES, "modality", 4, **numbers)


@pytest.mark.parametrize(
    ("options", "size"), [({"size": 7}, 7), ({"share": 0.25}, 15), ({"share": 0.001}, 1)]
)
def test_the_public_set_is_random_and_the_rest_is_divided(
    options: dict[str, Any], size: int
) -> None:
    own = divide(SAMPLES, "public", 4, **options)
    assert len(own.server) == size
    assert own.public_rows.tolist() == own.server.tolist()
    assert len(own.labelled) == 0
    together = np.concatenate([own.server, own.indices])
    assert sorted(together.tolist()) == list(range(60))
    assert own.sizes.max() - own.sizes.min() <= 1


def test_every_sample_is_equally_likely_to_be_public() -> None:
    # 15 of 60 over 300 seeds: 75 each, deviation sqrt(300 / 4 * 3 / 4) = 7.5.
    picked = np.concatenate([divide(SAMPLES, "public", 2, s, size=15).server for s in range(300)])
    assert np.abs(np.bincount(picked, minlength=60) - 75).max() < 4 * 7.5


def test_a_public_set_below_clients_of_three_modalities() -> None:
    inner = {"name": "modality", "images": 1, "texts": 1, "pairs": 1, "within": {"name": "domain"}}
    own = divide(SAMPLES, "public", 3, size=6, within=inner)
    assert own.modality.tolist() == [1, 2, 0]
    assert SAMPLES.domains is not None
    for client in range(3):
        assert set(SAMPLES.domains[own.indices[own.owners == client]].tolist()) == {client}
    assert sorted([*own.server.tolist(), *own.indices.tolist()]) == list(range(60))


def test_labels_at_the_server_only() -> None:
    own = divide(SAMPLES, "server-labelled", 4, server_share=0.2)
    assert len(own.server) == 12
    assert own.labelled.tolist() == [0, 0, 0, 0]
    assert own.sizes.tolist() == [12] * 4


def test_one_domain_at_the_server_and_the_others_at_clients() -> None:
    own = divide(SAMPLES, "server-labelled", 2, server_domain="b", within={"name": "domain"})
    assert sorted(own.server.tolist()) == list(range(10, 30))
    assert sorted(own.indices[:10].tolist()) == list(range(10))
    assert sorted(own.indices[10:].tolist()) == list(range(30, 60))
    assert own.labelled.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("public", {}, r"partition\.size or partition\.share .* got size None and share None"),
        ("public", {"size": 3, "share": 0.5}, r"got size 3 and share 0\.5"),
        ("public", {"size": 60}, r"partition\.size must be in 1\.\.59, .* got 60"),
        ("public", {"size": 0}, r"partition\.size must be in 1\.\.59, .* got 0"),
        ("public", {"share": 1.0}, r"partition\.share must be in \(0, 1\), got 1\.0"),
        (
            "public",
            {"size": 50},
            r"partition\.clients must be <= 10, the number of samples, got 12",
        ),
        ("server-labelled", {}, r"server_share or .* got server_share None and server_domain None"),
        ("server-labelled", {"server_share": 0.0}, r"server_share must be in \(0, 1\), got 0\.0"),
        (
            "server-labelled",
            {"server_domain": "B"},
            r"server_domain must be one of a, b, c, got 'B'",
        ),
        (
            "server-labelled",
            {"server_share": 0.5, "within": {"name": "public", "size": 3}},
            r"partition\.within\.name 'public' gives samples to the server too",
        ),
    ],
)
def test_impossible_servers(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        divide(SAMPLES, name, 12, **options)


def test_server_domain_without_domains_or_with_all_samples() -> None:
    with pytest.raises(InputError, match=r"partition\.server_domain needs a data set with domains"):
        divide(samples_of([0, 1]), "server-labelled", 1, server_domain="a")
    one = samples_of([0, 1], domains=[0, 0])
    with pytest.raises(InputError, match=r"some of the 2 samples and leave some, got \"'a' with 2"):
        divide(one, "server-labelled", 1, server_domain="a")
