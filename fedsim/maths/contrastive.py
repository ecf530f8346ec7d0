"""Contrastive losses over batches of unit vectors, and similarity scores over whole sets.

Rows of a matrix are vectors of length d; rows k of two matrices form a pair. No function holds an
N x N matrix for sets of N rows: comparisons run in chunks of `CHUNK_VALUES` numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_VALUES = 1 << 24
"""Similarities held in memory at once: 64 MiB in fp32."""


def pcme(x: Tensor, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Return the soft contrastive loss of B pairs, x and y (B, d), summed over all B^2 couples.

    Of a match's probability sigmoid(2 u), u = shift - scale |x_a - y_b|, from images to texts and
    back (PCME, Chun et al. 2021, arXiv:2101.05068, without its variances).
    """
    squares = (x**2).sum(1, keepdim=True) + (y**2).sum(1) - 2 * x @ y.T
    u = shift - scale * (squares.clamp_min(0) + 1e-6).sqrt()
    couples = F.softplus(2 * u)
    matches = torch.diagonal(u)
    # -log sigmoid(2u) on the diagonal, -log(1 - sigmoid(2u)) elsewhere; both directions agree.
    return 2 * (couples.sum() - torch.diagonal(couples).sum() + F.softplus(-2 * matches).sum())


def info_nce(x: Tensor, y: Tensor, temperature: Tensor | float) -> Tensor:
    """Return the symmetric cross-entropy of B pairs against all couples of the batch, a mean."""
    logits = x @ y.T / temperature
    labels = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def inter_contrast(x: Tensor, other: Tensor, rows: Tensor, tau: float) -> Tensor:
    """Return the mean of -log softmax_j(<x_k, other_j> / tau) at j = rows_k, x (B, d).

    The softmax runs over all N rows of `other` (N, d), not over the batch.
    """
    return F.cross_entropy(x @ other.T / tau, rows)


def intra_contrast(x: Tensor, positive: Tensor, negative: Tensor, tau: float) -> Tensor:
    """Return the mean of -log of p / (p + n), p = exp(<x, positive> / tau), n likewise.

    All (B, d): MOON's loss (Li et al. 2021, arXiv:2103.16257, Eq. 3).
    """
    return F.softplus(((x * negative).sum(1) - (x * positive).sum(1)) / tau).mean()


def matches(
    local: Tensor,
    other: Tensor,
    tau: float = 1.0,
    *,
    exclude_self: bool = False,
    chunk: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the match of row k of `local` with row k of `other`, both (N, d), in one pass.

    These are the scores s_k = log softmax_j(<local_k, other_j> / tau) at j = k, (N,), and whether
    no other row is as similar, bool (N,): a tie is no match, so equal rows match nothing. With
    `exclude_self` the denominator leaves out j = k, which needs two rows. `chunk` rows are compared
    at a time.
    """
    scores = torch.empty(len(local), dtype=local.dtype, device=local.device)
    first = torch.empty(len(local), dtype=torch.bool, device=local.device)
    for rows, similar in similarities(local, other, chunk):
        diagonal = similar.diagonal(rows.start).clone()
        similar.diagonal(rows.start).fill_(-torch.inf)
        nearest = similar.amax(1)
        first[rows] = diagonal > nearest
        highest = nearest if exclude_self else torch.maximum(nearest, diagonal)
        total = similar.sub_(highest.unsqueeze(1)).div_(tau).exp_().sum(1)
        if not exclude_self:
            total += ((diagonal - highest) / tau).exp_()
        scores[rows] = (diagonal - highest) / tau - total.log_()
    return scores, first


def spreads(local: Tensor, other: Tensor) -> Tensor:
    """Return the variance over j of <local_k, other_j>, (N,), from the covariance of `other`."""
    centred = other - other.mean(0)
    covariance = centred.T @ centred / len(other)
    return ((local @ covariance) * local).sum(1)


def mean_of_weighted(local: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Return sum_c weights_{c,k} local_{c,k} of C matrices (N, d) and weights (C, N)."""
    total = torch.zeros_like(local[0])
    for matrix, weight in zip(local, weights, strict=True):
        total.addcmul_(matrix, weight.unsqueeze(1))
    return total


def best_matches(local: Tensor, other: Tensor, *, chunk: int | None = None) -> Tensor:
    """Return the row of `other` most similar to each row of `local`, int64 (N,)."""
    best = torch.empty(len(local), dtype=torch.int64, device=local.device)
    for rows, similar in similarities(local, other, chunk):
        best[rows] = similar.argmax(1)
    return best


def similarities(
    local: Tensor, other: Tensor, chunk: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Yield chunks of rows of local @ other.T, all in one memory, which the caller may change."""
    size = chunk or max(1, CHUNK_VALUES // max(1, len(other)))
    memory = torch.empty(
        (min(size, len(local)), len(other)), dtype=local.dtype, device=local.device
    )
    for start in range(0, len(local), size):
        rows = slice(start, min(start + size, len(local)))
        similar = memory[: rows.stop - rows.start]
        torch.mm(local[rows], other.T, out=similar)
        yield rows, similar
