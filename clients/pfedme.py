"""pFedMe's client: proximal steps around a local copy of the global model (arXiv:2006.08848,
Algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.client import Client, ClientContext, Tree, Update
from fedsim.config.ranges import CheckedConfig, Count, Positive
from fedsim.data.views import ClientData
from fedsim.errors import check
from fedsim.params import Params
from fedsim.training.local_sgd import gradients

State = dict[str, Params]


class PFedMe(Client):
    """For each batch K gradient steps on theta, then one step of w towards theta.

    The personal model is the last theta; before a client's first round it is the generic one.
    """

    stateful = True
    personal = True

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        epochs: Count = 1  # passes over the client's training samples
        steps: Count | None = None  # if given: batches instead of epochs
        batch_size: Count = 32  # the last batch of an epoch may be smaller
        lr: Positive = 0.05  # rate of the steps on theta
        inner_steps: Count = 5  # K, steps on theta a batch
        lam: Positive = 15.0  # lambda, pull of theta to w; lr * lam < 2 or the steps diverge
        outer_lr: Positive = 0.05  # eta, rate of the step on w; eta * lam = 1 puts w on theta

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.lr * self.lam < 2, "lr * lam must be < 2", self.lr * self.lam)

    def init_state(self, ctx: ClientContext) -> State:
        return {}

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        config = self.config
        if len(data.train) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        ctx.model.load(payload["model"])
        module = ctx.model.module.train()
        theta: list[Tensor] = [*ctx.model.parameters]
        w = [p.detach().clone() for p in theta]
        total, samples = 0.0, 0
        for x, y in data.train.batches(config.batch_size, rng, config.epochs, config.steps):
            for k in range(config.inner_steps):
                loss = F.cross_entropy(module(x), y)
                grads = gradients(loss, theta)
                with torch.no_grad():
                    torch._foreach_lerp_(theta, w, config.lr * config.lam)
                    torch._foreach_add_(theta, grads, alpha=-config.lr)
                if k == 0:
                    total += loss.item() * len(y)
                    samples += len(y)
            with torch.no_grad():
                torch._foreach_lerp_(w, theta, config.outer_lr * config.lam)
        own = ctx.model.params()
        with torch.no_grad():
            torch._foreach_copy_(theta, w)
        update = Update({"model": ctx.model.params()}, float(len(data.train)))
        update.metrics["train_loss"] = total / samples
        return {"own": own}, update

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        return state["own"] if "own" in state else payload["model"]
