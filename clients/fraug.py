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

from fedsim import rng as streams
from fedsim.client import ClientContext, Tree, Update
from fedsim.data.views import ClientData
from fedsim.errors import check
from fedsim.local_sgd import Fit
from fedsim.maths.conditional import (
    Conditional,
    generator_network,
    initial_weights,
    transformation_network,
)
from fedsim.maths.distances import mmd
from fedsim.params import FlatModel, Params
from fedsim.personal_sgd import PersonalSGD

State = dict[str, Any]
Distance = Literal["mmd", "mse"]


class FRAug(PersonalSGD):
    """Keeps the model's local part, r, prototypes, and how many steps it has made.

    Batches of one sample are trained on without augmentation.
    """

    needs = frozenset({"model", "generator", "rho", "mu"})
    sends = frozenset({"model", "generator"})

    @dataclass(frozen=True)
    class Config(PersonalSGD.Config):
        augment: Literal["both", "real", "prototype", "none"] = "both"  # what e is made around
        use_rtnet: bool = True  # false: e is the generator's output itself, and there is no step C
        interpolate: bool = False  # e <- rho e + (1 - rho) base
        noise: Literal["uniform", "gaussian"] = "uniform"  # on [0, 1), or standard normal
        generator_lr: float = 0.05  # > 0
        rtnet_lr: float = 0.05  # > 0
        lam_g: float = 1.0  # weight of the generator's distance, >= 0
        lam_r: float = 1.0  # weight of the RTNet's distance, >= 0
        dist_g: Distance = "mmd"  # to the batch's features (mmd), or to prototypes (mse)
        dist_r: Distance = "mmd"  # to the base of e
        prototype_momentum: float = 0.3  # m, (0, 1]
        generator_clip: float | None = None  # > 0, bound on the norm of the generator's gradient

        def __post_init__(self) -> None:
            super().__post_init__()
            for name in ("generator_lr", "rtnet_lr"):
                value = getattr(self, name)
                check(0 < value < float("inf"), f"{name} must be > 0 and finite", value)
            for name in ("lam_g", "lam_r"):
                value = getattr(self, name)
                check(0 <= value < float("inf"), f"{name} must be >= 0 and finite", value)
            m = self.prototype_momentum
            check(0 < m <= 1, "prototype_momentum must be in (0, 1]", m)
            clip = self.generator_clip
            check(clip is None or clip > 0, "generator_clip must be > 0", clip)

    def train(
        self,
        payload: Tree,
        state: State,
        data: ClientData,
        rng: torch.Generator,
        ctx: ClientContext,
    ) -> tuple[State, Update]:
        aug = Augmenter(self.config, payload, state, ctx)
        self.start(payload, state, ctx)
        fit, metrics = self.fit(payload, {**state, "augmenter": aug}, data.train, rng, ctx)
        tensors = {**self.update(fit), "generator": aug.shared_generator()}
        kept = {**self.keep(fit), **aug.state()}
        return kept, Update(tensors, float(len(data.train)), metrics | aug.metrics())

    def personal_model(self, payload: Tree, state: State, ctx: ClientContext) -> Params:
        own = {"own": state["own"]} if "own" in state else {}
        return super().personal_model(payload, own, ctx)

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        """Step A."""
        module: Any = fit.ctx.model.module
        v = module.body(x)
        real = self.criterion(fit, module.head(v), y)
        aug: Augmenter = fit.state["augmenter"]
        aug.batch = None
        if self.config.augment == "none" or len(y) < 2:
            return real
        aug.begin(x, y, v.detach())
        e, labels, _ = aug.synthetic()
        mu = fit.payload["mu"]
        # The parts of e are of one size: the mean over their rows is the mean of their means.
        return (1 - mu) * real + mu * F.cross_entropy(module.head(e), labels)

    def after_step(self, fit: Fit) -> None:
        """Steps B and C."""
        aug: Augmenter = fit.state["augmenter"]
        if aug.batch is None:
            return
        module: Any = fit.ctx.model.module
        if "modules" not in fit.scratch:
            # A frozen part is not in training mode and stays so.
            fit.scratch["modules"] = [m for m in module.modules() if m.training]
        set_training(fit.scratch["modules"], False)
        aug.features = module.body(aug.batch[0])  # no gradient: hooks run without
        with torch.enable_grad():
            aug.step_generator(module.head)
            if self.config.use_rtnet:
                aug.step_rtnet(module.head)
        set_training(fit.scratch["modules"], True)


