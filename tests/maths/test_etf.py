"""The fixed classifiers: frames, zeros, and how far their rows are apart."""

import math

import pytest
import torch
from torch import Tensor

from fedsim import rng
from fedsim.errors import InputError
from fedsim.maths.etf import (
    etf_gradient,
    etf_loss,
    keep_mask,
    num_zeros,
    simplex_etf,
    sparse_etf,
    spread,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def angles(rows: Tensor) -> Tensor:
    """Return the angles between all pairs of rows, in degrees."""
    unit = torch.nn.functional.normalize(rows.double(), dim=1)
    off = ~torch.eye(len(rows), dtype=torch.bool)
    return torch.rad2deg(torch.arccos((unit @ unit.T)[off].clamp(-1, 1)))


def masked(classes: int, dim: int, beta: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return the rows before they are spread and their mask, drawn as `sparse_etf` draws."""
    draws = rng.torch_generator(seed, "etf")
    rows = simplex_etf(classes, dim, draws)
    mask = keep_mask(classes, dim, beta, draws)
    return rows * mask, mask


@pytest.mark.parametrize(("classes", "dim"), [(2, 2), (10, 10), (10, 64), (100, 512)])
def test_a_dense_frame_is_a_simplex(classes: int, dim: int) -> None:
    m = simplex_etf(classes, dim, generator())
    gram = classes / (classes - 1) * (torch.eye(classes) - torch.ones(classes, classes) / classes)
    torch.testing.assert_close(m @ m.T, gram.double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(m.norm(dim=1), torch.ones(classes).double(), rtol=0, atol=1e-9)
    torch.testing.assert_close(m.sum(0), torch.zeros(dim).double(), rtol=0, atol=1e-9)
    ideal = math.degrees(math.acos(-1 / (classes - 1)))
    torch.testing.assert_close(
        angles(m), torch.full((classes * (classes - 1),), ideal).double(), rtol=0, atol=1e-4
    )


def test_two_classes_are_opposite() -> None:
    m = simplex_etf(2, 5, generator())
    torch.testing.assert_close(m[0], -m[1])


def test_fewer_features_than_classes_are_refused() -> None:
    with pytest.raises(InputError, match=r"10 classes needs at least 10 features, .* has 9"):
        simplex_etf(10, 9, generator())
    with pytest.raises(InputError, match="has 9"):
        sparse_etf(10, 9, beta=0.6, gamma=0.1, seed=0)


@pytest.mark.parametrize("beta", [-0.1, 1.0, 1.5])
def test_shares_out_of_range_are_refused(beta: float) -> None:
    with pytest.raises(InputError, match=r"beta must be in \[0, 1\), got"):
        sparse_etf(10, 16, beta=beta, gamma=0.1, seed=0)
    with pytest.raises(InputError, match="gamma must be > 0"):
        sparse_etf(10, 16, beta=0.5, gamma=0.0, seed=0)


def test_a_row_without_entries_is_refused() -> None:
    with pytest.raises(InputError, match=r"at least 2 entries in each row, got 0\.95 for 10"):
        sparse_etf(10, 12, beta=0.95, gamma=0.1, seed=0)


# floor(beta d C) worked out by hand; 0.07 * 100 is 7.000...01 and 0.29 * 100 is 28.999...96 in
# binary.
@pytest.mark.parametrize(
    ("classes", "dim", "beta", "zeros"),
    [(10, 512, 0.6, 3072), (10, 64, 0.3, 192), (10, 10, 0.29, 29), (10, 10, 0.07, 7),
     (3, 7, 0.5, 10), (10, 64, 0.0, 0)],
)  # fmt: skip
def test_zeros_are_counted_over_the_whole_matrix(
    classes: int, dim: int, beta: float, zeros: int
) -> None:
    assert num_zeros(classes, dim, beta) == zeros
    rows, mask = masked(classes, dim, beta, seed=3)
    assert int((~mask).sum()) == zeros
    assert torch.equal(rows != 0, mask)
    s = sparse_etf(classes, dim, beta=beta, gamma=0.1, seed=3)
    assert torch.equal(s != 0, mask)  # the same positions after the rows were spread


def test_rows_share_the_zeros_unevenly() -> None:
    mask = keep_mask(10, 64, 0.6, generator())
    assert len(set(mask.sum(1).tolist())) > 1


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize(("dim", "gamma"), [(64, 0.1), (64, 1.0), (128, 0.1)])
def test_rows_are_spread(dim: int, gamma: float, paper: bool) -> None:
    if paper and gamma == 1.0:
        pytest.skip("the authors' schedule is for small norms")
    before, _ = masked(10, dim, 0.6, seed=0)
    s = sparse_etf(10, dim, beta=0.6, gamma=gamma, seed=0, paper_schedule=paper)
    assert (s.norm(dim=1) - gamma).abs().max() < 2e-3 * gamma / 0.1
    ideal = math.degrees(math.acos(-1 / 9))
    assert angles(s).mean() == pytest.approx(ideal, abs=0.05)
    assert angles(s).min() > angles(before).min() + 5
    assert angles(s).min() > 96
    assert etf_loss(s, gamma) < etf_loss(before.float(), gamma)
    # No C directions have a smallest angle above the simplex's.
    assert angles(s).min() <= ideal + 1e-3


def test_the_gradient_is_that_of_the_loss() -> None:
    rows = torch.randn(7, 12, dtype=torch.float64, generator=generator()).requires_grad_()
    (expected,) = torch.autograd.grad(etf_loss(rows, 0.3), rows)
    torch.testing.assert_close(etf_gradient(rows.detach(), 0.3), expected)


def test_spreading_is_adam() -> None:
    start = torch.randn(5, 8, generator=generator())
    mask = keep_mask(5, 8, 0.3, generator(1))
    start = start * mask
    rows = start.clone().requires_grad_()
    adam = torch.optim.Adam([rows], lr=1e-2)
    for _ in range(20):
        adam.zero_grad()
        etf_loss(rows, 0.5).backward()
        assert rows.grad is not None
        rows.grad *= mask
        adam.step()
    found = spread(start, mask, 0.5, 20, 1e-2)
    torch.testing.assert_close(found, rows.detach(), rtol=1e-4, atol=1e-5)
    assert torch.equal(found == 0, ~mask)


def test_a_seed_is_a_frame() -> None:
    one = sparse_etf(10, 32, beta=0.5, gamma=0.1, seed=1).clone()
    sparse_etf.cache_clear()
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = sparse_etf(10, 32, beta=0.5, gamma=0.1, seed=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, again)
    assert not torch.equal(one, sparse_etf(10, 32, beta=0.5, gamma=0.1, seed=2))


def test_without_zeros_it_is_the_dense_frame() -> None:
    m = simplex_etf(10, 32, rng.torch_generator(5, "etf"))
    assert torch.equal(sparse_etf(10, 32, beta=0.0, gamma=0.25, seed=5), (0.25 * m).float())


@pytest.mark.slow
def test_a_hundred_classes_take_seconds() -> None:
    import time

    sparse_etf.cache_clear()
    started = time.process_time()
    s = sparse_etf(100, 512, beta=0.6, gamma=0.1, seed=0)
    assert time.process_time() - started < 15
    assert angles(s).mean() == pytest.approx(math.degrees(math.acos(-1 / 99)), abs=0.05)
    assert int((s == 0).sum()) == 30_720
