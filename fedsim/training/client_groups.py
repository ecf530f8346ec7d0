"""Training of several clients at once: one batched step of SGD for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.client import ClientContext, GroupUpdate, Task
from fedsim.data.partition import Modality
from fedsim.data.views import View
from fedsim.params import Params, Rows

GROUP_BYTES = 12 * 2**20
"""Memory for the gradients of the clients that are trained at once; fits the caches of a core."""

GROUP_SAMPLE_BYTES = 3 * 2**20
"""Memory for the largest activation of the clients' batches; beyond it grouping costs time."""

GROUP_CLIENTS = 50
"""Clients trained at once at most; a cohort of 100 is then two even groups."""


@dataclass
class Batch:
    """One padded batch for the clients that still have steps left.

    `x` (clients, batch, C, H, W) and `y` int64 (clients, batch) are padded to the longest batch.
    `share` (clients, batch) weighs samples in a client's mean: 1 / batch size, and 0 for padding.
    `sizes` (clients,) and `lengths` are the batch sizes.
    """

    x: Tensor
    y: Tensor
    share: Tensor
    sizes: Tensor
    lengths: list[int]


@dataclass
class GroupFit:
    """The training of a group under way, as the methods of `GroupTraining` see it.

    Clients are rows, most steps first, so that those at work are always the first rows; `tasks` are
    in that order. `flat` (clients, size) are their models, which all start from `start`.
    """

    ctx: ClientContext  # of the first client; what differs between clients is in `tasks`
    tasks: list[Task]
    start: Params
    flat: Tensor
    lr: float
    scratch: dict[str, Any] = field(default_factory=dict)  # what hooks keep between steps


