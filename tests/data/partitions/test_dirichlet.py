from typing import Any

import numpy as np
import pytest

from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import fill_up
from fedsim.data.partitions.dirichlet import _shares, dirichlet
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import class_counts, divide, samples_of


def draw(labels: np.ndarray, clients: int, seed: int = 0, **options: Any) -> Assignment:
    return dirichlet(samples_of(labels), clients, numpy_generator(seed, "partition"), **options)


@pytest.mark.parametrize("alpha", [1e-9, 0.05, 1.0, 1e9])
@pytest.mark.parametrize("clients", [1, 7, 300])
def test_every_sample_exactly_once(alpha: float, clients: int) -> None:
    labels = np.random.default_rng(0).choice([0, 1, 4], 300)
    own = draw(labels, clients, alpha=alpha)
    assert sorted(own.indices.tolist()) == list(range(300))
    assert own.num_clients == clients
    assert own.sizes.min() >= 1


def test_class_proportions_have_the_moments_of_the_dirichlet() -> None:
    # p_k of Dir(0.5, 0.5, 0.5, 0.5): mean 1/4, variance (1/4)(3/4)/(4 * 0.5 + 1) = 1/16,
    # covariance of two clients -(1/16)/3 = -1/48. 400 classes of 500 samples: 400 draws.
    labels = np.repeat(np.arange(400), 500)
    own = draw(labels, 4, alpha=0.5)
    owner = np.repeat(np.arange(4), own.sizes)
    counts = np.zeros((400, 4))
    np.add.at(counts, (labels[own.indices], owner), 1)
    assert counts.sum(axis=1).tolist() == [500] * 400
    p = counts / 500
    np.testing.assert_allclose(p.mean(axis=0), 0.25, atol=4 * 0.25 / 20)
    covariance = np.cov(p.T)
    np.testing.assert_allclose(np.diag(covariance), 1 / 16, atol=0.015)
    np.testing.assert_allclose(covariance[~np.eye(4, dtype=bool)], -1 / 48, atol=0.012)


def test_large_alpha_gives_equal_parts_and_small_alpha_one_owner() -> None:
    labels = np.repeat(np.arange(3), 100)
    for alpha, expected in ((1e12, [[25] * 4] * 3), (1e-9, [[0, 0, 0, 100]] * 3)):
        own = draw(labels, 4, alpha=alpha, min_size=0)
        owner = np.repeat(np.arange(4), own.sizes)
        counts = [
            sorted(np.bincount(owner[labels[own.indices] == c], minlength=4).tolist())
            for c in range(3)
        ]
        for found, wanted in zip(counts, expected, strict=True):
            np.testing.assert_allclose(found, wanted, atol=1)


def test_shares_are_rounded_without_bias() -> None:
    p = np.array([0.05, 0.15, 0.5, 0.3])
    rng = numpy_generator(0, "shares")
    shares = np.array([_shares(3, p, rng) for _ in range(4000)])
    assert np.all(shares.sum(axis=1) == 3)
    assert np.abs(shares - 3 * p).max() < 1
    # The deviation of a mean of 4,000 shares is at most 0.5 / sqrt(4000) = 0.008.
    np.testing.assert_allclose(shares.mean(axis=0), 3 * p, atol=4 * 0.008)


def test_low_and_high_clients_are_treated_alike() -> None:
    # 20 samples of one class over 100 clients: 0.2 each in the mean, over 600 draws.
    sizes = np.mean(
        [draw(np.zeros(20, np.int64), 100, s, alpha=1.0, min_size=0).sizes for s in range(600)],
        axis=0,
    )
    # One client's variance of a size is below 0.28: 100 clients and 600 draws allow 0.09.
    assert np.abs(sizes - 0.2).max() < 0.09


@pytest.mark.parametrize(
    ("sizes", "min_size", "expected"),
    [
        ([10, 6, 1, 0], 1, [9, 6, 1, 1]),  # the largest gives one
        ([10, 6, 1, 0], 3, [5, 6, 3, 3]),  # 5 missing: cut to 6, then the first of two gives one
        ([10, 6, 1, 0], 4, [4, 5, 4, 4]),  # 7 missing: cut to 5, then the first of two gives one
        ([4, 4, 4, 0], 2, [3, 3, 4, 2]),  # equals: the lowest clients give
        ([0, 0, 9], 3, [3, 3, 3]),  # everything that can be given
        ([3, 2], 2, [3, 2]),
    ],
)
def test_min_size_takes_from_the_largest(
    sizes: list[int], min_size: int, expected: list[int]
) -> None:
    before = np.repeat(np.arange(len(sizes)), sizes)
    after = before.copy()
    fill_up(after, len(sizes), min_size, numpy_generator(0, "fill"))
    counts = np.bincount(after, minlength=len(sizes)).tolist()
    assert counts == expected
    receivers = [k for k, size in enumerate(sizes) if size < min_size]
    changed = np.flatnonzero(before != after)
    assert set(after[changed].tolist()) <= set(receivers)


def test_given_samples_are_random_ones() -> None:
    # Client 0 owns 0..99 and gives 50 to client 1: their mean is 49.5, deviation 2.06.
    owners = np.zeros(100, np.int64)
    fill_up(owners, 2, 50, numpy_generator(0, "fill"))
    given = np.flatnonzero(owners == 1)
    assert len(given) == 50
    assert abs(given.mean() - 49.5) < 4 * 2.06


def test_min_size_at_the_limit_of_the_samples() -> None:
    own = draw(np.random.default_rng(0).integers(0, 10, 1000), 100, alpha=0.05, min_size=10)
    assert own.sizes.tolist() == [10] * 100
    assert sorted(own.indices.tolist()) == list(range(1000))


