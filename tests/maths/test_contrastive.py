"""Contrast of unit vectors: values by hand, bounds, and chunks that change nothing."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.maths.contrastive import (
    best_matches,
    info_nce,
    inter_contrast,
    intra_contrast,
    matches,
    mean_of_weighted,
    pcme,
    similarities,
    spreads,
)


def unit(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    drawn = torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return F.normalize(drawn, dim=1)


def test_inter_of_equal_logits_is_log_n() -> None:
    x = torch.zeros(7, 4)
    rows = torch.arange(7)
    assert float(inter_contrast(x, unit(50, 4, 1), rows, 0.5)) == pytest.approx(math.log(50))


def test_inter_by_hand() -> None:
    """Two public rows at right angles: -log(e^{1/tau} / (e^{1/tau} + 1))."""
    other = torch.eye(2)
    found = inter_contrast(torch.tensor([[1.0, 0.0]]), other, torch.tensor([0]), 0.5)
    assert float(found) == pytest.approx(math.log(1 + math.exp(-2)))
    wrong = inter_contrast(torch.tensor([[1.0, 0.0]]), other, torch.tensor([1]), 0.5)
    assert float(wrong) == pytest.approx(2 + math.log(1 + math.exp(-2)))


def test_inter_has_a_floor_for_unit_vectors() -> None:
    """At best one row at cosine 1 and all others at -1: log(1 + (N - 1) e^-4) with tau = 0.5."""
    other = torch.cat([torch.tensor([[1.0, 0.0]]), torch.tensor([[-1.0, 0.0]]).expand(99, 2)])
    found = inter_contrast(torch.tensor([[1.0, 0.0]]), other, torch.tensor([0]), 0.5)
    floor = math.log(1 + 99 * math.exp(-4))
    assert float(found) == pytest.approx(floor, rel=1e-5)
    assert float(inter_contrast(unit(100, 8, 0), unit(100, 8, 1), torch.arange(100), 0.5)) > floor


def test_intra_between_its_bounds() -> None:
    x = unit(20, 6, 0)
    assert float(intra_contrast(x, x, x, 0.5)) == pytest.approx(math.log(2))
    assert float(intra_contrast(x, x, -x, 0.5)) == pytest.approx(math.log(1 + math.exp(-4)))
    assert float(intra_contrast(x, -x, x, 0.5)) == pytest.approx(math.log(1 + math.exp(4)))
    assert math.log(1 + math.exp(-4)) == pytest.approx(0.0181, abs=1e-4)
    assert math.log(1 + math.exp(4)) == pytest.approx(4.0181, abs=1e-4)


def test_pcme_is_the_sum_over_couples() -> None:
    """Against the definition with e^u / (e^u + e^-u), in both directions, written out."""
    x, y = unit(5, 3, 2, torch.float64), unit(5, 3, 3, torch.float64)
    scale, shift = torch.tensor(4.0, dtype=torch.float64), torch.tensor(3.0, dtype=torch.float64)
    expected = 0.0
    for first, second in ((x, y), (y, x)):
        for a in range(5):
            for b in range(5):
                u = 3 - 4 * math.sqrt(float(((first[a] - second[b]) ** 2).sum()) + 1e-6)
                p = math.exp(u) / (math.exp(u) + math.exp(-u))
                expected += -math.log(p) if a == b else -math.log(1 - p)
    assert float(pcme(x, y, scale, shift)) == pytest.approx(expected, rel=1e-9)


def test_pcme_stays_finite_and_has_gradients() -> None:
    x = unit(6, 4, 4).requires_grad_()
    scale, shift = (torch.tensor(15.0, requires_grad=True) for _ in range(2))
    loss = pcme(x, x.detach(), scale, shift)
    found = torch.autograd.grad(loss, [x, scale, shift])
    assert all(bool(torch.isfinite(g).all()) for g in found)
    assert all(bool(g.any()) for g in found)


def test_info_nce_is_cross_entropy_both_ways() -> None:
    x, y = unit(4, 3, 5), unit(4, 3, 6)
    logits = (x @ y.T / 0.2).double()
    rows = -logits.log_softmax(1).diagonal().mean()
    columns = -logits.log_softmax(0).diagonal().mean()
    assert float(info_nce(x, y, 0.2)) == pytest.approx(float(rows + columns) / 2, rel=1e-5)


@pytest.mark.parametrize("exclude", [False, True])
@pytest.mark.parametrize("tau", [1.0, 0.1])
def test_chunks_change_nothing(exclude: bool, tau: float) -> None:
    local, other = unit(103, 16, 0), unit(103, 16, 1)
    logits = local.double() @ other.double().T / tau
    own = logits.diagonal().clone()
    first = (logits >= own.unsqueeze(1)).sum(1) == 1
    if exclude:
        logits.fill_diagonal_(-torch.inf)
    full = own - logits.logsumexp(1)
    for chunk in (1, 7, 103, 1000, None):
        scores, found = matches(local, other, tau, exclude_self=exclude, chunk=chunk)
        torch.testing.assert_close(scores.double(), full, rtol=0, atol=1e-6 / tau)
        assert found.equal(first)


def test_excluding_oneself_is_the_log_odds() -> None:
    local, other = unit(60, 8, 2, torch.float64), unit(60, 8, 3, torch.float64)
    included, _ = matches(local, other)
    excluded, _ = matches(local, other, exclude_self=True)
    p = included.exp()
    torch.testing.assert_close(excluded, (p / (1 - p)).log())


def test_a_match_is_a_strictly_nearest_row() -> None:
    other = torch.eye(3)
    assert matches(torch.eye(3), other)[1].tolist() == [True] * 3
    assert matches(torch.eye(3)[[1, 0, 2]], other)[1].tolist() == [False, False, True]
    assert matches(torch.ones(3, 3), other)[1].tolist() == [False] * 3
    assert best_matches(torch.eye(3)[[1, 0, 2]], other, chunk=2).tolist() == [1, 0, 2]


def test_spreads_are_variances_of_similarities() -> None:
    local, other = unit(30, 5, 0), unit(40, 5, 1)
    expected = (local @ other.T).var(1, unbiased=False)
    torch.testing.assert_close(spreads(local, other), expected, rtol=1e-4, atol=1e-6)


def test_the_weighted_mean_by_hand() -> None:
    one, two = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    weights = torch.tensor([[0.25, 1.0], [0.75, 0.0]])
    found = mean_of_weighted([one, two], weights)
    assert found.tolist() == [[0.25, 0.75], [0.0, 2.0]]


def test_similarities_never_hold_more_than_a_chunk() -> None:
    local, other = unit(50, 4, 0), unit(30, 4, 1)
    sizes = [tuple(similar.shape) for _, similar in similarities(local, other, 16)]
    assert sizes == [(16, 30), (16, 30), (16, 30), (2, 30)]
    whole = torch.cat([similar.clone() for _, similar in similarities(local, other, 16)])
    torch.testing.assert_close(whole, local @ other.T)
