"""Local SGD, the base of most client methods: a training loop with hooks.

    w <- w_t;  for each epoch, for each batch b of a new random order:
        g <- gradient(grad loss(w; b));  v <- m v + g;  w <- w - lr v;  after_step
    send w, weighted by the number of training samples

Momentum, weight decay and clipping follow `torch.optim.SGD` and `clip_grad_norm_` (clipped first,
decayed then). No `torch.optim` object is made: importing it costs each worker seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from fedsim.client import Client, ClientContext, GroupUpdate, Task, Tree, Update
from fedsim.config.ranges import (
    CheckedConfig,
    Count,
    NonNegative,
    Positive,
    PositiveFraction,
    ProperFraction,
)
from fedsim.data.views import ClientData, View
from fedsim.errors import InputError, refuse_replaced
from fedsim.params import FlatModel, protocol
from fedsim.training import losses
from fedsim.training.client_groups import GroupTraining
from fedsim.training.optimisers import clipped_and_decayed


class TrainingContext(Protocol):
    """What the loop needs to know of where it runs; a `ClientContext` says so too."""

    @property
    def model(self) -> FlatModel: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def round(self) -> int: ...

    @property
    def num_classes(self) -> int: ...


@dataclass(frozen=True)
class ServerRound:
    """The `TrainingContext` of a server that trains its resident model in a round."""

    model: FlatModel
    round: int
    num_classes: int

    @property
    def device(self) -> torch.device:
        return self.model.flat.device


@dataclass
class Fit:
    """One local training under way, as the hooks see it.

    `ctx` is a client's `ClientContext`, or the `TrainingContext` of a server. `parameters` are the
    trainable tensors of the resident model, then those of `SGD.extra`, and `names` their names in
    the same order. `payload` and `state` are those of the client.
    """

    ctx: Any
    payload: Tree
    state: Any
    names: list[str]
    parameters: list[Tensor]
    lr: float
    view: View
    buffers: list[Tensor] = field(default_factory=list)  # momentum, once there was a step
    scratch: dict[str, Any] = field(default_factory=dict)  # what hooks keep between steps

    @cached_property
    def class_sizes(self) -> Tensor:
        """Training samples of each class in the view, float (classes,)."""
        sizes = torch.bincount(self.view.labels(), minlength=self.ctx.num_classes)
        return sizes.to(self.ctx.device, torch.float32)

    def named(self) -> dict[str, Tensor]:
        """Return name -> trainable tensor."""
        return dict(zip(self.names, self.parameters, strict=True))


class SGD:
    """The training loop and its hooks, for clients and for servers that train.

    A subclass overrides `loss`, `gradient`, `after_step` or `trainable` and leaves the loop alone.
    """

    @dataclass(frozen=True)
    class Config(CheckedConfig):
        epochs: Count = 1  # passes over the client's training samples
        steps: Count | None = None  # if given: batches instead of epochs
        batch_size: Count = 32  # the last batch of an epoch may be smaller
        lr: Positive = 0.1
        lr_decay: PositiveFraction = 1.0  # the rate of round t is lr * lr_decay ** (t - 1)
        momentum: ProperFraction = 0.0
        weight_decay: NonNegative = 0.0  # added to the gradient
        clip_norm: Positive | None = None  # bound on the gradient's norm
        loss: losses.Name = "cross-entropy"  # which classes weigh how much
        tau: NonNegative = 1.0  # balanced-softmax, fedlc: strength of the correction
        focal_gamma: NonNegative = 2.0  # focal: how much easy samples are played down
        vectorise: bool | Literal["auto"] = "auto"  # several clients in one kernel

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def extra(self, payload: Tree, state: Any, ctx: Any) -> dict[str, Tensor]:
        """Return tensors on the client's device that are trained beside the model's, by name."""
        return {}

    def prepare(self, fit: Fit) -> None:
        """Put the model into the mode it trains in, before the first batch."""
        fit.ctx.model.module.train()

    def batches(
        self, fit: Fit, rng: torch.Generator, epochs: int, steps: int | None
    ) -> Iterable[tuple[Any, Any]]:
        """Yield x and y of each step: inputs and labels, or what the model compares itself with.

        A model that brings its own loss names the columns of the data set that it takes, in its
        attribute `targets`; y is then the tuple of these.
        """
        reads = protocol.reads(fit.ctx.model.module)
        targets = protocol.targets(fit.ctx.model.module)
        size = self.config.batch_size
        return fit.view.batches(size, rng, epochs, steps, reads=reads, targets=targets)

    def loss(self, fit: Fit, x: Any, y: Any) -> Tensor | None:
        """Return the loss of a batch, x (batch, C, H, W) and y (batch,); None to pass it over.

        For a model that reads pairs x is a tuple of images and tokens.
        """
        return self.criterion(fit, fit.ctx.model.module(x), y)

    def criterion(self, fit: Fit, logits: Tensor, y: Any) -> Tensor:
        """Return the loss of logits (batch, classes): the option `loss`, or the model's own."""
        config, module = self.config, fit.ctx.model.module
        if (own_loss := protocol.own_loss(module)) is not None:
            return own_loss(logits, *y)
        if config.loss == "balanced-softmax":
            return losses.balanced_softmax(logits, y, fit.class_sizes, config.tau)
        if config.loss == "fedlc":
            return losses.calibrated(logits, y, fit.class_sizes, config.tau)
        if config.loss == "focal":
            return losses.focal(logits, y, config.focal_gamma)
        return losses.cross_entropy(logits, y)

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        """Return the gradient to step along, given the loss's; e.g. add a proximal term."""
        return grads

    def after_step(self, fit: Fit) -> None:
        """Act on the model after each step, e.g. project it."""

    def trainable(self, name: str) -> bool:
        """Whether the parameter of this name is trained."""
        return True

    def fit(
        self,
        payload: Tree,
        state: Any,
        view: View,
        rng: torch.Generator,
        ctx: TrainingContext,
        *,
        epochs: int | None = None,
        trainable: Callable[[str], bool] | None = None,
    ) -> tuple[Fit, dict[str, float]]:
        """Train what is in the resident model on a view (in place); return the fit and metrics.

        `epochs` and `trainable` stand for the options and the hook where a method has phases.

        Raises:
            ValueError: the view is empty.
        """
        if len(view) == 0:
            raise ValueError("there are no training samples")
        config = self.config
        names: list[str] = []
        parameters: list[Tensor] = []
        for name, parameter in zip(ctx.model.parameter_names, ctx.model.parameters, strict=True):
            wanted = (trainable or self.trainable)(name)
            parameter.requires_grad_(wanted)
            if wanted:
                names.append(name)
                parameters.append(parameter)
        extra = self.extra(payload, state, ctx)
        names += extra
        parameters += [tensor.requires_grad_() for tensor in extra.values()]
        lr = config.lr * config.lr_decay ** (ctx.round - 1)
        fit = Fit(ctx, payload, state, names, parameters, lr, view)
        self.prepare(fit)
        total = torch.zeros((), device=ctx.device)
        samples = 0
        steps = config.steps if epochs is None else None
        for x, y in self.batches(fit, rng, epochs or config.epochs, steps):
            loss = self.loss(fit, x, y)
            if loss is None:
                continue
            grads = gradients(loss, parameters)
            with torch.no_grad():
                self._step(fit, self.gradient(fit, grads))
                self.after_step(fit)
            count = len(x[0]) if isinstance(x, tuple) else len(x)  # pairs are two tensors
            total += loss.detach() * count
            samples += count
        return fit, {"train_loss": float(total) / max(1, samples)}

    def _step(self, fit: Fit, grads: list[Tensor]) -> None:
        config = self.config
        grads = clipped_and_decayed(grads, fit.parameters, config.clip_norm, config.weight_decay)
        if config.momentum:
            if not fit.buffers:
                fit.buffers = [g.clone() for g in grads]
            else:
                torch._foreach_mul_(fit.buffers, config.momentum)
                torch._foreach_add_(fit.buffers, grads)
            grads = fit.buffers
        torch._foreach_add_(fit.parameters, grads, alpha=-fit.lr)