def test_order_within_a_client_mixes_classes() -> None:
    # With one client every position holds each of the 2 classes alike; sorted, it would not.
    labels = np.repeat([0, 1], 500)
    first_half = labels[draw(labels, 1, alpha=1.0).indices][:500].sum()
    assert abs(first_half - 250) < 4 * 7.9  # hypergeometric deviation 7.9


def test_same_seed_same_parts() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 500)
    first, second, other = (
        (own.indices.tolist(), own.pointers.tolist())
        for own in (draw(labels, 20, seed, alpha=0.3) for seed in (0, 0, 1))
    )
    assert first == second != other


def test_memory_of_100_000_clients() -> None:
    own = draw(np.random.default_rng(0).integers(0, 10, 300_000), 100_000, alpha=0.3)
    assert own.indices.nbytes + own.pointers.nbytes == 300_000 * 4 + 100_001 * 8
    assert own.sizes.min() >= 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alpha": 0}, r"partition\.alpha must be > 0 and finite, got 0"),
        ({"alpha": float("nan")}, r"partition\.alpha must be > 0 and finite, got nan"),
        ({"alpha": float("inf")}, r"partition\.alpha must be > 0 and finite, got inf"),
        ({"min_size": -1}, r"partition\.min_size must be >= 0, got -1"),
        (
            {"min_size": 4},
            r"min_size x partition\.clients must be <= 10, the number of samples, got '4 x 3 = 12'",
        ),
    ],
)
def test_bad_options(options: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        draw(np.zeros(10, np.int64), 3, **({"alpha": 1.0} | options))


def test_no_clients() -> None:
    with pytest.raises(InputError, match=r"partition\.clients must be >= 1, got 0"):
        draw(np.zeros(10, np.int64), 0, alpha=1.0)


def test_multinomial_draws_every_sample_on_its_own() -> None:
    # p = (1/2, 1/2): 5 samples of a class are 2 + 3 by proportion, Binomial(5, 1/2) by draws, with
    # a mean of 2.5 and a variance of 1.25. 4,000 classes: deviations 0.018 and about 0.025.
    samples = samples_of(np.repeat(np.arange(4000), 5))
    for variant, variance in (("class", 0.25), ("multinomial", 1.25)):
        own = divide(samples, "dirichlet", 2, alpha=1e15, variant=variant)
        first = class_counts(own, samples)[0]
        assert abs(first.mean() - 2.5) < 4 * 0.018
        assert abs(first.var() - variance) < 4 * 0.025


def test_multinomial_has_the_moments_of_the_dirichlet() -> None:
    # Dir(1, 1, 1): p is Beta(1, 2) with mean 1/3 and variance 1/18. Of 60 samples the count has
    # the mean 20 and the variance 60 E p(1 - p) + 60^2 / 18 = 60 (1/3 - 1/6) + 200 = 210.
    samples = samples_of(np.repeat(np.arange(2000), 60))
    own = divide(samples, "dirichlet", 3, alpha=1.0, variant="multinomial")
    counts = class_counts(own, samples)
    np.testing.assert_allclose(counts.mean(axis=1), 20, atol=4 * np.sqrt(210 / 2000))
    np.testing.assert_allclose(counts.var(axis=1), 210, rtol=0.1)


def test_balanced_clients_have_equal_sizes() -> None:
    samples = samples_of(np.repeat(np.arange(4), [500, 300, 150, 53]))
    for alpha in (1e-6, 0.1, 1e6):
        own = divide(samples, "dirichlet", 10, alpha=alpha, variant="balanced")
        assert sorted(own.sizes.tolist()) == [100] * 7 + [101] * 3


def test_balanced_mixes_have_the_moments_of_the_dirichlet() -> None:
    # Shares of Dir(1, 1, 1, 1) have the variance (1/4)(3/4)/5 = .0375, and E q(1 - q) = .15; 100
    # draws add .15 / 100. That a class may be used up takes little from it: clients are many.
    samples = samples_of(np.arange(200_000) % 4)
    own = divide(samples, "dirichlet", 2000, alpha=1.0, variant="balanced")
    q = class_counts(own, samples) / 100
    np.testing.assert_allclose(q.mean(axis=0), 0.25, atol=1e-12)  # every sample is somebody's
    np.testing.assert_allclose(q.var(axis=0), 0.039, rtol=0.08)


def test_balanced_mixes_follow_the_long_tail() -> None:
    # alpha large: every client has the shares of the whole set, .8 and .2, of 50 draws.
    samples = samples_of(np.repeat([0, 1], [8000, 2000]))
    own = divide(samples, "dirichlet", 200, alpha=1e9, variant="balanced")
    ones = class_counts(own, samples)[:, 1]
    assert ones.mean() == 10
    assert ones.var() < 1.6 * 50 * 0.2 * 0.8


def test_balanced_with_a_tiny_alpha_is_one_class_a_client() -> None:
    samples = samples_of(np.arange(1000) % 5)
    own = divide(samples, "dirichlet", 50, alpha=1e-9, variant="balanced")
    # 20 samples a client of 200 a class: a class used up stops short within one client at most.
    assert (class_counts(own, samples).max(axis=1) == 20).sum() >= 40


def test_the_largest_alpha_is_equal_parts() -> None:
    own = draw(np.zeros(12, np.int64), 4, alpha=1.7e308)
    assert own.sizes.tolist() == [3, 3, 3, 3]


def test_unknown_variant() -> None:
    with pytest.raises(InputError, match=r"partition\.variant must be 'class' or 'balanced' or "):
        divide(samples_of([0, 1]), "dirichlet", 2, alpha=1.0, variant="even")
