"""Per-FedAvg's client: meta-gradient steps, and adaptation before it is evaluated
(arXiv:2002.07948, Algorithm 1 and section 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim import rng as streams
from fedsim.client import Client, ClientContext, Tree, Update
from fedsim.config.ranges import CheckedConfig, Count, NonNegative, NonNegativeInt, Positive
from fedsim.data.views import ClientData
from fedsim.evaluate.metric_names import named_scores
from fedsim.evaluate.scoring import score
from fedsim.params import FlatModel
from fedsim.training.local_sgd import gradients


class PerFedAvg(Client):
    """Each step needs a batch for the inner step, one for the gradient, and with HF a third.

    ``personal/...`` is scored after `adapt_steps` inner steps on the client's training samples.
    """

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        variant: Literal["fo", "hf"] = "hf"  # first order, or Hessian-free second order
        epochs: Count = 1  # passes over the training samples, counted on one of the batches
        steps: Count | None = None  # if given: steps instead of epochs
        batch_size: Count = 32
        lr: Positive = 0.1  # beta, rate of the meta-gradient
        inner_lr: NonNegative = 0.01  # alpha, rate of the inner step and of adaptation
        delta: Positive = 1e-3  # width of the difference that stands for the Hessian
        adapt_steps: NonNegativeInt = 1  # batches of adaptation before the personal evaluation

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        config, view = self.config, data.train
        if len(view) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        ctx.model.load(payload["model"])
        ctx.model.module.train()
        w: list[Tensor] = [*ctx.model.parameters]
        second_order = config.variant == "hf" and config.inner_lr > 0
        streams_of_batches = [
            view.batches(config.batch_size, rng, config.epochs, config.steps)
            for _ in range(3 if second_order else 2)
        ]
        total, samples = 0.0, 0
        for inner, outer, *third in zip(*streams_of_batches, strict=True):
            point = [p.detach().clone() for p in w]
            _step(w, _gradient(ctx.model, *inner)[1], config.inner_lr)
            loss, g = _gradient(ctx.model, *outer)
            if third:
                _put(w, point, g, config.delta)
                _, ahead = _gradient(ctx.model, *third[0])
                _put(w, point, g, -config.delta)
                _, behind = _gradient(ctx.model, *third[0])
                d = torch._foreach_sub(ahead, behind)
                torch._foreach_add_(g, d, alpha=-config.inner_lr / (2 * config.delta))
            _put(w, point, g, -config.lr)
            total += loss * len(outer[1])
            samples += len(outer[1])
        update = Update({"model": ctx.model.params()}, float(len(view)))
        update.metrics["train_loss"] = total / samples
        return state, update

    def evaluate(
        self, payload: Tree, state: Any, data: ClientData, ctx: ClientContext
    ) -> Mapping[str, float]:
        metrics = dict(super().evaluate(payload, state, data, ctx))
        if len(data.test) == 0 or len(data.train) == 0:
            return metrics
        ctx.model.load(payload["model"])
        ctx.model.module.train()
        rng = streams.torch_generator(ctx.seed, "client/adapt", ctx.round, ctx.client_id)
        steps = self.config.adapt_steps
        for batch in data.train.batches(self.config.batch_size, rng, steps=steps):
            _step([*ctx.model.parameters], _gradient(ctx.model, *batch)[1], self.config.inner_lr)
        return metrics | named_scores("personal", score(ctx.model.module, data.test))


def _gradient(model: FlatModel, x: Tensor, y: Tensor) -> tuple[float, list[Tensor]]:
    loss = F.cross_entropy(model.module(x), y)
    return loss.item(), gradients(loss, model.parameters)


@torch.no_grad()
def _step(w: list[Tensor], g: list[Tensor], rate: float) -> None:
    torch._foreach_add_(w, g, alpha=-rate)


@torch.no_grad()
def _put(w: list[Tensor], point: list[Tensor], g: list[Tensor], rate: float) -> None:
    """Set w to point + rate g."""
    torch._foreach_copy_(w, point)
    torch._foreach_add_(w, g, alpha=rate)
