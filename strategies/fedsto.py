"""FedSTO: semi-supervised federated object detection, labels at the server only (Kim et al. 2023,
NeurIPS, arXiv:2310.17097, Algorithm 1).

    warm-up:  the server alone trains W = (B, N, H) on its labelled images
    stage 1:  clients train the backbone B only;  B <- sum_k n_k B_k / sum_k n_k
    stage 2:  clients train W with lam R(N, H);   W <- sum_k n_k W_k / sum_k n_k
    after each aggregation the server trains all of W on its labelled images, in stage 2 with lam R

R keeps the filters of neck N and head H orthogonal (`fedsim.maths.orthogonality`). What follows
warm-up and stage 1 is stage 2: with `stage1_rounds` 0 and `ortho` none it is FedAvg of
semi-supervised clients, with as many `warm_up_rounds` as rounds the server trains alone. lam is not
published; its default, R on the shorter side and the whole model as the download of stage 1 are
ours, as the authors' training code is not public.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from fedsim.client import Metrics, Tree, Update
from fedsim.config.ranges import (
    CheckedConfig,
    Count,
    NonNegative,
    NonNegativeInt,
    Positive,
    PositiveFraction,
    ProperFraction,
)
from fedsim.errors import InputError
from fedsim.maths.orthogonality import Orthogonality, Sides
from fedsim.params import Params
from fedsim.params.filters import in_backbone
from fedsim.strategy import ServerContext, Strategy, mean_update
from fedsim.training.local_sgd import SGD, Fit, ServerRound

Ortho = Literal["none", "srip_min", "srip_two_sided"]
SIDES: dict[Ortho, Sides] = {"none": "shorter", "srip_min": "shorter", "srip_two_sided": "both"}


@dataclass
class State:
    model: Params  # W_s
    round: int  # rounds done


class FedSTO(Strategy):
    """Selective training, then full training with orthogonal filters, and a server that trains."""

    name: ClassVar[str] = "fedsto"
    weighted_mean = True
    sends = frozenset({"model", "fixed", "lam", "sides", "penalised"})

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        warm_up_rounds: NonNegativeInt = 50  # T0, rounds in which the server trains alone
        stage1_rounds: NonNegativeInt = 100  # T1, rounds in which clients train the backbone only
        ortho: Ortho = "srip_min"  # R of stage 2
        lam: NonNegative = 1e-4  # weight of R
        penalised: Literal["non-backbone", "all"] = "non-backbone"  # whose filters R is of
        epochs: Count = 1  # the server's a round
        steps: Count | None = None  # if given: the server's batches instead of epochs
        batch_size: Count = 32  # the server's
        lr: Positive = 0.01
        lr_decay: PositiveFraction = 1.0  # the rate of round t is lr * lr_decay ** (t - 1)
        momentum: ProperFraction = 0.937
        weight_decay: NonNegative = 5e-4
        clip_norm: Positive | None = None  # bound on the gradient's norm

        def training(self) -> SGD.Config:
            """Return the options of the server's training."""
            return SGD.Config(
                epochs=self.epochs,
                steps=self.steps,
                batch_size=self.batch_size,
                lr=self.lr,
                lr_decay=self.lr_decay,
                momentum=self.momentum,
                weight_decay=self.weight_decay,
                clip_norm=self.clip_norm,
            )

    def check(self, params: Params, ctx: ServerContext) -> None:
        called = f"strategy {self.name!r}"
        if not any(map(in_backbone, params)) or not hasattr(ctx.model.module, "detect"):
            raise InputError(f"{called} needs a model with backbone and boxes: {{name: detector}}")
        if ctx.dataset.card.kind != "detection":
            raise InputError(
                f"{called} needs a detection set, {ctx.dataset.name!r} is of the kind "
                f"{ctx.dataset.card.kind!r}"
            )
        if ctx.server is None:
            raise InputError(
                f"{called} needs a partition that leaves labelled samples to the server, such as "
                "{name: server-labelled, server_domain: clear}"
            )

    def stage(self, round: int) -> int:
        """Return 0 in the warm-up, then 1 and 2."""
        warm, selective = self.config.warm_up_rounds, self.config.stage1_rounds
        return (round > warm) + (round > warm + selective)

    def cohort(self, round: int, population: int) -> Sequence[int]:
        return [] if self.stage(round) == 0 else super().cohort(round, population)

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params, 0)

    def configure(self, state: State, round: int, cohort: Sequence[int]) -> Tree:
        trained: Callable[[str], bool] = (
            in_backbone if self.stage(round) == 1 else lambda name: True
        )
        return {
            "model": state.model.only(trained),
            "fixed": state.model.only(lambda name: not trained(name)),
            "lam": self._lam(round),
            "sides": SIDES[self.config.ortho],
            "penalised": self.config.penalised,
        }

    def _lam(self, round: int) -> float:
        wanted = self.stage(round) == 2 and self.config.ortho != "none"
        return self.config.lam if wanted else 0.0

    def aggregate(self, state: State, updates: Sequence[Update]) -> tuple[State, Metrics]:
        round = state.round + 1
        metrics: Metrics = {}
        if updates:
            joined = self.join(state, updates)
            metrics["update_norm"] = (joined.model - state.model).norm()
            state = joined
        model, found = self.train(state.model, round)
        return replace(state, model=model, round=round), metrics | found

    def join(self, state: State, updates: Sequence[Update]) -> State:
        """Return the state with the clients' mean, of all tensors or of some, in the model."""
        return replace(state, model=state.model.merged(mean_update(updates)["model"]))

    def train(self, model: Params, round: int) -> tuple[Params, Metrics]:
        """Return the model after the server's own training, and its loss and R."""
        ctx = self.ctx
        assert ctx is not None
        assert ctx.server is not None
        ctx.model.load(model)
        config = self.config
        payload = {"lam": self._lam(round), "sides": SIDES[config.ortho], "all": config.penalised}
        method = _ServerTraining(config.training())
        generator = ctx.generator("fedsto/server", round)
        place = ServerRound(ctx.model, round, ctx.num_classes)
        fit, metrics = method.fit(payload, None, ctx.server, generator, place)
        found = {"server_loss": metrics["train_loss"]}
        if payload["lam"]:
            found["ortho"] = method.excess(fit)
        return ctx.model.params(), found


class _ServerTraining(SGD):
    """SGD on the labelled images, with the penalty where the payload weighs it."""

    def prepare(self, fit: Fit) -> None:
        super().prepare(fit)
        everywhere = fit.payload["all"] == "all"
        fit.scratch["ortho"] = Orthogonality(fit.payload["sides"])
        fit.scratch["V"] = {
            n: p for n, p in fit.named().items() if everywhere or not in_backbone(n)
        }

    def loss(self, fit: Fit, x: Tensor, y: Any) -> Tensor | None:
        loss = super().loss(fit, x, y)
        if loss is None or not fit.payload["lam"]:
            return loss
        return loss + fit.payload["lam"] * fit.scratch["ortho"](fit.scratch["V"])

    @torch.no_grad()
    def excess(self, fit: Fit) -> float:
        """Return R less what it is at least."""
        ortho, v = fit.scratch["ortho"], fit.scratch["V"]
        return float(ortho(v)) - ortho.floor(v)