_GROUP_HOOKS = "start_group group_gradients after_group_step group_update"
_REPLACED = dict.fromkeys(
    ["batched", "group_bytes", *_GROUP_HOOKS.split()],
    "a GroupTraining of fedsim.training.client_groups, named by the class attribute group",
)


class LocalSGD(SGD, Client):
    """SGD on the client's own data; the base class of most client methods.

    Clients whose model writes out batched passes are trained several at a time, by `group`. The
    gradients equal the loop's to 1e-5 of the largest; so do the trained weights, but where a
    rounding error decides the maximum in a pool or the sign before a ReLU (seen: one client in
    twenty, 1e-3 of the largest weight). A subclass that overrides a method of `LOOP` is trained
    client by client, unless it names a `group` of its own, or defines `train_group`.
    """

    @dataclass(frozen=True)
    class Config(SGD.Config):
        pass

    LOOP: ClassVar[tuple[str, ...]] = (
        "train", "start", "extra", "fit", "prepare", "batches", "loss", "criterion", "gradient",
        "after_step", "trainable", "update", "keep",
    )  # fmt: skip
    group: ClassVar[type[GroupTraining] | None] = GroupTraining
    _overridden: ClassVar[list[str]] = []

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        refuse_replaced(cls, _REPLACED)
        if {"group", "train_group"} & set(vars(cls)):
            return
        own = {"group", "train_group"}
        answering: Any = next(base for base in cls.__mro__ if own & set(vars(base)))
        overridden = [n for n in cls.LOOP if getattr(cls, n) is not getattr(answering, n)]
        if overridden:
            cls.group, cls._overridden = None, overridden

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        """Put into the resident model what training starts from: the payload's model."""
        ctx.model.load(payload["model"])

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        if len(data.train) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        self.start(payload, state, ctx)
        fit, metrics = self.fit(payload, state, data.train, rng, ctx)
        return self.keep(fit), Update(self.update(fit), float(len(data.train)), metrics)

    def update(self, fit: Fit) -> Tree:
        """Return what is sent: by default the whole model, parameters and buffers."""
        return {"model": fit.ctx.model.params()}

    def keep(self, fit: Fit) -> Any:
        """Return the state that the client keeps: by default the one it had."""
        return fit.state

    def group_size(self, module: nn.Module) -> int:
        """Return how many clients of this model are trained together, 1 if that is not possible.

        Raises:
            InputError: `vectorise` is true and it is not possible.
        """
        vectorise = self.config.vectorise
        if vectorise is False:
            return 1
        obstacle = self._obstacle(module)
        if obstacle is None:
            assert self.group is not None
            return self.group(self).size(module)
        if vectorise is True:
            raise InputError(f"client.vectorise must be false or 'auto' here, got true: {obstacle}")
        return 1

    def _obstacle(self, module: nn.Module) -> str | None:
        """Say why clients cannot be trained together; None if they can."""
        if self.group is None:
            return f"{type(self).__name__} overrides {self._overridden}"
        if self.config.loss != "cross-entropy":
            return f"client.loss is {self.config.loss!r}"
        if lacking := protocol.missing(module, self.group.passes):
            return f"the model {type(module).__name__} has no {', '.join(lacking)}"
        return None

    def train_group(self, tasks: Sequence[Task]) -> GroupUpdate:
        assert self.group is not None
        return self.group(self).train(tasks)


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss in each parameter, zeros where it does not depend on one."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))


def proximal(
    grads: Sequence[Tensor], parameters: Sequence[Tensor], anchor: Sequence[Tensor], mu: float
) -> list[Tensor]:
    """Return gradients with that of mu/2 |w - anchor|^2 added to each."""
    away = torch._foreach_sub(list(parameters), list(anchor))
    return list(torch._foreach_add(list(grads), away, alpha=mu))