class Augmenter:
    """The generator, the RTNet and the prototypes of a client during a round."""

    def __init__(self, config: Any, payload: Tree, state: State, ctx: ClientContext) -> None:
        self._config, self._ctx, self._payload = config, ctx, payload
        shared: Params = payload["generator"]
        dim, classes = ctx.initial["head.weight"].shape[1], ctx.num_classes
        noise = shared["first.weight"].shape[1] - classes
        self._noise_dim = noise
        generator = generator_network(dim, noise, classes)
        rtnet = transformation_network(dim, noise, classes)
        self._flat_g, self._flat_r = (FlatModel(n, ctx.device) for n in (generator, rtnet))
        if len(shared) < len(self._flat_g.layout.names) + len(self._flat_g.layout.integers):
            fresh = initial_weights(generator, ctx.seed, "fraug/generator")
            self._flat_g.load(state.get("generator", fresh))
        self._flat_g.load(shared)
        own = state.get("rtnet")
        if own is None:
            own = initial_weights(rtnet, ctx.seed, "fraug/rtnet", ctx.client_id)
        self._flat_r.load(own)
        self.g: Conditional = generator.eval()
        self.r: Conditional = rtnet.eval()
        start = state.get("prototypes")
        zeros = torch.zeros(classes, dim)
        self.prototypes = (zeros if start is None else start).to(ctx.device, copy=True)
        self.steps = int(state.get("steps", 0))
        self.batch: tuple[Tensor, Tensor] | None = None
        self.features = zeros  # v of the batch, by the model after step A
        self._balanced = zeros
        self._momenta: dict[str, list[Tensor]] = {}
        self._rng = streams.torch_generator(ctx.seed, "fraug/noise", ctx.round, ctx.client_id)
        self._sums: dict[str, Tensor | float] = {}
        self._count = 0

    def begin(self, x: Tensor, y: Tensor, v: Tensor) -> None:
        """Take in a batch and its features: the prototypes move, and labels are laid out."""
        self.batch, self.features = (x, y), v
        move_prototypes(self.prototypes, v, y, self._config.prototype_momentum)
        self._balanced = balanced_labels(len(y), self.steps, self._ctx.num_classes).to(y.device)
        self.steps += 1
        self._count += 1

    def synthetic(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return e, its labels and its base without gradient, the parts of `augment` in turn."""
        with torch.no_grad():
            raw, labels, base = self._raw()
            # The networks are in evaluation mode, where rows do not see each other.
            e = base + self.r(raw, labels) if self._config.use_rtnet else raw
            if self._config.interpolate:
                e = torch.lerp(base, e, self._payload["rho"])
            return e, labels, base

    def _raw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the generator's outputs, their labels and what they are made around."""
        assert self.batch is not None
        y, s, which = self.batch[1], self._balanced, self._config.augment
        if which == "both":
            labels, base = torch.cat([s, y]), torch.cat([self.prototypes[s], self.features])
        else:
            labels = s if which == "prototype" else y
            base = self.prototypes[s] if which == "prototype" else self.features
        with torch.no_grad():
            return self.g(self.noise(len(labels)), labels), labels, base

    def noise(self, count: int) -> Tensor:
        """Return fresh noise (count, z_dim)."""
        draw = torch.rand if self._config.noise == "uniform" else torch.randn
        return draw((count, self._noise_dim), generator=self._rng).to(self._ctx.device)

    def step_generator(self, head: nn.Module) -> None:
        """Step B: right for this client's head, away from this client's features."""
        c, s = self._config, self._balanced
        self.g.training = True
        out = self.g(self.noise(len(s)), s)
        apart = (
            mmd(out, self.features) if c.dist_g == "mmd" else F.mse_loss(out, self.prototypes[s])
        )
        right = F.cross_entropy(head(out), s)
        self._descend("generator", self._flat_g, right - c.lam_g * apart, c.generator_lr)
        self.g.training = False
        self._note(generator_loss=right.detach(), generator_distance=apart.detach())

    def step_rtnet(self, head: nn.Module) -> None:
        """Step C: near its base, and hard for this client's head."""
        c = self._config
        self.r.training = True
        raw, labels, base = self._raw()
        size = len(self._balanced)
        pairs = zip(raw.split(size), labels.split(size), strict=True)
        # Part by part: in training mode BatchNorm takes the statistics of one part.
        e = base + torch.cat([self.r(*pair) for pair in pairs])
        entropy = mean_entropy(head(e))
        if c.dist_r == "mmd":
            apart = mmd(e.unflatten(0, (-1, size)), base.unflatten(0, (-1, size))).mean()
        else:
            apart = F.mse_loss(e, base)
        self._descend("rtnet", self._flat_r, c.lam_r * apart - entropy, c.rtnet_lr)
        self.r.training = False
        self._note(rtnet_entropy=entropy.detach(), rtnet_distance=apart.detach())

    def _descend(self, name: str, net: FlatModel, loss: Tensor, lr: float) -> None:
        parameters: list[Tensor] = [*net.parameters]
        grads = list(torch.autograd.grad(loss, parameters))
        with torch.no_grad():
            clip = self._config.generator_clip if name == "generator" else None
            if clip is not None:
                norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
                torch._foreach_mul_(grads, (clip / (norm + 1e-6)).clamp(max=1.0))
            if self._config.momentum:
                if name in self._momenta:
                    torch._foreach_mul_(self._momenta[name], self._config.momentum)
                    torch._foreach_add_(self._momenta[name], grads)
                else:
                    self._momenta[name] = grads
                grads = self._momenta[name]
            torch._foreach_add_(parameters, grads, alpha=-lr)

    def _note(self, **values: Tensor) -> None:
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def metrics(self) -> dict[str, float]:
        """Return means over the round's steps."""
        return {name: float(total) / self._count for name, total in self._sums.items()}

    def shared_generator(self) -> Params:
        """Return the part of the generator that the payload named."""
        names = set(self._payload["generator"])
        return self._flat_g.params().only(lambda name: name in names)

    def state(self) -> State:
        """Return what the client keeps of the augmentation."""
        kept: State = {
            "rtnet": self._flat_r.params(),
            "prototypes": self.prototypes.cpu(),
            "steps": self.steps,
        }
        if len(self._payload["generator"]) < len(self._flat_g.params()):
            kept["generator"] = self._flat_g.params()
        return kept


def set_training(modules: Iterable[nn.Module], training: bool) -> None:
    """Set the mode of each module, without the search and the checks that `train` makes."""
    for module in modules:
        object.__setattr__(module, "training", training)


@torch.no_grad()
def move_prototypes(prototypes: Tensor, v: Tensor, y: Tensor, momentum: float) -> None:
    """Move the rows (C, D) of the classes in the batch towards its class means, in place."""
    one_hot = F.one_hot(y, len(prototypes)).to(v.dtype)
    sizes = one_hot.sum(0)[:, None]
    means = (one_hot.T @ v) / sizes.clamp_min(1)
    prototypes.lerp_(means, momentum * (sizes > 0))


def balanced_labels(batch: int, step: int, num_classes: int) -> Tensor:
    """Return labels that go round the classes, from where the step before ended, int64 (batch,)."""
    return (torch.arange(batch) + step * batch) % num_classes


def mean_entropy(logits: Tensor) -> Tensor:
    """Return the mean Shannon entropy in nats of softmax(logits), logits (batch, C)."""
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()
