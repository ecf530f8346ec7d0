"""Local SGD: the client method that most methods extend.

w <- w_t;  SGD on the client's samples (`fedsim.training.sgd`)
send w, weighted by the number of training samples
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fedsim.client import Client, ClientContext, GroupUpdate, Task, Tree, Update
from fedsim.data.views import ClientData, View
from fedsim.errors import InputError
from fedsim.training.client_groups import GroupTraining
from fedsim.training.sgd import SGD, Training


@dataclass(kw_only=True)
class Fit(Training):
    """A client's training in progress; `payload` and `state` are what it received and keeps."""

    ctx: ClientContext
    payload: Tree
    state: Any


class LocalSGD(SGD[Fit], Client):
    """Plain SGD on the client's own data; the base class of most client methods.

    A subclass overrides hooks: those of `SGD`, such as `loss`, `gradient` and `after_step`, and
    those around it, `start`, `extra`, `update` and `keep`. `group` trains several clients in one
    kernel, where the model has what it `requires`. Its gradients equal the loop's to 1e-5 of the
    largest; so do the weights it ends with, but where a rounding error decides the maximum in a
    pool or the sign before a ReLU (seen: one client in twenty, 1e-3 of the largest weight). It
    knows nothing of overridden hooks, so a subclass that overrides one of `HOOKS` has no `group`
    unless it names one of its own.
    """

    @dataclass(frozen=True)
    class Config(SGD.Config):
        vectorise: bool | Literal["auto"] = "auto"  # several clients in one kernel

    HOOKS: ClassVar[tuple[str, ...]] = (
        "train", "fit", "run", "start", "extra", "update", "keep",
        "trainable", "prepare", "batches", "loss", "criterion", "gradient", "after_step",
    )  # fmt: skip
    group: ClassVar[type[GroupTraining] | None] = GroupTraining

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        author = next(c for c in cls.__mro__ if "group" in vars(c) or "train_group" in vars(c))
        if any(getattr(cls, hook) is not getattr(author, hook, None) for hook in cls.HOOKS):
            cls.group = None

    def start(self, payload: Tree, state: Any, ctx: ClientContext) -> None:
        """Put into the resident model what training starts from: the payload's model."""
        ctx.model.load(payload["model"])

    def extra(self, payload: Tree, state: Any, ctx: ClientContext) -> dict[str, Tensor]:
        """Return tensors on the client's device that are trained beside the model's, by name."""
        return {}

    def update(self, fit: Fit) -> Tree:
        """Return what is sent: by default the whole model, parameters and buffers."""
        return {"model": fit.model.params()}

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

        `epochs` and `trainable` replace the options and the hook in methods with several phases.

        Raises:
            ValueError: the view is empty.
        """
        if len(view) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        fit = Fit(
            model=ctx.model,
            view=view,
            round=ctx.round,
            num_classes=ctx.num_classes,
            ctx=ctx,
            payload=payload,
            state=state,
        )
        extra = self.extra(payload, state, ctx)
        return fit, self.run(fit, rng, epochs=epochs, trainable=trainable, extra=extra)

    def group_size(self, module: nn.Module) -> int:
        """Return how many clients of this model are trained together, 1 if that is impossible.

        Raises:
            InputError: `vectorise` is true and they cannot be.
        """
        obstacle = self._obstacle(module)
        if self.config.vectorise is True and obstacle is not None:
            raise InputError(f"client.vectorise must be false or 'auto' here, got true: {obstacle}")
        if self.group is None or obstacle is not None or self.config.vectorise is False:
            return 1
        return self.group.size(module, self.config.batch_size)

    def _obstacle(self, module: nn.Module) -> str | None:
        """Return why clients cannot be trained together, None if they can."""
        if self.group is None:
            cls = type(self)
            hooks = [h for h in self.HOOKS if getattr(cls, h) is not getattr(LocalSGD, h)]
            return f"{cls.__name__} overrides {', '.join(hooks)} and names no group trainer"
        if self.config.loss != "cross-entropy":
            return f"client.loss is {self.config.loss!r}"
        lacking = [name for name in self.group.requires if not hasattr(module, name)]
        return f"the model {type(module).__name__} has no {', '.join(lacking)}" if lacking else None

    def train_group(self, tasks: Sequence[Task]) -> GroupUpdate:
        """Train several clients together by `group`; it must not be None."""
        assert self.group is not None
        return self.group(self.config, tasks).run()
