"""Fixed classifiers with maximally separated rows: simplex ETFs, dense and sparse.

    dense   M = sqrt(C / (C - 1)) (I - 1 1^T / C) P^T,  P (d, C) with orthonormal columns
    sparse  zeros at random entries of M, then a minimum over the other entries of
            sum_c (|s_c| - gamma)^2 - (1 / C) sum_c arccos max_{j != c} cos(s_c, s_j)

The rows of M have norm 1 and pairwise cosines -1 / (C - 1), the smallest that C rows can share.
The sparse frame is the static sparse ETF of FedLoGe (Xiao et al. 2024, arXiv:2401.08977): rows of
norm gamma with the largest smallest angles that its entries allow.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from functools import lru_cache

import torch
from torch import Tensor

from fedsim import rng
from fedsim.errors import InputError, check

STEPS = 2_000
"""Steps after rescaling: angles as even as after `PAPER_STEPS` without it, or more so."""

PAPER_STEPS, PAPER_LR = 10_000, 1e-4
"""Schedule of the authors' code, from the masked rows as they are."""

_CLIP = 1 - 1e-5  # bound on a cosine, where the derivative of arccos is still finite


def check_etf(num_classes: int, dim: int, beta: float, gamma: float) -> None:
    """Raise `InputError` if no such frame of `num_classes` rows of length `dim` exists."""
    check(0 <= beta < 1, "beta must be in [0, 1)", beta)
    check(0 < gamma < math.inf, "gamma must be > 0 and finite", gamma)
    check(num_classes >= 2, "an ETF classifier needs at least 2 classes", num_classes)
    if dim < num_classes:
        raise InputError(
            f"an ETF classifier of {num_classes} classes needs at least {num_classes} features, "
            f"the model's body has {dim}"
        )


def simplex_etf(num_classes: int, dim: int, generator: torch.Generator) -> Tensor:
    """Return a random simplex ETF, fp64 (C, d): rows of norm 1 that sum to 0.

    Raises:
        InputError: fewer features than classes, or fewer than 2 classes.
    """
    check_etf(num_classes, dim, 0.0, 1.0)
    gaussian = torch.randn(dim, num_classes, dtype=torch.float64, generator=generator)
    p, _ = torch.linalg.qr(gaussian)
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    return math.sqrt(num_classes / (num_classes - 1)) * centred @ p.T


def num_zeros(num_classes: int, dim: int, beta: float) -> int:
    """Return floor(beta d C), with `beta` as the decimal fraction of its shortest digits."""
    return int(Decimal(str(beta)) * dim * num_classes)


def keep_mask(num_classes: int, dim: int, beta: float, generator: torch.Generator) -> Tensor:
    """Return the entries to keep, bool (C, d): all but floor(beta d C) random ones.

    Raises:
        InputError: a row keeps fewer than 2 entries, so that it has no direction of its own.
    """
    mask = torch.ones(num_classes * dim, dtype=torch.bool)
    order = torch.randperm(num_classes * dim, generator=generator)
    mask[order[: num_zeros(num_classes, dim, beta)]] = False
    mask = mask.view(num_classes, dim)
    if int(mask.sum(1).min()) < 2:
        raise InputError(
            f"beta must leave at least 2 entries in each row, got {beta!r} for {num_classes} "
            f"classes and {dim} features"
        )
    return mask


def etf_loss(rows: Tensor, gamma: float) -> Tensor:
    """Return the objective that a sparse ETF minimises, of rows (C, d)."""
    norms = torch.linalg.vector_norm(rows, dim=1)
    cosines = (rows / norms[:, None]) @ (rows / norms[:, None]).T
    cosines = cosines.masked_fill(torch.eye(len(rows), dtype=torch.bool), -2.0)
    nearest = cosines.max(1).values.clamp(-_CLIP, _CLIP)
    return ((norms - gamma) ** 2).sum() - nearest.arccos().mean()


def etf_gradient(rows: Tensor, gamma: float) -> Tensor:
    """Return the gradient of `etf_loss`, (C, d); of equally near rows it takes the first.

    Written out it needs one matrix product, with automatic differentiation three.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    unit = rows / norms
    cosines = unit @ unit.T
    cosines.fill_diagonal_(-2.0)
    nearest, other = cosines.max(1)
    # d(-arccos(m) / C) / dm; the clip's derivative is 0 outside.
    slope = (1 - nearest**2).clamp(min=1 - _CLIP**2).rsqrt() / len(rows)
    slope = torch.where(nearest.abs() <= _CLIP, slope, 0.0)[:, None]
    pull = slope * unit[other]
    pull.index_add_(0, other, slope * unit)
    tangent = pull - (pull * unit).sum(1, keepdim=True) * unit
    return tangent / norms + 2 * (norms - gamma) * unit


def spread(
    rows: Tensor, mask: Tensor, gamma: float, steps: int, lr: float, decay: bool = False
) -> Tensor:
    """Return rows (C, d) after `steps` of Adam on `etf_loss`; entries outside `mask` stay as is.

    With `decay` the rate falls to 0 along a cosine, which ends the jitter of the maximum.
    """
    rows = rows.clone()
    first, second = torch.zeros_like(rows), torch.zeros_like(rows)
    for step in range(1, steps + 1):
        gradient = etf_gradient(rows, gamma) * mask
        first.lerp_(gradient, 0.1)
        second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        rate = lr * (1 + math.cos(math.pi * step / steps)) / 2 if decay else lr
        scale = (second / (1 - 0.999**step)).sqrt_().add_(1e-8)
        rows.addcdiv_(first, scale, value=-rate / (1 - 0.9**step))
    return rows


@lru_cache(maxsize=8)
def sparse_etf(
    num_classes: int,
    dim: int,
    *,
    beta: float,
    gamma: float,
    seed: int,
    paper_schedule: bool = False,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Tensor:
    """Return a fixed classifier, fp32 (C, d), read-only.

    floor(`beta` d C) entries are 0, the rows have norm `gamma`. The arguments determine it, so a
    server and its clients need not send it. With `beta` 0 it is the dense frame itself, which is
    optimal. Otherwise rows are scaled to norm gamma, spread for 2,000 steps and scaled again, or
    with `paper_schedule` spread without scaling for 10,000 steps.

    Raises:
        InputError: a number out of range, or fewer features than classes.
    """
    check_etf(num_classes, dim, beta, gamma)
    generator = rng.torch_generator(seed, "etf")
    with _one_thread():
        rows = simplex_etf(num_classes, dim, generator)
        if beta == 0:
            return (gamma * rows).float().to(device)
        mask = keep_mask(num_classes, dim, beta, generator)
        rows = (rows * mask).float()
        if paper_schedule:
            return spread(rows, mask, gamma, PAPER_STEPS, PAPER_LR).to(device)
        rows = spread(_at_norm(rows, gamma), mask, gamma, STEPS, 1e-3 * gamma, decay=True)
        return _at_norm(rows, gamma).to(device)  # angles do not depend on norms


def _at_norm(rows: Tensor, gamma: float) -> Tensor:
    return rows * (gamma / torch.linalg.vector_norm(rows, dim=1, keepdim=True))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread: the number of threads changes sums, and with them the frame."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
