"""Local SGD: what most methods' clients do, with hooks for what they do differently.

    w <- w_t;  for each epoch, for each batch b of a new random order:
        g <- gradient(grad loss(w; b));  v <- m v + g;  w <- w - lr v;  after_step
    send w, weighted by the number of training samples

Momentum, weight decay and clipping follow `torch.optim.SGD` and `clip_grad_norm_` (clipped first,
decayed then). No `torch.optim` object is made: importing it costs each worker seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.client import Client, ClientContext, Task, Tree, Update
from fedsim.data.views import ClientData, View
from fedsim.errors import InputError, check
from fedsim.params import Params

GROUP = 16
"""Clients that a model with `batched_gradients` trains at once."""


@dataclass
class Fit:
    """One local training under way, as the hooks see it.

    `parameters` are the trainable tensors of the resident model and `names` their names, in the
    same order; `payload` and `state` are what the client got and keeps.
    """

    ctx: ClientContext
    payload: Tree
    state: Any
    names: list[str]
    parameters: list[Tensor]
    lr: float
    buffers: list[Tensor] = field(default_factory=list)  # momentum, once there was a step


class LocalSGD(Client):
    """Plain SGD on the client's own data; the base class of most client methods.

    A subclass overrides `loss`, `gradient`, `after_step` or `trainable` and leaves the loop alone.
    Models with a `batched_gradients` method train `GROUP` clients in one matrix product; results
    then equal the loop's to 1e-5 of the largest weight. That path serves only where no hook is
    overridden.
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
        vectorise: bool | Literal["auto"] = "auto"  # several clients in one kernel

        def __post_init__(self) -> None:
            check(self.epochs >= 1, "epochs must be >= 1", self.epochs)
            check(self.steps is None or self.steps >= 1, "steps must be >= 1", self.steps)
            check(self.batch_size >= 1, "batch_size must be >= 1", self.batch_size)
            check(0 < self.lr < float("inf"), "lr must be > 0 and finite", self.lr)
            check(0 < self.lr_decay <= 1, "lr_decay must be in (0, 1]", self.lr_decay)
            check(0 <= self.momentum < 1, "momentum must be in [0, 1)", self.momentum)
            check(self.weight_decay >= 0, "weight_decay must be >= 0", self.weight_decay)
            check(
                self.clip_norm is None or self.clip_norm > 0,
                "clip_norm must be > 0",
                self.clip_norm,
            )

    HOOKS: ClassVar[tuple[str, ...]] = (
        "train", "fit", "loss", "gradient", "after_step", "trainable", "update"
    )  # fmt: skip

    def loss(self, fit: Fit, x: Tensor, y: Tensor) -> Tensor:
        """Return the loss of a batch, x (batch, C, H, W) and y (batch,): mean cross-entropy."""
        return F.cross_entropy(fit.ctx.model.module(x), y)

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

    def train(
        self, payload: Tree, state: Any, data: ClientData, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Any, Update]:
        ctx.model.load(payload["model"])
        fit, metrics = self.fit(payload, state, data.train, rng, ctx)
        return fit.state, Update(self.update(fit), float(len(data.train)), metrics)

    def fit(
        self, payload: Tree, state: Any, view: View, rng: torch.Generator, ctx: ClientContext
    ) -> tuple[Fit, dict[str, float]]:
        """Train what is in the resident model on a view (in place); return the fit and metrics.

        Raises:
            ValueError: the view is empty.
        """
        if len(view) == 0:
            raise ValueError(f"client {ctx.client_id} has no training samples")
        config = self.config
        names, parameters = [], []
        for name, parameter in zip(ctx.model.parameter_names, ctx.model.parameters, strict=True):
            wanted = self.trainable(name)
            parameter.requires_grad_(wanted)
            if wanted:
                names.append(name)
                parameters.append(parameter)
        lr = config.lr * config.lr_decay ** (ctx.round - 1)
        fit = Fit(ctx, payload, state, names, list(parameters), lr)
        ctx.model.module.train()
        total = torch.zeros((), device=ctx.device)
        steps, samples = 0, 0
        batches = view.batches(config.batch_size, rng, config.epochs, config.steps)
        for x, y in batches:
            loss = self.loss(fit, x, y)
            grads = list(torch.autograd.grad(loss, parameters))
            with torch.no_grad():
                self._step(fit, self.gradient(fit, grads))
                self.after_step(fit)
            total += loss.detach() * len(y)
            steps += 1
            samples += len(y)
        metrics = {
            "train_loss": float(total) / samples,
            "num_samples": float(len(view)),
            "num_steps": float(steps),
        }
        return fit, metrics

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

    def group_size(self, module: nn.Module) -> int:
        """Return `GROUP` where clients of this model can be trained together, else 1.

        Raises:
            InputError: `vectorise` is true and they can not.
        """
        wanted = self.config.vectorise
        changed = [h for h in self.HOOKS if getattr(type(self), h) is not getattr(LocalSGD, h)]
        able = hasattr(module, "batched_gradients") and not changed and not self.stateful
        if wanted is True and not able:
            why = f"{type(self).__name__} overrides {changed}" if changed else (
                f"the model {type(module).__name__} has no batched_gradients"
            )  # fmt: skip
            raise InputError(f"client.vectorise must be false or 'auto' here, got true: {why}")
        return GROUP if able and wanted is not False else 1

    def train_group(self, tasks: Sequence[Task]) -> list[tuple[Any, Update]]:
        config, ctx = self.config, tasks[0].ctx
        start: Params = tasks[0].payload["model"]
        base = start.flat.to(ctx.device)
        orders = [self._order(task) for task in tasks]
        # Longest first, so that the clients still at work are always the first rows.
        rank = sorted(range(len(tasks)), key=lambda i: -len(orders[i]))
        lengths = [len(orders[i]) for i in rank]
        lr = config.lr * config.lr_decay ** (ctx.round - 1)
        flat = base.expand(len(tasks), -1)  # every client starts from the same point
        losses = torch.zeros(len(tasks), device=ctx.device)
        velocity = torch.zeros(0)
        for step in range(lengths[0]):
            active = sum(1 for n in lengths if n > step)
            rows = [orders[i][step] for i in rank[:active]]
            x, y, share, sizes = _padded(rows, tasks[0].data.train, ctx.device)
            loss, grads = ctx.model.module.batched_gradients(flat[:active], x, y, share)
            losses[:active] += loss * sizes
            if config.clip_norm is not None:
                norms = torch.linalg.vector_norm(grads, dim=1, keepdim=True)
                grads *= (config.clip_norm / (norms + 1e-6)).clamp(max=1.0)
            if config.weight_decay:
                grads += config.weight_decay * flat[:active]
            if config.momentum:
                if step == 0:
                    velocity = grads
                else:
                    velocity[:active].mul_(config.momentum).add_(grads)
                grads = velocity[:active]
            if step == 0:
                flat = torch.add(flat, grads, alpha=-lr)
            else:
                flat[:active].add_(grads, alpha=-lr)
        results: list[tuple[Any, Update]] = [(None, Update({}, 0.0))] * len(tasks)
        shown = losses.tolist()
        rows_of = flat.cpu()
        for row, i in enumerate(rank):
            samples = len(tasks[i].data.train)
            seen = sum(len(batch) for batch in orders[i])
            metrics = {
                "train_loss": shown[row] / seen,
                "num_samples": float(samples),
                "num_steps": float(lengths[row]),
            }
            params = start.replace(rows_of[row])
            results[i] = (None, Update({"model": params}, float(samples), metrics))
        return results

    def _order(self, task: Task) -> list[Tensor]:
        """Return the rows of the data set in each batch, in the order the loop would take them."""
        view, config = task.data.train, self.config
        if len(view) == 0:
            raise ValueError(f"client {task.ctx.client_id} has no training samples")
        indices = torch.from_numpy(view.indices)
        per_epoch = -(-len(view) // config.batch_size)
        total = config.epochs * per_epoch if config.steps is None else config.steps
        batches: list[Tensor] = []
        while len(batches) < total:
            shuffled = indices[torch.randperm(len(view), generator=task.rng)]
            batches += shuffled.split(config.batch_size)
        return batches[:total]


def _padded(
    rows: list[Tensor], like: View, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gather one batch a client, padded to the longest with samples of no share in the loss.

    Returns inputs (clients, batch, C, H, W), labels and shares (clients, batch), sizes (clients,).
    """
    sizes = [len(r) for r in rows]
    longest = max(sizes)
    if min(sizes) == longest:
        index = torch.stack(rows)
        share = torch.full((len(rows), longest), 1.0 / longest)
    else:
        index = torch.stack([F.pad(r, (0, longest - len(r)), value=int(r[0])) for r in rows])
        share = torch.zeros(len(rows), longest)
        for i, n in enumerate(sizes):
            share[i, :n] = 1.0 / n
    view = View(like.split, index.flatten().numpy(), like.card, device)
    x = view.inputs()
    return (
        x.reshape(len(rows), longest, *x.shape[1:]),
        view.labels().view(len(rows), longest),
        share.to(device),
        torch.tensor(sizes, dtype=torch.float32, device=device),
    )
