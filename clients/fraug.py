"""FRAug's client: three steps on each batch (X, y) (Chen et al. 2023, arXiv:2205.14900).

    A  model      v = f(X);  prototypes v_bar <- (1 - m) v_bar + m (class means of v)
                  e_p = v_bar[s] + r(g(z, s), s),  e_r = v + r(g(z, y), y),  without gradient
                  theta by (1 - mu) CE(c(v), y) + mu mean(CE(c(e_p), s), CE(c(e_r), y))
    B  generator  omega by CE(c(g(z, s)), s) - lam_g dist(g(z, s), v or v_bar[s])
    C  RTNet      r by mean_e -H(softmax c(e)) + lam_r dist(e, its base), e as in A

s are balanced labels that go round the classes, z fresh noise each time, H entropy in nats.
Networks that a step does not train are in evaluation mode. As for every client here, momentum and
the order of the samples begin anew each round; the authors' code carries both over.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clients._augmenter import Augmenter
from fedsim.client import ClientContext, GroupUpdate, Tree, Update
from fedsim.config.ranges import NonNegative, Positive, PositiveFraction
from fedsim.data.views import ClientData
from fedsim.params import Params
from fedsim.training.client_groups import Batch, GroupFit, GroupTraining
from fedsim.training.local_sgd import Fit
from fedsim.training.personal_sgd import PersonalSGD

State = dict[str, Any]
Distance = Literal["mmd", "mse"]


class FRAugGroup(GroupTraining):
    """The steps A, B and C of several clients at once."""

    passes = ("batched_features", "batched_backward", "batched_head", "head_gradients")

    def client_bytes(self, module: Any) -> int:
        classes, dim = module.head.weight.shape
        noise = dim // 2  # what the strategy takes by default
        networks = (noise + classes + dim) * dim + (2 * dim + classes) * noise
        return super().client_bytes(module) + 4 * networks

    def start(self, fit: GroupFit) -> None:
        states, contexts = [t.state for t in fit.tasks], [t.ctx for t in fit.tasks]
        payload = fit.tasks[0].payload
        fit.scratch["augmenter"] = Augmenter(self.config, payload, states, contexts)

    def gradients(self, fit: GroupFit, batch: Batch) -> tuple[Tensor, Tensor]:
        """Step A of the clients at work."""
        fit.scratch["augmented"] = self.config.augment != "none" and max(batch.lengths) > 1
        if not fit.scratch["augmented"]:
            return super().gradients(fit, batch)
        module: Any = fit.ctx.model.module
        aug: Augmenter = fit.scratch["augmenter"]
        flat = fit.flat[: len(batch.y)]
        gradient = torch.empty_like(flat, memory_format=torch.contiguous_format)
        v, tape = module.batched_features(flat, batch.x)
        aug.begin(v, batch.y, batch.share, batch.lengths)
        e, labels, _ = aug.synthetic()
        losses, delta = module.head_gradients(
            flat,
            torch.cat([v, e], dim=1),
            torch.cat([batch.y, labels], dim=1),
            aug.weights,
            gradient,
        )
        module.batched_backward(flat, tape, delta[:, : v.shape[1]], gradient)
        return losses, gradient

    def after_step(self, fit: GroupFit, batch: Batch) -> None:
        """Steps B and C of the clients at work."""
        if not fit.scratch["augmented"]:
            return
        module: Any = fit.ctx.model.module
        flat = fit.flat[: len(batch.y)]
        features, _ = module.batched_features(flat, batch.x)
        fit.scratch["augmenter"].learn(features, module.batched_head(flat))

    def update(self, fit: GroupFit, metrics: list[dict[str, float]]) -> GroupUpdate:
        aug: Augmenter = fit.scratch["augmenter"]
        own = {"own": fit.start.only(lambda name: False)}  # the model has no part that stays
        merged = [a | b for a, b in zip(metrics, aug.metrics(), strict=True)]
        update = super().update(fit, merged)
        update.tensors["generator"] = aug.generators()
        update.states = [own | kept for kept in aug.states()]
        return update


class FRAug(PersonalSGD):
    """Keeps the model's local part, r, prototypes, and how many steps it has made.

    Batches of one sample are trained on without augmentation. A group's updates and states equal
    the loop's to the tolerance that `LocalSGD` states.
    """

    needs = frozenset({"model", "generator", "rho", "mu"})
    sends = frozenset({"model", "generator"})
    group = FRAugGroup

    @dataclass(frozen=True)
    class Config(PersonalSGD.Config):
        augment: Literal["both", "real", "prototype", "none"] = "both"  # what e is made around
        use_rtnet: bool = True  # false: e is the generator's output itself, and there is no step C
        interpolate: bool = False  # e <- rho e + (1 - rho) base
        noise: Literal["uniform", "gaussian"] = "uniform"  # on [0, 1), or standard normal
        generator_lr: Positive = 0.05
        rtnet_lr: Positive = 0.05
        lam_g: NonNegative = 1.0  # weight of the generator's distance
        lam_r: NonNegative = 1.0  # weight of the RTNet's distance
        dist_g: Distance = "mmd"  # to the batch's features (mmd), or to prototypes (mse)
        dist_r: Distance = "mmd"  # to the base of e
        prototype_momentum: PositiveFraction = 0.3  # m
        generator_clip: Positive | None = None  # bound on the norm of the generator's gradient

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        aug = Augmenter(self.config, payload, [state], [ctx])
        self.start(payload, state, ctx)
        fit, metrics = self.fit(payload, {**state, "augmenter": aug}, data.train, rng, ctx)
        (generator,), (kept,), (means,) = aug.generators().split(), aug.states(), aug.metrics()
        tensors = {**self.update(fit), "generator": generator}
        return {**self.keep(fit), **kept}, Update(tensors, float(len(data.train)), metrics | means)

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        own = {"own": state["own"]} if "own" in state else {}
        return super().personal_model(payload, own, ctx)

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        """Step A."""
        module: Any = fit.ctx.model.module
        v = module.body(x)
        real = self.criterion(fit, module.head(v), y)
        aug: Augmenter = fit.state["augmenter"]
        fit.scratch["x"] = None
        if self.config.augment == "none" or len(y) < 2:
            return real
        fit.scratch["x"] = x
        share = v.new_full((1, len(y)), 1 / len(y))
        aug.begin(v.detach()[None], y[None], share, [len(y)])
        (e,), (labels,), _ = aug.synthetic()
        mu = fit.payload["mu"]
        # The parts of e are of one size: the mean over their rows is the mean of their means.
        return (1 - mu) * real + mu * F.cross_entropy(module.head(e), labels)

    def after_step(self, fit: Fit) -> None:
        """Steps B and C."""
        if fit.scratch["x"] is None:
            return
        module: Any = fit.ctx.model.module
        if "modules" not in fit.scratch:
            # A frozen part is not in training mode and stays so.
            fit.scratch["modules"] = [m for m in module.modules() if m.training]
        set_training(fit.scratch["modules"], False)
        features = module.body(fit.scratch["x"])
        set_training(fit.scratch["modules"], True)
        head = module.head.weight[None], module.head.bias[None, :, None]
        fit.state["augmenter"].learn(features[None], head)


def set_training(modules: Iterable[nn.Module], training: bool) -> None:
    """Set the mode of each module, without the search and the checks that `train` makes."""
    for module in modules:
        object.__setattr__(module, "training", training)
