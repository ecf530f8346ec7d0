"""The kernel discrepancy: its definition written out, and what it must not depend on."""

import math

import pytest
import torch

from clients._distances import KERNELS, Discrepancy
from tests.support.discrepancy import mmd


def batches(shift: float = 0.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 12, 5, generator=generator)
    return a, b + shift


def discrepancy(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values of pairs of batches (p, n, d) without padding, and the gradients by a."""
    p, n = a.shape[:2]
    return Discrepancy(a.new_full((p, n), 1 / n), [n] * p).gradient(a, b)


def value_of(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(discrepancy(a[None], b[None])[0])


def test_two_points_by_hand() -> None:
    """One row each, 3 apart: the mean squared distance of different rows is 9, s is 9 / 4."""
    a, b = torch.tensor([[0.0]]), torch.tensor([[3.0]])
    kernels = sum(math.exp(-9 / (9 / 4 * 2**q)) for q in range(5))
    assert value_of(a, b) == pytest.approx(2 * 5 - 2 * kernels, rel=1e-5)


def test_the_definition_written_out() -> None:
    a, b = batches(1.0)
    rows = [*a, *b]
    squares = [[float(((x - y) ** 2).sum()) for y in rows] for x in rows]
    s = sum(map(sum, squares)) / (24 * 23) / 4

    def mean(first: range, second: range) -> float:
        values = [
            sum(math.exp(-squares[i][j] / (s * 2**q)) for q in range(5))
            for i in first
            for j in second
        ]
        return sum(values) / len(values)

    one, two = range(12), range(12, 24)
    expected = mean(one, one) + mean(two, two) - mean(one, two) - mean(two, one)
    assert value_of(a, b) == pytest.approx(expected, rel=1e-4)


def test_gradient_is_that_of_the_value_with_the_bandwidth_held() -> None:
    """Against the definition in double precision, differentiated by autograd."""
    a, b = (batch.double() for batch in batches(1.0))
    (expected,) = torch.autograd.grad(mmd(a.requires_grad_(), b), a)
    _, gradient = discrepancy(a.detach()[None], b[None])
    torch.testing.assert_close(gradient[0], expected, rtol=1e-9, atol=1e-12)


def test_several_pairs_at_once() -> None:
    pairs = [batches(shift) for shift in (0.0, 1.0, 3.0)]
    a, b = (torch.stack(side) for side in zip(*pairs, strict=True))
    values, gradients = discrepancy(a, b)
    for i, (x, y) in enumerate(pairs):
        value, gradient = discrepancy(x[None], y[None])
        torch.testing.assert_close(values[i], value[0])
        torch.testing.assert_close(gradients[i], gradient[0])


def test_invariances_and_bounds() -> None:
    a, b = batches(1.0)
    value = value_of(a, b)
    assert value_of(a, a) == pytest.approx(0.0, abs=1e-6)
    assert value_of(a, a.flip(0)) == pytest.approx(0.0, abs=1e-6)
    assert value_of(b, a) == pytest.approx(value, rel=1e-5)
    assert value_of(a + 100, b + 100) == pytest.approx(value, rel=1e-3)
    assert value_of(a * 1e3, b * 1e3) == pytest.approx(value, rel=1e-4)
    assert 0 < value < value_of(*batches(5.0)) < 2 * KERNELS
    assert value_of(torch.ones(4, 3), torch.ones(4, 3)) == 0.0


def test_padding_does_not_count() -> None:
    """Values and gradients of padded batches are those of the rows that are there."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 3, 6, 4, generator=generator)
    sizes = [6, 4, 2]
    share = torch.zeros(3, 6)
    for i, n in enumerate(sizes):
        share[i, :n] = 1 / n
    values, gradients = Discrepancy(share, sizes).gradient(a, b)
    for i, n in enumerate(sizes):
        x = a[i, :n].clone().requires_grad_()
        value = mmd(x, b[i, :n])
        (expected,) = torch.autograd.grad(value, x)
        torch.testing.assert_close(values[i], value.detach())
        torch.testing.assert_close(gradients[i, :n], expected)
        assert not bool(gradients[i, n:].any())
