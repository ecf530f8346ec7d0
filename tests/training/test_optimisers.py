"""Optimisers with a state that is kept, against torch's and the paper's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedsim.errors import InputError
from fedsim.runs.codec import from_bytes, to_bytes
from fedsim.training.optimisers import Optimiser, cosine_rate, on_device


def played(optimiser: Optimiser, steps: int, **torchs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights after some steps, ours (stored and read back between) and torch's."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(4, 3, generator=generator)
    ours, theirs = start.clone(), start.clone().requires_grad_()
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    reference = kinds[optimiser.name]([theirs], lr=0.05, **torchs)
    state: dict[str, Any] = {}
    for _ in range(steps):
        gradient = torch.randn(4, 3, generator=generator)
        optimiser.step([ours], [gradient], ["w"], 0.05, state)
        theirs.grad = gradient.clone()
        if optimiser.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([theirs], optimiser.clip_norm)
        reference.step()
        state = from_bytes(to_bytes(state))
    return ours, theirs.detach()


@pytest.mark.parametrize(
    ("optimiser", "torchs"),
    [
        (Optimiser("sgd"), {}),
        (Optimiser("sgd", momentum=0.9, weight_decay=0.1), {"momentum": 0.9, "weight_decay": 0.1}),
        (Optimiser("adam"), {}),
        (Optimiser("adam", weight_decay=0.1), {"weight_decay": 0.1}),
        (Optimiser("adam", clip_norm=0.5), {}),
    ],
)
def test_steps_are_torchs(optimiser: Optimiser, torchs: dict[str, Any]) -> None:
    ours, theirs = played(optimiser, 5, **torchs)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_adamp_drops_the_part_along_the_weights() -> None:
    """Where the gradient is across the rows of w the step keeps their norms, to first order."""
    w = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    gradient = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    state = {
        "first": {"w": torch.tensor([[0.9, 0.4], [0.4, -0.7]])},
        "second": {"w": torch.full((2, 2), 0.25)},
        "steps": {"w": 3},
    }
    moved = w.clone()
    Optimiser("adamp").step([moved], [gradient], ["w"], 0.01, state)
    assert (moved - w).diagonal().tolist() == pytest.approx([0.0, 0.0], abs=1e-7)
    first = 0.9 * 0.4 + 0.1 * 1.0
    second = 0.999 * 0.25 + 0.001
    step = 0.01 / (1 - 0.9**4) * first / (math.sqrt(second / (1 - 0.999**4)) + 1e-8)
    assert float(moved[0, 1]) == pytest.approx(-step, rel=1e-5)
    assert float(moved[1, 0]) == pytest.approx(-step, rel=1e-5)


def test_adamp_is_adam_where_the_gradient_is_along_the_weights() -> None:
    for w, gradient in ((torch.eye(2), torch.eye(2)), (torch.ones(3), torch.ones(3))):
        one, two = w.clone(), w.clone()
        Optimiser("adamp").step([one], [gradient], ["w"], 0.1, {})
        Optimiser("adam").step([two], [gradient], ["w"], 0.1, {})
        assert one.equal(two)


def test_what_has_no_gradient_stays() -> None:
    a, b = torch.ones(2), torch.ones(2)
    state: dict[str, Any] = {}
    Optimiser("adam").step([a, b], [None, torch.ones(2)], ["a", "b"], 0.1, state)
    assert a.tolist() == [1.0, 1.0]
    assert b.tolist() != [1.0, 1.0]
    assert set(state["first"]) == {"b"}
    before = b.clone()
    Optimiser("adam").step([a, b], [None, None], ["a", "b"], 0.1, state)
    assert b.equal(before)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_some_parameters_have_a_rate_of_their_own(name: Any) -> None:
    weights = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    gradients = {"a": torch.tensor([0.5, -0.5]), "b": torch.tensor([0.5])}
    plain, _ = Optimiser(name).moved(weights, gradients, 0.1, {})
    own, _ = Optimiser(name).moved(weights, gradients, 0.1, {}, rates={"b": 0.3})
    assert own["a"].equal(plain["a"])
    torch.testing.assert_close(own["b"] - 3.0, 3 * (plain["b"] - 3.0))
    assert float(plain["b"]) == pytest.approx(3.0 - 0.1 * (0.5 if name == "sgd" else 1.0))


@pytest.mark.parametrize(("bound", "expected"), [(1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])])
def test_the_bound_is_on_all_gradients_together(bound: float, expected: list[float]) -> None:
    """3 and 4 in two tensors have the norm 5."""
    zeros = {"a": torch.zeros(1), "b": torch.zeros(1)}
    gradients = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    moved, _ = Optimiser("sgd", clip_norm=bound).moved(zeros, gradients, 1.0, {})
    assert [-float(w) for w in moved.values()] == pytest.approx(expected, abs=1e-5)


def test_moving_leaves_what_it_was_given() -> None:
    optimiser = Optimiser("adam", clip_norm=1.0)
    weights, gradients = {"w": torch.ones(2)}, {"w": torch.tensor([3.0, 4.0])}
    first, state = optimiser.moved(weights, gradients, 0.1, {})
    kept = {name: dict(some) for name, some in state.items()}
    second, later = optimiser.moved(first, gradients, 0.1, state)
    assert weights["w"].tolist() == [1.0, 1.0]
    assert gradients["w"].tolist() == [3.0, 4.0]
    assert state["steps"] == kept["steps"] == {"w": 1}
    assert state["first"]["w"].tolist() == pytest.approx([0.06, 0.08])  # a tenth of g / |g|
    assert later["first"]["w"].tolist() == pytest.approx([0.114, 0.152])
    assert not second["w"].equal(first["w"])


def test_a_copy_of_a_state_is_independent() -> None:
    state: dict[str, Any] = {}
    w = torch.ones(2)
    Optimiser("adam").step([w], [torch.ones(2)], ["w"], 0.1, state)
    copied = on_device(state, "cpu")
    Optimiser("adam").step([w], [torch.ones(2)], ["w"], 0.1, copied)
    assert state["steps"] == {"w": 1}
    assert state["first"]["w"].tolist() == pytest.approx([0.1, 0.1])
    assert copied["steps"] == {"w": 2}


def test_the_rate_falls_by_half_a_cosine() -> None:
    rates = [cosine_rate(1.0, t, 4) for t in (1, 2, 3, 4)]
    half = math.sqrt(0.5) / 2
    assert rates == pytest.approx([1.0, 0.5 + half, 0.5, 0.5 - half])


@pytest.mark.parametrize(
    ("options", "text"),
    [({"momentum": 1.0}, "momentum"), ({"weight_decay": -1.0}, "weight_decay"),
     ({"clip_norm": 0.0}, "clip_norm")],
)  # fmt: skip
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        Optimiser("sgd", **options)
