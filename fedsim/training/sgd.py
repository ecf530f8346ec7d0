"""The SGD loop that clients and servers train with.

    for each epoch, for each batch b of a new random order:
        g <- gradient(grad loss(w; b));  v <- m v + g;  w <- w - lr v;  after_step

Momentum, weight decay and clipping follow `torch.optim.SGD` and `clip_grad_norm_`: the gradient is
clipped first, then decayed. `torch.optim` itself is not used: importing it costs each worker
seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from fedsim.config.ranges import (
    CheckedConfig,
    Count,
    NonNegative,
    Positive,
    PositiveFraction,
    ProperFraction,
)
from fedsim.data.views import View, view_for
from fedsim.params import FlatModel
from fedsim.training import losses
from fedsim.training.optimisers import clipped_and_decayed


@dataclass(kw_only=True)
class Training:
    """One training in progress, as the hooks see it.

    `parameters` are the tensors that are trained, those of the model first and extra ones last, and
    `names` their names in the same order; `SGD.run` sets them and the rate `lr`. `round` is 1..T.
    """

    model: FlatModel
    view: View
    round: int
    num_classes: int
    names: list[str] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)
    lr: float = 0.0
    buffers: list[Tensor] = field(default_factory=list)  # momentum, once there was a step
    scratch: dict[str, Any] = field(default_factory=dict)  # what hooks keep between steps

    @cached_property
    def class_sizes(self) -> Tensor:
        """Training samples of each class in the view, float (classes,)."""
        sizes = torch.bincount(self.view.labels(), minlength=self.num_classes)
        return sizes.to(self.model.flat.device, torch.float32)

    def named(self) -> dict[str, Tensor]:
        """Return name -> trained tensor."""
        return dict(zip(self.names, self.parameters, strict=True))


T = TypeVar("T", bound=Training)


class SGD(Generic[T]):
    """Plain SGD on a view; a subclass overrides hooks and leaves `run` alone.

    Hooks in the order in which they are called: `trainable`, `prepare`, `batches`, `loss`,
    `gradient`, `after_step`.
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

    def __init__(self, config: Any = None) -> None:
        self.config: Any = self.Config() if config is None else config

    def trainable(self, name: str) -> bool:
        """Whether the parameter of this name is trained."""
        return True

    def prepare(self, fit: T) -> None:
        """Put the model into the mode it trains in, before the first batch."""
        fit.model.module.train()

    def batches(
        self, fit: T, rng: torch.Generator, epochs: int, steps: int | None
    ) -> Iterable[tuple[Any, Any]]:
        """Yield x and y of each step: inputs and labels, or what the model compares itself with.

        A model that brings its own loss names the columns of the data set that it takes, in its
        attribute `targets`; y is then the tuple of these.
        """
        columns = getattr(fit.model.module, "targets", ())
        size = self.config.batch_size
        if columns:
            return fit.view.target_batches(columns, size, rng, epochs, steps)
        return view_for(fit.model.module, fit.view).batches(size, rng, epochs, steps)

    def loss(self, fit: T, x: Any, y: Any) -> Tensor | None:
        """Return the loss of a batch, x (batch, C, H, W) and y (batch,); None to pass it over.

        For a model that reads pairs x is a tuple of images and tokens.
        """
        return self.criterion(fit, fit.model.module(x), y)

    def criterion(self, fit: T, logits: Tensor, y: Any) -> Tensor:
        """Return the loss of logits (batch, classes): the option `loss`, or the model's own."""
        config, module = self.config, fit.model.module
        if hasattr(module, "targets"):
            own: Tensor = module.loss(logits, *y)  # type: ignore[operator]
            return own
        if config.loss == "balanced-softmax":
            return losses.balanced_softmax(logits, y, fit.class_sizes, config.tau)
        if config.loss == "fedlc":
            return losses.calibrated(logits, y, fit.class_sizes, config.tau)
        if config.loss == "focal":
            return losses.focal(logits, y, config.focal_gamma)
        return losses.cross_entropy(logits, y)

    def gradient(self, fit: T, grads: list[Tensor]) -> list[Tensor]:
        """Return the gradient to step along, given the loss's; e.g. add a proximal term."""
        return grads

    def after_step(self, fit: T) -> None:
        """Act on the model after each step, e.g. project it."""

    def run(
        self,
        fit: T,
        rng: torch.Generator,
        *,
        epochs: int | None = None,
        trainable: Callable[[str], bool] | None = None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """Train the resident model (in place); return the metrics, ``train_loss`` among them.

        `epochs` and `trainable` replace the options and the hook in methods with several phases;
        `extra` are tensors trained beside the model's, by name.
        """
        config = self.config
        for name, parameter in zip(fit.model.parameter_names, fit.model.parameters, strict=True):
            parameter.requires_grad_((trainable or self.trainable)(name))
            if parameter.requires_grad:
                fit.names.append(name)
                fit.parameters.append(parameter)
        for name, tensor in (extra or {}).items():
            fit.names.append(name)
            fit.parameters.append(tensor.requires_grad_())
        fit.lr = config.lr * config.lr_decay ** (fit.round - 1)
        self.prepare(fit)
        total = torch.zeros((), device=fit.model.flat.device)
        samples = 0
        steps = config.steps if epochs is None else None
        for x, y in self.batches(fit, rng, epochs or config.epochs, steps):
            loss = self.loss(fit, x, y)
            if loss is None:
                continue
            grads = gradients(loss, fit.parameters)
            with torch.no_grad():
                self._step(fit, self.gradient(fit, grads))
                self.after_step(fit)
            count = len(x[0]) if isinstance(x, tuple) else len(x)  # pairs are two tensors
            total += loss.detach() * count
            samples += count
        return {"train_loss": float(total) / max(1, samples)}

    def _step(self, fit: T, grads: list[Tensor]) -> None:
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


def add_proximal_term(
    fit: Training, grads: list[Tensor], mu: float, anchor: Mapping[str, Tensor] | None = None
) -> list[Tensor]:
    """Return the gradients plus mu (w - anchor), the gradient of mu/2 |w - anchor|^2.

    `anchor` holds a tensor for each trained parameter; by default the parameters before the first
    step. The one of the first call is kept for the whole training.
    """
    if mu == 0:
        return grads
    if "anchor" not in fit.scratch:
        device = fit.model.flat.device
        fit.scratch["anchor"] = (
            [p.detach().clone() for p in fit.parameters]
            if anchor is None
            else [anchor[name].to(device) for name in fit.names]
        )
    away = torch._foreach_sub(fit.parameters, fit.scratch["anchor"])
    return list(torch._foreach_add(grads, away, alpha=mu))


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient of a loss in each parameter, zeros where it does not depend on one."""
    return list(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
