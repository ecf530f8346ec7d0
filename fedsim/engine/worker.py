"""A worker: executes blocks, in a process of its own or in the driver.

A worker keeps nothing between blocks but what is the same for every client. Client states come
with the block and go back with it.
"""

from __future__ import annotations

import sys
import time
from typing import Protocol

import numpy as np
import torch

from fedsim.engine.jobs import Block, BlockResult, WorkerSpec
from fedsim.engine.methods import MethodRunner
from fedsim.engine.resources import Resources
from fedsim.evaluate.scoring import scorer_of
from fedsim.flower.contracts import is_client_app
from fedsim.params.trees import Tree


class Runner(Protocol):
    """Runs the clients of a block: methods of ours or Flower's ClientApps."""

    def run(self, block: Block, payload: Tree) -> BlockResult:
        """Return what the clients report; failures of single clients are part of it."""


class Worker(Resources):
    """Executes blocks for one experiment on one device."""

    def __init__(self, spec: WorkerSpec, device: str = "cpu") -> None:
        for path in spec.search_path:
            if path not in sys.path:
                sys.path.append(path)
        super().__init__(spec, device)
        self._runner = self._make_runner()

    def _make_runner(self) -> Runner:
        if not is_client_app(self.client):
            return MethodRunner(self)
        from fedsim.engine.client_app import AppRunner  # imports flwr, which methods do without

        return AppRunner(self)

    def run(self, block: Block, payload: Tree) -> BlockResult:
        """Execute a block; failures of single clients are part of the answer."""
        started = time.perf_counter()
        with torch.random.fork_rng(devices=[]):
            if block.kind == "score":
                result = self._score(block, payload)
            else:
                result = self._runner.run(block, payload)
        result.seconds = time.perf_counter() - started
        return result

    def _score(self, block: Block, payload: Tree) -> BlockResult:
        self.restore_model()
        self.model.load(payload["model"])
        if block.rows is None:
            view = self.test_view(np.arange(*block.shard))
        else:
            view = self.train_view(block.rows)
        tally = scorer_of(self.model.module).tally(
            self.model.module,
            view,
            self.dataset.num_classes,
            self.experiment.evaluation.batch_size,
            features=self.experiment.evaluation.features,
        )
        return BlockResult(block.index, [], tally=tally)