class Orders:
    """Which samples several clients train on in each step, in the order the loop would take them.

    Rows are the clients, most steps first, so that those still at work are always the first rows;
    `row_of` gives the row of each task and `task_of` the task of each row; `num_steps` and
    `num_seen` (samples over all steps) are lists over rows.
    """

    def __init__(
        self, tasks: Sequence[Task], batch_size: int, epochs: int, steps: int | None
    ) -> None:
        self._view = tasks[0].data.train
        counts = [task.data.num_train for task in tasks]
        for task, count in zip(tasks, counts, strict=True):
            if count == 0:
                raise ValueError(f"client {task.ctx.client_id} has no training samples")
        totals = [steps or epochs * -(-n // batch_size) for n in counts]
        ranked = sorted(range(len(tasks)), key=lambda i: (-totals[i], i))
        self.task_of = ranked
        self.row_of = [0] * len(tasks)
        for row, i in enumerate(ranked):
            self.row_of[i] = row
        self.num_steps = [totals[i] for i in ranked]
        self.num_seen = [0] * len(tasks)
        table = np.full((len(tasks), self.num_steps[0] * batch_size), -1)
        for row, i in enumerate(ranked):
            data, generator, n = tasks[i].data, tasks[i].rng, counts[i]
            for step in range(0, totals[i], -(-n // batch_size)):  # the first one of each epoch
                order = torch.randperm(n, generator=generator).numpy()
                begin, size = step * batch_size, min(n, (totals[i] - step) * batch_size)
                table[row, begin : begin + size] = data.train_rows[order[:size]]
                self.num_seen[row] += size
        steps_first = table.reshape(len(tasks), -1, batch_size).transpose(1, 0, 2).copy()
        some = steps_first >= 0
        lengths = some.sum(2, dtype=np.float32)
        self._lengths = lengths
        self._share = some / np.maximum(lengths, 1)[:, :, None]
        self._table = np.where(some, steps_first, steps_first[:, :, :1])
        self._active = (lengths > 0).sum(1).tolist()
        self._longest = lengths.max(1).astype(int).tolist()
        # What one of them may not read fails for the group; each is then trained alone.
        self._labelled = all(task.data.labelled for task in tasks)
        texts_only = any(task.data.modality == "text" for task in tasks)
        self._modality: Modality = "text" if texts_only else "all"

    def batch(self, step: int, device: torch.device) -> Batch:
        """Return the batch of a step."""
        shape = active, longest = self._active[step], self._longest[step]
        index = self._table[step, :active, :longest]
        share = torch.from_numpy(np.ascontiguousarray(self._share[step, :active, :longest]))
        sizes = self._lengths[step, :active]
        view = View(
            self._view.split,
            index.ravel(),
            self._view.card,
            device,
            labelled=self._labelled,
            modality=self._modality,
        )
        x = view.inputs()
        return Batch(
            x.reshape(*shape, *x.shape[1:]),
            view.labels().view(shape),
            share.to(device),
            torch.from_numpy(sizes).to(device),
            [int(size) for size in sizes],
        )


class GroupTraining:
    """SGD on several clients at once, a row each, for models that write out batched passes.

    Class attributes:
        passes: the methods that a model needs for it.
    """

    passes: ClassVar[tuple[str, ...]] = ("batched_gradients",)

    def __init__(self, client: Any) -> None:
        """Train the clients of a `LocalSGD` method."""
        self.client = client
        self.config = client.config

    def size(self, module: Any) -> int:
        """Return how many clients are trained at once, at least 1."""
        batch_bytes = self.config.batch_size * int(getattr(module, "sample_bytes", 1))
        sizes = GROUP_BYTES // self.client_bytes(module), GROUP_SAMPLE_BYTES // batch_bytes
        return max(1, min(GROUP_CLIENTS, *sizes))

    def client_bytes(self, module: Any) -> int:
        """Return the bytes of all parameters that one client trains."""
        return sum(4 * parameter.numel() for parameter in module.parameters())

    def train(self, tasks: Sequence[Task]) -> GroupUpdate:
        """Train several clients of one block; see `Client.train_group`.

        Raises:
            ValueError: the payload has a part of the model only.
        """
        config, ctx = self.config, tasks[0].ctx
        start: Params = tasks[0].payload["model"]
        if start.layout != ctx.model.layout:
            raise ValueError("clients train in a group only where the payload has the whole model")
        orders = Orders(tasks, config.batch_size, config.epochs, config.steps)
        lr = config.lr * config.lr_decay ** (ctx.round - 1)
        flat = start.flat.to(ctx.device).expand(len(tasks), -1)  # all start from one point
        fit = GroupFit(ctx, [tasks[i] for i in orders.task_of], start, flat, lr)
        self.start(fit)
        losses = torch.zeros(len(tasks), device=ctx.device)
        velocity = torch.zeros(0)
        for step in range(orders.num_steps[0]):
            batch = orders.batch(step, ctx.device)
            active = len(batch.y)
            loss, grads = self.gradients(fit, batch)
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
            self.after_step(fit, batch)
        seen = zip(losses.tolist(), orders.num_seen, strict=True)
        metrics = [{"train_loss": loss / samples} for loss, samples in seen]
        return self.update(fit, metrics).take(orders.row_of)

    def start(self, fit: GroupFit) -> None:
        """Prepare what the other methods need."""

    def gradients(self, fit: GroupFit, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the losses of the clients at work and their gradients (clients, size).

        Both tensors may be changed afterwards.
        """
        module: Any = fit.ctx.model.module
        found: tuple[Tensor, Tensor] = module.batched_gradients(
            fit.flat[: len(batch.y)], batch.x, batch.y, batch.share
        )
        return found

    def after_step(self, fit: GroupFit, batch: Batch) -> None:
        """Act on the models of the clients at work after each step."""

    def update(self, fit: GroupFit, metrics: list[dict[str, float]]) -> GroupUpdate:
        """Return what the clients send, whole models by default, and the states they keep."""
        weights = [float(task.data.num_train) for task in fit.tasks]
        states = [task.state for task in fit.tasks]
        return GroupUpdate({"model": Rows(fit.start, fit.flat.cpu())}, weights, metrics, states)
