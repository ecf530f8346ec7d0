"""Optimisers whose whole state is a tree of tensors, so that it can be kept between rounds.

    sgd    v <- m v + g;  w <- w - lr v
    adam   Kingma and Ba 2015, arXiv:1412.6980, Algorithm 1
    adamp  Adam whose step loses its part along w, for weights that a normalisation makes
           scale-invariant (Heo et al. 2021, arXiv:2006.08217, Algorithm 2, delta 0.1)

The gradient is clipped by its norm first and decayed then, as in `fedsim.training.local_sgd`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from fedsim.config.ranges import CheckedConfig, NonNegative, Positive, ProperFraction

Name = Literal["sgd", "adam", "adamp"]

_BETAS = 0.9, 0.999
_EPSILON = 1e-8
_DELTA = 0.1
"""AdamP: how nearly a gradient must be at right angles to a weight, over sqrt(size)."""

OptimiserState = dict[str, Any]
"""Empty at first; then the number of steps and the moments of each parameter by its name."""


@dataclass(frozen=True)
class Optimiser(CheckedConfig):
    """A rule for steps; `momentum` is of sgd alone."""

    name: Name = "sgd"
    momentum: ProperFraction = 0.0
    weight_decay: NonNegative = 0.0
    clip_norm: Positive | None = None

    @torch.no_grad()
    def step(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        names: Sequence[str],
        lr: float,
        state: OptimiserState,
        rates: Mapping[str, float] | None = None,
    ) -> None:
        """Make one step; changes the parameters and `state` in place.

        Parameters without a gradient stay as they are, moments included. `rates` overrides `lr`
        for the parameters that it names.
        """
        rows = zip(parameters, gradients, names, strict=True)
        moving = [(p, g, n) for p, g, n in rows if g is not None]
        if not moving:
            return
        weights, grads, keys = map(list, zip(*moving, strict=True))
        grads = clipped_and_decayed(grads, weights, self.clip_norm, self.weight_decay)
        steps = state.setdefault("steps", {})
        for key in keys:
            steps[key] = steps.get(key, 0) + 1
        steps_lr = [lr if rates is None else rates.get(key, lr) for key in keys]
        if self.name == "sgd":
            self._sgd(weights, grads, keys, steps_lr, state)
        else:
            self._adam(weights, grads, keys, steps_lr, state)

    def moved(
        self,
        weights: Mapping[str, Tensor],
        gradients: Mapping[str, Tensor],
        lr: float,
        state: OptimiserState,
        rates: Mapping[str, float] | None = None,
    ) -> tuple[dict[str, Tensor], OptimiserState]:
        """Return the weights and the state after a `step`, both as copies."""
        weights = {name: weight.clone() for name, weight in weights.items()}
        state = on_device(state, "cpu")
        steps = [gradients.get(name) for name in weights]
        self.step(list(weights.values()), steps, list(weights), lr, state, rates)
        return weights, state

    def _sgd(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        keys: list[str],
        rates: list[float],
        state: OptimiserState,
    ) -> None:
        if self.momentum:
            velocity = _moments(state, "velocity", keys, weights)
            torch._foreach_mul_(velocity, self.momentum)
            torch._foreach_add_(velocity, grads)
            grads = velocity
        for w, g, lr in zip(weights, grads, rates, strict=True):
            w.add_(g, alpha=-lr)

    def _adam(
        self,
        weights: list[Tensor],
        grads: list[Tensor],
        keys: list[str],
        rates: list[float],
        state: OptimiserState,
    ) -> None:
        first = _moments(state, "first", keys, weights)
        second = _moments(state, "second", keys, weights)
        b1, b2 = _BETAS
        torch._foreach_lerp_(first, grads, 1 - b1)
        torch._foreach_mul_(second, b2)
        torch._foreach_addcmul_(second, grads, grads, value=1 - b2)
        for w, g, m, v, key, lr in zip(weights, grads, first, second, keys, rates, strict=True):
            n = state["steps"][key]
            root = v.sqrt().div_(math.sqrt(1 - b2**n)).add_(_EPSILON)
            step = m / root
            if self.name == "adamp" and w.dim() > 1:
                step = _projected(step, w, g)
            w.sub_(step, alpha=lr / (1 - b1**n))


def clipped_and_decayed(
    grads: list[Tensor], weights: list[Tensor], clip_norm: float | None, weight_decay: float
) -> list[Tensor]:
    """Return the gradients, scaled to a norm of at most `clip_norm`, plus weight_decay w."""
    if clip_norm is not None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        grads = list(torch._foreach_mul(grads, (clip_norm / (norm + 1e-6)).clamp(max=1.0)))
    if weight_decay:
        grads = list(torch._foreach_add(grads, weights, alpha=weight_decay))
    return grads


def on_device(state: OptimiserState, device: torch.device | str) -> OptimiserState:
    """Return a copy of a state with its tensors on a device."""
    return {
        kind: {k: v.to(device, copy=True) if isinstance(v, Tensor) else v for k, v in value.items()}
        for kind, value in state.items()
    }


def _moments(
    state: OptimiserState, name: str, keys: list[str], weights: list[Tensor]
) -> list[Tensor]:
    known = state.setdefault(name, {})
    for key, weight in zip(keys, weights, strict=True):
        if key not in known:
            known[key] = torch.zeros_like(weight, memory_format=torch.contiguous_format)
    return [known[key] for key in keys]


def _projected(step: Tensor, w: Tensor, g: Tensor) -> Tensor:
    """Return the step without its part along w, by rows or as a whole, where g is across w."""
    for rows in (len(w), 1):
        flat_w, flat_g = w.reshape(rows, -1), g.reshape(rows, -1)
        across = torch.cosine_similarity(flat_w, flat_g, dim=1, eps=_EPSILON).abs().max()
        if float(across) < _DELTA / math.sqrt(flat_w.shape[1]):
            unit = flat_w / (flat_w.norm(dim=1, keepdim=True) + _EPSILON)
            flat = step.reshape(rows, -1)
            along = (unit * flat).sum(1, keepdim=True)
            return (flat - unit * along).reshape(step.shape)
    return step


def cosine_rate(lr: float, round: int, rounds: int) -> float:
    """Return the rate of a round 1..`rounds`, from `lr` down a half cosine towards 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * (round - 1) / rounds))
