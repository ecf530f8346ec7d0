"""Several clients trained at once: the batches of each step, and the training under way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.client import ClientContext, Task
from fedsim.data.partition import Modality
from fedsim.data.views import View
from fedsim.params import Params


@dataclass
class Batch:
    """What the clients at work in a step train on; the others are done.

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
    """One local training of a group under way, as the hooks for groups see it.

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
        """Return what the clients at work in this step train on."""
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
