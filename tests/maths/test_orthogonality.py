"""The penalty on filters: closed forms, singular values, and its gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedsim.maths.orthogonality import Orthogonality


def orthogonal(rows: int, columns: int) -> Tensor:
    draw = torch.randn(max(rows, columns), max(rows, columns), generator=generator())
    return torch.linalg.qr(draw).Q[:rows, :columns]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def value(weight: Tensor, sides: str = "both", iterations: int = 200) -> float:
    return float(Orthogonality(sides, iterations)({"w": weight}))  # type: ignore[arg-type]


def by_svd(weight: Tensor, sides: str) -> float:
    """Return R from singular values s: S has the eigenvalues s^2 - 1, and -1 where M is longer."""
    matrix = weight.flatten(1)
    s = torch.linalg.svdvals(matrix.double())
    shorter = float((s**2 - 1).abs().max())
    if sides == "shorter":
        return shorter
    longer = shorter if matrix.shape[0] == matrix.shape[1] else max(shorter, 1.0)
    return shorter + longer


def test_orthogonal_filters_cost_nothing_but_the_floor() -> None:
    assert value(orthogonal(6, 6)) == pytest.approx(0, abs=1e-5)
    for shape in ((4, 9), (9, 4)):
        assert value(orthogonal(*shape), "shorter") == pytest.approx(0, abs=1e-5)
        assert value(orthogonal(*shape)) == pytest.approx(1, abs=1e-5)
    weights = {"a": orthogonal(6, 6), "b": orthogonal(4, 9), "c": torch.ones(3)}
    assert Orthogonality("both").floor(weights) == 1
    assert Orthogonality("shorter").floor(weights) == 0


@pytest.mark.parametrize("c", [0.0, 0.5, 1.2, 2.0])
def test_a_multiple_of_an_orthogonal_matrix(c: float) -> None:
    assert value(c * orthogonal(5, 5)) == pytest.approx(2 * abs(c * c - 1), abs=1e-4)


@pytest.mark.parametrize("sides", ["shorter", "both"])
@pytest.mark.parametrize("shape", [(8, 4, 3, 3), (12, 5), (5, 5), (7, 20)])
def test_power_iteration_finds_the_spectral_norm(shape: tuple[int, ...], sides: str) -> None:
    weight = 0.4 * torch.randn(*shape, generator=generator(1))
    exact = by_svd(weight, sides)
    assert value(weight, sides, 500) == pytest.approx(exact, rel=1e-3)
    assert value(weight, sides, 2) <= exact * (1 + 1e-5)


def test_beyond_one_the_pair_is_twice_the_one_sided_penalty() -> None:
    weight = torch.randn(4, 9, generator=generator(2))
    assert by_svd(weight, "shorter") >= 1
    assert value(weight) == pytest.approx(2 * value(weight, "shorter"), rel=1e-4)


def test_vectors_are_kept_between_steps() -> None:
    """A few iterations a step come as close as many at once while the weights stand still."""
    weight = 0.3 * torch.randn(8, 40, generator=generator(3))
    steps = Orthogonality("shorter", 3)
    values = [float(steps({"w": weight})) for _ in range(200)]
    assert values == sorted(values, key=lambda v: round(v, 5))
    assert values[-1] == pytest.approx(by_svd(weight, "shorter"), rel=1e-3)
    assert values[0] < values[-1]


@pytest.mark.parametrize("sides", ["shorter", "both"])
def test_the_gradient_is_that_of_the_spectral_norm(sides: str) -> None:
    weight = torch.randn(3, 2, 2, 2, generator=generator(4)).double().requires_grad_()
    penalty = Orthogonality(sides, 500)  # type: ignore[arg-type]
    (found,) = torch.autograd.grad(penalty({"w": weight}), weight)
    for place in ((0, 0, 0, 0), (2, 1, 0, 1), (1, 0, 1, 1)):
        step = torch.zeros_like(weight)
        step[place] = 1e-5
        up, down = (by_svd(weight.detach() + sign * step, sides) for sign in (1, -1))
        assert float(found[place]) == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=1e-6)


def test_the_floor_and_exact_orthogonality_have_no_gradient() -> None:
    for weight in (torch.eye(4), torch.eye(4)[:2]):
        weight = weight.clone().requires_grad_()
        (found,) = torch.autograd.grad(Orthogonality("both", 50)({"w": weight}), weight)
        assert bool(torch.isfinite(found).all())
        assert float(found.abs().max()) < 1e-5


def test_biases_do_not_count() -> None:
    both = {"w": torch.ones(2, 2), "bias": torch.ones(9)}
    assert float(Orthogonality()(both)) == float(Orthogonality()({"w": torch.ones(2, 2)})) > 0
    assert float(Orthogonality()({"bias": torch.ones(9)})) == 0.0


def test_steps_down_the_penalty_narrow_the_spread_of_singular_values() -> None:
    weight = (0.5 * torch.randn(6, 30, generator=generator(5))).requires_grad_()
    penalty = Orthogonality("shorter", 3)
    before = torch.linalg.svdvals(weight.detach())
    for _ in range(300):
        (slope,) = torch.autograd.grad(penalty({"w": weight}), weight)
        with torch.no_grad():
            weight -= 0.01 * slope
    after = torch.linalg.svdvals(weight.detach())
    assert float(after.max() - after.min()) < 0.2 * float(before.max() - before.min())
