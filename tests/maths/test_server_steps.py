"""Steps of a server's optimiser against torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.maths.server_steps import Moments, clipped, step


def tensors(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=generator) for n, s in {"a": (3, 2), "b": (4,)}.items()}


@pytest.mark.parametrize(
    ("name", "options", "torchs"),
    [
        ("sgd", {}, lambda p: torch.optim.SGD(p, lr=0.1)),
        ("sgd", {"momentum": 0.9}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("adam", {}, lambda p: torch.optim.Adam(p, lr=0.1)),
        ("adam", {"clip_norm": 0.5}, lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
)
def test_steps_are_torchs(name: Any, options: dict[str, Any], torchs: Any) -> None:
    weights, moments = tensors(0), Moments()
    leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
    optimizer = torchs(leaves.values())
    for seed in (1, 2, 3):
        gradients = tensors(seed)
        for key, leaf in leaves.items():
            leaf.grad = gradients[key].clone()
        if "clip_norm" in options:
            torch.nn.utils.clip_grad_norm_(leaves.values(), options["clip_norm"])
        optimizer.step()
        before = {n: w.clone() for n, w in weights.items()}
        new, moments = step(weights, gradients, moments, name, 0.1, **options)
        assert all(weights[n].equal(before[n]) for n in weights)
        weights = new
    assert moments.steps == 3
    for key, leaf in leaves.items():
        torch.testing.assert_close(weights[key], leaf.detach(), rtol=1e-4, atol=1e-6)


def test_some_tensors_have_a_rate_of_their_own() -> None:
    weights, gradients = tensors(0), tensors(1)
    moved, _ = step(weights, gradients, Moments(), "sgd", 0.1, rates={"b": 0.5})
    torch.testing.assert_close(moved["a"], weights["a"] - 0.1 * gradients["a"])
    torch.testing.assert_close(moved["b"], weights["b"] - 0.5 * gradients["b"])


def test_the_bound_is_on_all_tensors_together() -> None:
    found = clipped({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, 1.0)
    assert float(found["a"]) == pytest.approx(0.6, abs=1e-5)
    assert float(found["b"]) == pytest.approx(0.8, abs=1e-5)
    small = {"a": torch.tensor([0.3])}
    assert clipped(small, 1.0)["a"].equal(small["a"])
    assert clipped(small, None) is small
