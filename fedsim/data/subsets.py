"""Subsets of a training split: long tails of class sizes, and random shares.

A long tail keeps n_c samples of the classes c = 0..C-1 in the order of their numbers, so that class
0 is the largest:

    exponential   n_c = floor(n_max IF^(-c / (C - 1)))       Cao et al. 2019, arXiv:1906.07413
    pareto        n_c = floor(n_max (c + 1)^(-ln IF / ln C))  a rank-size power law (Zipf)
    step          n_c = n_max, and floor(n_max / IF) for the last classes
                                                          Buda et al. 2018, arXiv:1710.05381

IF is the imbalance, the size of the largest class over that of the smallest. The pareto tail has
both ends in common with the exponential one, and falls faster in between.
"""

from __future__ import annotations

from bisect import bisect_left
from decimal import ROUND_FLOOR, Decimal, localcontext
from typing import Literal, get_args

import numpy as np

from fedsim.errors import InputError, check

Profile = Literal["exponential", "pareto", "step"]

# Sizes are computed to 50 digits, and anything closer than this below a whole number counts as that
# number: n_max / IF by way of logarithms would be 99.999... for 5000 / 50 in double precision.
_DIGITS, _CLOSE = 50, Decimal("1e-30")


def class_sizes(
    num_classes: int,
    largest: int,
    imbalance: float,
    profile: Profile = "exponential",
    step_share: float = 0.5,
) -> np.ndarray:
    """Return the exact class sizes of a long tail, int64 (C,), at least 1 and never rising.

    `largest` is n_max, `imbalance` IF. With `step`, the last floor(`step_share` * C) classes are
    the small ones.

    Raises:
        InputError: a value out of range, or an unknown profile.
    """
    check(num_classes >= 1, "a long tail needs at least 1 class", num_classes)
    check(largest >= 1, "dataset.largest must be >= 1", largest)
    check(1 <= imbalance < np.inf, "dataset.imbalance must be >= 1 and finite", imbalance)
    profiles = get_args(Profile)
    check(profile in profiles, f"dataset.profile must be one of {', '.join(profiles)}", profile)
    check(0 <= step_share <= 1, "step_share must be in [0, 1]", step_share)
    with localcontext() as context:
        context.prec = _DIGITS
        # From the digits as written: 0.3 is three tenths, not its nearest binary fraction.
        factor, share = Decimal(str(imbalance)), Decimal(str(step_share))
        log_factor = factor.ln()
        sizes = []
        for c in range(num_classes):
            if c == 0 or profile == "step":
                small = c > 0 and c >= num_classes - int(share * num_classes)
                exact = largest / factor if small else Decimal(largest)
            elif profile == "exponential":
                exact = largest * (-log_factor * c / (num_classes - 1)).exp()
            else:
                power = Decimal(c + 1).ln() / Decimal(num_classes).ln()
                exact = largest * (-log_factor * power).exp()
            sizes.append(max(1, int((exact + _CLOSE).to_integral_value(ROUND_FLOOR))))
    return np.array(sizes, np.int64)


def long_tail_rows(
    labels: np.ndarray,
    num_classes: int,
    imbalance: float,
    profile: Profile,
    rng: np.random.Generator,
    largest: int | None = None,
    step_share: float = 0.5,
) -> np.ndarray:
    """Return the rows of a long tail, int64, ascending: random samples of each class.

    `labels` are int64 (n,) in 0..C-1; samples of class -1 (none) are left out. `largest` is n_max,
    by default the mean class size floor(n / C), or the largest below it for which every class has
    enough samples.

    Raises:
        InputError: a value out of range; a class with fewer samples than its size.
    """
    labels = np.asarray(labels)
    counts = np.bincount(labels + 1, minlength=num_classes + 1)[1:]
    check(len(counts) == num_classes, f"labels must be in 0..{num_classes - 1}", len(counts) - 1)

    def sizes_of(most: int) -> np.ndarray:
        return class_sizes(num_classes, most, imbalance, profile, step_share)

    def feasible(most: int) -> int:
        """Return the largest n_max up to `most` whose tail the classes can fill; 0 if none is."""
        lacks = range(1, most + 1)  # sizes rise with n_max
        return bisect_left(lacks, True, key=lambda n: bool((sizes_of(n) > counts).any()))

    if largest is None:
        largest = int(counts.sum()) // num_classes
        check(largest >= 1, "a long tail needs at least 1 sample a class, the mean is", largest)
        largest = feasible(largest) or largest
    sizes = sizes_of(largest)
    if (sizes > counts).any():
        worst = int(np.argmax(sizes - counts))
        lacking = f"class {worst} has {counts[worst]} samples, the tail needs {sizes[worst]}"
        tail, most = f"{profile} tail of imbalance {imbalance:g}", feasible(largest)
        if most == 0:
            raise InputError(f"no {tail} fits the data: {lacking}")
        raise InputError(
            f"dataset.largest must be <= {most} for the {tail}, got {largest}: {lacking}"
        )
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    # Within a class the order is random, so its first samples are random ones.
    first = np.cumsum(counts) - counts + (len(labels) - counts.sum())
    rank = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.sort(order[np.repeat(first, sizes) + rank]).astype(np.int64)


def share_rows(
    n: int, domains: np.ndarray | None, share: float, rng: np.random.Generator
) -> np.ndarray:
    """Return a random `share` in (0, 1] of the rows 0..n-1, int64, ascending.

    With domains int64 (n,), it is taken of each one, so that none disappears: round(share * size)
    rows, halves rounded up, at least 1.
    """
    order = rng.permutation(n)
    groups = np.zeros(n, np.int64) if domains is None else np.asarray(domains)[order]
    pieces = []
    for group in np.unique(groups):
        members = order[groups == group]
        pieces.append(members[: max(1, int(share * len(members) + 0.5 + 1e-9))])
    return np.sort(np.concatenate(pieces))
