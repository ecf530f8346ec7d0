"""One step of a server's optimiser over named tensors, as a pure function of its state.

Directions and moments are those of `torch.optim.SGD` and `Adam`; the gradient's norm over all
tensors is bounded first, as `clip_grad_norm_` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Tensors = dict[str, Tensor]
Name = Literal["adam", "sgd"]


@dataclass
class Moments:
    """What an optimiser remembers: `first` is SGD's velocity or Adam's mean, `second` Adam's."""

    steps: int = 0
    first: Tensors = field(default_factory=dict)
    second: Tensors = field(default_factory=dict)


def step(
    weights: Tensors,
    gradients: Tensors,
    moments: Moments,
    optimiser: Name,
    lr: float,
    *,
    momentum: float = 0.0,
    clip_norm: float | None = None,
    rates: Mapping[str, float] | None = None,
) -> tuple[Tensors, Moments]:
    """Return new weights and moments after one step down `gradients`, of the same names.

    `momentum` is SGD's; Adam has beta .9 and .999 (Kingma and Ba 2015). `rates` are those of some
    tensors that have their own.
    """
    gradients = clipped(gradients, clip_norm)
    made = Moments(moments.steps + 1)
    moved = {}
    for name, weight in weights.items():
        gradient = gradients[name]
        if optimiser == "adam":
            first = moments.first.get(name, torch.zeros_like(gradient))
            second = moments.second.get(name, torch.zeros_like(gradient))
            made.first[name] = first = 0.9 * first + 0.1 * gradient
            made.second[name] = second = 0.999 * second + 0.001 * gradient**2
            scale = (second / (1 - 0.999**made.steps)).sqrt() + 1e-8
            direction = first / (1 - 0.9**made.steps) / scale
        elif momentum:
            velocity = moments.first.get(name)
            direction = gradient if velocity is None else momentum * velocity + gradient
            made.first[name] = direction
        else:
            direction = gradient
        moved[name] = weight - (rates or {}).get(name, lr) * direction
    return moved, made


def clipped(gradients: Tensors, bound: float | None) -> Tensors:
    """Return gradients whose norm over all tensors is at most `bound`; None leaves them."""
    if bound is None:
        return gradients
    norms = torch.stack([torch.linalg.vector_norm(g) for g in gradients.values()])
    scale = float((bound / (torch.linalg.vector_norm(norms) + 1e-6)).clamp(max=1.0))
    return {name: gradient * scale for name, gradient in gradients.items()}
