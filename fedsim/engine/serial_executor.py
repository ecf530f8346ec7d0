"""The serial executor, the reference: all blocks in this process, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from fedsim.engine.jobs import Block, BlockResult, EngineEvent, WorkerSpec
from fedsim.engine.process import keep_memory, serial_device
from fedsim.engine.worker import Worker
from fedsim.params.trees import Tree


class SerialExecutor:
    """Runs blocks in the driver, with one intra-op thread like every worker."""

    def __init__(self, spec: WorkerSpec) -> None:
        """Build the worker.

        Raises:
            InputError: more GPUs than this machine has.
        """
        device = serial_device(spec.experiment.engine.gpus)
        self.events: list[EngineEvent] = []
        self.when_waiting: Callable[[], None] = lambda: None
        self.num_workers = 1
        self._threads = torch.get_num_threads()
        torch.set_num_threads(1)
        keep_memory()
        self._worker = Worker(spec, device)

    def run(self, blocks: list[Block], payload: Tree) -> Iterator[BlockResult]:
        """Yield the results in the order of the blocks."""
        self.when_waiting()
        for block in blocks:
            yield self._worker.run(block, payload)

    def close(self) -> None:
        """Restore the number of threads."""
        torch.set_num_threads(self._threads)
