"""Local SGD: what most methods' clients do, with hooks for what they do differently.

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
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsim.client import Client, ClientContext, GroupUpdate, Task, Tree, Update
from fedsim.data.views import ClientData, View
from fedsim.errors import InputError, check
from fedsim.params import Params, Rows, protocol
from fedsim.training import losses
from fedsim.training.client_groups import Batch, GroupFit, Orders

GROUP_BYTES = 12 * 2**20
"""Memory for the gradients of the clients that are trained at once; fits the caches of a core."""

GROUP_SAMPLE_BYTES = 3 * 2**20
"""Memory for the largest activation of the clients' batches; beyond it grouping costs time."""

GROUP_CLIENTS = 50
"""Clients trained at once at most; a cohort of 100 is then two even groups."""


@dataclass
class Fit:
    """One local training under way, as the hooks see it.

    `parameters` are the trainable tensors of the resident model, then those of `LocalSGD.extra`,
    and `names` their names in the same order; `payload` and `state` are what the client got and
    keeps.
    """

    ctx: ClientContext
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


class LocalSGD(Client):
    """Plain SGD on the client's own data; the base class of most client methods.

    A subclass overrides `loss`, `gradient`, `after_step` or `trainable` and leaves the loop alone.
    Models with a `batched_gradients` method train up to `GROUP_CLIENTS` clients in one kernel.
    Its gradients equal the loop's to 1e-5 of the largest; so do the weights it ends with, but where
    a rounding error decides the maximum in a pool or the sign before a ReLU (seen: one client in
    twenty, 1e-3 of the largest weight). A subclass that overrides a hook trains in groups only if
    it also says how: a class that defines one of `GROUP_HOOKS` answers for all hooks in it and in
    its bases.
    """

    @dataclass(frozen=True)
    class Config:
        epochs: int = 1  # passes over the client's training samples, >= 1
        steps: int | None = None  # if given: batches instead of epochs, >= 1
        batch_size: int = 32  # >= 1; the last batch of an epoch may be smaller
        lr: float = 0.1  # > 0
        lr_decay: float = 1.0  # the rate of round t is lr * lr_decay ** (t - 1), (0, 1]
        momentum: float = 0.0  # [0, 1)
        weight_decay: float = 0.0  # >= 0, added to the gradient
        clip_norm: float | None = None  # > 0, bound on the gradient's norm
        loss: losses.Name = "cross-entropy"  # which classes weigh how much
        tau: float = 1.0  # balanced-softmax, fedlc: strength of the correction, >= 0
        focal_gamma: float = 2.0  # focal: how much easy samples are played down, >= 0
        vectorise: bool | Literal["auto"] = "auto"  # several clients in one kernel

        def __post_init__(self) -> None:
            for name in ("epochs", "steps", "batch_size"):
                count = getattr(self, name)
                if count is not None:
                    check(count >= 1, f"{name} must be >= 1", count)
                    check(count < 2**31, f"{name} must be below 2**31", count)
            check(0 < self.lr < float("inf"), "lr must be > 0 and finite", self.lr)
            check(0 < self.lr_decay <= 1, "lr_decay must be in (0, 1]", self.lr_decay)
            check(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
            check(self.weight_decay >= 0, "weight_decay must be >= 0", self.weight_decay)
            check(
                self.clip_norm is None or self.clip_norm > 0,
                "clip_norm must be > 0",
                self.clip_norm,
            )
            for name in ("tau", "focal_gamma"):
                value = getattr(self, name)
                check(0 <= value < float("inf"), f"{name} must be >= 0 and finite", value)

    HOOKS: ClassVar[tuple[str, ...]] = (
        "train", "start", "extra", "fit", "prepare", "batches", "loss", "criterion", "gradient",
        "after_step", "trainable", "update", "keep",
    )  # fmt: skip
    GROUP_HOOKS: ClassVar[tuple[str, ...]] = (
        "train_group", "start_group", "group_gradients", "after_group_step", "group_update",
    )  # fmt: skip
    batched: ClassVar[tuple[str, ...]] = ("batched_gradients",)  # what a group needs of a model

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        """Put into the resident model what training starts from: the payload's model."""
        ctx.model.load(payload["model"])

    def extra(self, payload: Tree, state: Any, ctx: ClientContext) -> dict[str, Tensor]:
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

    def update(self, fit: Fit) -> Tree:
        """Return what is sent: by default the whole model, parameters and buffers."""
        return {"model": fit.ctx.model.params()}

    def keep(self, fit: Fit) -> Any:
        """Return the state that the client keeps: by default the one it had."""
        return fit.state

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        self.start(payload, state, ctx)
        fit, metrics = self.fit(payload, state, data.train, rng, ctx)
        return self.keep(fit), Update(self.update(fit), float(len(data.train)), metrics)

    def fit(
        self,
        payload: Tree,
        state: Any,
        view: View,
        rng: torch.Generator,
        ctx: ClientContext,
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
            raise ValueError(f"client {ctx.client_id} has no training samples")
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
        if config.clip_norm is not None:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            scale = (config.clip_norm / (norm + 1e-6)).clamp(max=1.0)
            grads = list(torch._foreach_mul(grads, scale))
        if config.weight_decay:
            grads = list(torch._foreach_add(grads, fit.parameters, alpha=config.weight_decay))
        if config.momentum:
            if not fit.buffers:
                fit.buffers = [g.clone() for g in grads]
            else:
                torch._foreach_mul_(fit.buffers, config.momentum)
                torch._foreach_add_(fit.buffers, grads)
            grads = fit.buffers
        torch._foreach_add_(fit.parameters, grads, alpha=-fit.lr)

    def _changed(self) -> list[str]:
        """Return the hooks overridden below the class that says how groups train."""
        lineage = type(self).__mro__

        def owner(name: str) -> int:
            return next(i for i, cls in enumerate(lineage) if name in vars(cls))

        answering = min(owner(name) for name in self.GROUP_HOOKS)
        return [name for name in self.HOOKS if owner(name) < answering]

    def group_size(self, module: nn.Module) -> int:
        """Return how many clients of this model are trained together, 1 if that is not possible.

        Raises:
            InputError: `vectorise` is true and they can not.
        """
        wanted = self.config.vectorise
        changed = self._changed()
        lacking = protocol.missing(module, self.batched)
        able = not lacking and not changed and self.config.loss == "cross-entropy"
        if wanted is True and not able:
            why = f"the model {type(module).__name__} has no {', '.join(lacking)}"
            if changed:
                why = f"{type(self).__name__} overrides {changed}"
            elif self.config.loss != "cross-entropy":
                why = f"client.loss is {self.config.loss!r}"
            raise InputError(f"client.vectorise must be false or 'auto' here, got true: {why}")
        if not able or wanted is False:
            return 1
        batch_bytes = self.config.batch_size * protocol.sample_bytes(module)
        sizes = GROUP_BYTES // self.group_bytes(module), GROUP_SAMPLE_BYTES // batch_bytes
        return max(1, min(GROUP_CLIENTS, *sizes))

    def group_bytes(self, module: nn.Module) -> int:
        """Return the bytes of all parameters that one client trains."""
        return sum(4 * parameter.numel() for parameter in module.parameters())

    def train_group(self, tasks: Sequence[Task]) -> GroupUpdate:
        config, ctx = self.config, tasks[0].ctx
        start: Params = tasks[0].payload["model"]
        if start.layout != ctx.model.layout:
            raise ValueError("clients train in a group only where the payload has the whole model")
        orders = Orders(tasks, config.batch_size, config.epochs, config.steps)
        lr = config.lr * config.lr_decay ** (ctx.round - 1)
        flat = start.flat.to(ctx.device).expand(len(tasks), -1)  # all start from one point
        fit = GroupFit(ctx, [tasks[i] for i in orders.task_of], start, flat, lr)
        self.start_group(fit)
        losses = torch.zeros(len(tasks), device=ctx.device)
        velocity = torch.zeros(0)
        for step in range(orders.num_steps[0]):
            batch = orders.batch(step, ctx.device)
            active = len(batch.y)
            loss, grads = self.group_gradients(fit, batch)
            losses[:active] += loss * batch.sizes
            if config.clip_norm is not None:
                norms = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
                grads *= (config.clip_norm / (norms + 1e-6)).clamp(max=1.0)
            if config.weight_decay:
                grads += config.weight_decay * fit.flat[:active]
            if config.momentum:
                if step == 0:
                    velocity = grads
                else:
                    velocity[:active].mul_(config.momentum).add_(grads)
                grads = velocity[:active]
            if step > 0:
                fit.flat[:active].add_(grads, alpha=-lr)
            elif config.momentum:
                fit.flat = torch.add(flat, grads, alpha=-lr)
            else:
                # In place: new memory of this size costs more than the step itself.
                fit.flat = torch.add(flat, grads, alpha=-lr, out=grads)
            self.after_group_step(fit, batch)
        seen = zip(losses.tolist(), orders.num_seen, strict=True)
        metrics = [{"train_loss": loss / samples} for loss, samples in seen]
        return self.group_update(fit, metrics).take(orders.row_of)

    def start_group(self, fit: GroupFit) -> None:
        """Prepare what the other hooks for groups need."""

    def group_gradients(self, fit: GroupFit, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of the clients at work and their gradients (clients, size).

        Both tensors may be changed afterwards.
        """
        module: Any = fit.ctx.model.module
        found: tuple[Tensor, Tensor] = module.batched_gradients(
            fit.flat[: len(batch.y)], batch.x, batch.y, batch.share
        )
        return found

    def after_group_step(self, fit: GroupFit, batch: Batch) -> None:
        """Act on the models of the clients at work after each step."""

    def group_update(self, fit: GroupFit, metrics: list[dict[str, float]]) -> GroupUpdate:
        """Return what the clients send, whole models by default, and the states they keep."""
        weights = [float(task.data.num_train) for task in fit.tasks]
        states = [task.state for task in fit.tasks]
        return GroupUpdate({"model": Rows(fit.start, fit.flat.cpu())}, weights, metrics, states)


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss in each parameter, zeros where it does not depend on one."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
