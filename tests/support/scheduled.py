"""A scheduler over digits whose MLP is large enough for a block a client or two."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsim.components import build
from fedsim.data.partition import Manifest
from fedsim.engine.jobs import Block, BlockResult, WorkerSpec
from fedsim.engine.schedule import Dispatch, Plan, Scheduler
from fedsim.engine.screening import RoundScreen
from fedsim.engine.serial_executor import SerialExecutor
from fedsim.runs.client_states import StateStore
from tests.support.runs import prepared


class Shuffled:
    """Runs blocks one by one and hands the results over in a random order."""

    def __init__(self, inner: SerialExecutor, seed: int | None) -> None:
        self.inner, self.seed = inner, seed
        self.events: list[Any] = []
        self.num_workers = 1
        self.when_waiting = lambda: None
        self.seen: list[list[int]] = []

    def run(self, blocks: list[Block], payload: Any) -> Iterator[BlockResult]:
        self.seen = [b.client_ids for b in blocks]
        results = list(self.inner.run(blocks, payload))
        if self.seed is not None:
            random.Random(self.seed).shuffle(results)
        yield from results

    def close(self) -> None:
        self.inner.close()


class Scheduled:
    """Schedulers of one experiment of eight clients, on one worker."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        changes = {"model": {"name": "mlp", "hidden": [256]}, **changes}
        self.experiment = prepared(**changes, client={"vectorise": False})
        self.executor = SerialExecutor(WorkerSpec(self.experiment))
        self.worker = self.executor._worker
        self.model = self.worker.model.params()
        self.manifest: Manifest = build.build_partition(self.experiment, self.worker.dataset)
        self.folder = tmp_path
        self._shuffled = Shuffled(self.executor, None)

    @property
    def seen(self) -> list[list[int]]:
        """The clients of each block of the latest plan."""
        return self._shuffled.seen

    def scheduler(self, seed: int | None = None) -> Scheduler:
        """Return a scheduler whose executor answers in an order drawn from `seed`."""
        self._shuffled = Shuffled(self.executor, seed)
        screen = RoundScreen(self.experiment.screening)
        states = StateStore(self.folder)
        size = self.model.flat.numel()
        return Scheduler(self._shuffled, self.manifest, states, screen, size)

    def plan(self, cohort: Sequence[int], mean: bool = True) -> Plan:
        """Return a plan that sends the initial model to a cohort."""
        dispatch = Dispatch(cohort, {"model": self.model}, self.model.num_bytes())
        return Plan(1, True, [dispatch], mean)
