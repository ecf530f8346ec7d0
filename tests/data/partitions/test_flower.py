"""The adapter of Flower Datasets, and our Dirichlet against theirs."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from scipy import stats

from fedsim.errors import InputError
from tests.support.partitions import class_counts, divide, fingerprint, samples_of

pytest.importorskip("flwr_datasets")

SAMPLES = samples_of(
    np.arange(60) % 3, domains=np.arange(60) % 2, owners=np.repeat(np.arange(4), [5, 15, 20, 20])
)


@pytest.mark.parametrize(
    ("partitioner", "options"),
    [
        ("IidPartitioner", {}),
        ("DirichletPartitioner", {"alpha": 0.5, "min_partition_size": 1}),
        ("PathologicalPartitioner", {"num_classes_per_partition": 3}),
        ("LinearPartitioner", {}),
        ("NaturalIdPartitioner", {"partition_by": "owner"}),
        ("flwr_datasets.partitioner:ExponentialPartitioner", {}),
        ("SizePartitioner", {"partition_sizes": [10, 20, 29, 1]}),
    ],
)
def test_partitioners_of_flower_divide_all_samples(
    partitioner: str, options: dict[str, Any]
) -> None:
    own = divide(SAMPLES, "flower", 4, partitioner=partitioner, options=options)
    assert sorted(own.indices.tolist()) == list(range(60))
    again = divide(SAMPLES, "flower", 4, partitioner=partitioner, options=options)
    other = divide(SAMPLES, "flower", 4, seed=1, partitioner=partitioner, options=options)
    assert fingerprint(own) == fingerprint(again) != fingerprint(other)


def test_sizes_and_owners_are_what_the_partitioner_says() -> None:
    own = divide(SAMPLES, "flower", 3, partitioner="LinearPartitioner")
    assert own.sizes.tolist() == [10, 20, 30]
    own = divide(
        SAMPLES, "flower", 4, partitioner="NaturalIdPartitioner", options={"partition_by": "owner"}
    )
    assert SAMPLES.owners is not None
    for client in range(4):
        assert len(set(SAMPLES.owners[own.indices[own.owners == client]].tolist())) == 1


@pytest.mark.parametrize(
    ("clients", "partitioner", "options", "message"),
    [
        (4, "DirichletPartitione", {}, r"must be one of .* Did you mean 'DirichletPartitioner'"),
        (4, "no.such:Thing", {}, r"partition\.partitioner is 'no\.such:Thing'"),
        (4, "os:getcwd", {}, r"must be a Partitioner of Flower Datasets, got 'os:getcwd'"),
        (
            4,
            "IidPartitioner",
            {"alpha": 1},
            r"partition\.options must be among num_partitions, got",
        ),
        (4, "DirichletPartitioner", {}, r"failed with partition\.options \{\}: TypeError: .*alpha"),
        (
            4,
            "DirichletPartitioner",
            {"alpha": -1.0},
            r"ValueError: Alpha values should be strictly",
        ),
        (61, "DirichletPartitioner", {"alpha": 1.0}, r"partition\.clients must be <= 60"),
        (
            3,
            "NaturalIdPartitioner",
            {"partition_by": "owner"},
            r"partition\.clients must be 4, what NaturalIdPartitioner makes, got 3",
        ),
        (2, "VerticalEvenPartitioner", {}, r"must divide samples, not columns"),
        (2, "SizePartitioner", {"partition_sizes": [1]}, r"partition\.clients must be 1, what"),
    ],
)
def test_what_does_not_fit_is_told(
    clients: int, partitioner: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        divide(SAMPLES, "flower", clients, partitioner=partitioner, options=options)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(InputError, match=r"needs the package flwr-datasets: .*'fedsim\[flower\]'"):
        divide(SAMPLES, "flower", 4, partitioner="IidPartitioner")


@pytest.mark.parametrize("alpha", [0.1, 0.5, 5.0])
def test_our_dirichlet_is_distributed_as_that_of_flower(alpha: float) -> None:
    # One client's share of each of 300 classes: independent draws of Beta(alpha, 3 alpha).
    samples = samples_of(np.repeat(np.arange(300), 40))
    options = {"alpha": alpha, "min_partition_size": 0}
    theirs = divide(samples, "flower", 4, partitioner="DirichletPartitioner", options=options)
    for variant in ("class", "multinomial"):
        ours = divide(samples, "dirichlet", 4, alpha=alpha, min_size=0, variant=variant)
        shares = [class_counts(own, samples)[2] / 40 for own in (ours, theirs)]
        assert stats.ks_2samp(*shares).pvalue > 0.01
        # The deviation of a mean share: sqrt(3/16 / (4 alpha + 1) / 300).
        sizes = np.array([own.sizes for own in (ours, theirs)]) / 12_000
        np.testing.assert_allclose(sizes, 0.25, atol=4 * np.sqrt(0.1875 / (4 * alpha + 1) / 300))


def test_our_dirichlet_is_the_beta_distribution() -> None:
    # A client's share of a class is Beta(0.5, 1.5); 2,000 samples a class make it nearly smooth.
    samples = samples_of(np.repeat(np.arange(400), 2000))
    own = divide(samples, "dirichlet", 4, alpha=0.5)
    shares = class_counts(own, samples)[0] / 2000
    smooth = shares + (np.random.default_rng(0).random(400) - 0.5) / 2000
    assert stats.kstest(np.clip(smooth, 0, 1), stats.beta(0.5, 1.5).cdf).pvalue > 0.01
