"""Playing a client's round by hand, to compare with loops written out in a test."""

from __future__ import annotations

import copy
from typing import Any

import torch

import fedsim
from fedsim.client import ClientContext, Update
from fedsim.components import build
from fedsim.data.views import ClientData
from fedsim.engine.jobs import Assignment, Block, WorkerSpec
from fedsim.engine.worker import Worker
from fedsim.params import Params
from tests.support.runs import prepared


class Player:
    """One worker with a client method, and what a test needs around it."""

    def __init__(self, **changes: Any) -> None:
        self.experiment = prepared(**changes)
        self.worker = Worker(WorkerSpec(self.experiment))
        self.manifest = build.build_partition(self.experiment, self.worker.dataset)
        self.client: Any = self.worker.client
        self.initial: Params = self.worker.model.params()

    def context(self, client: int = 0, round: int = 1) -> ClientContext:
        return self.worker.context(Block(0, round, "train"), client)

    def data(self, client: int = 0) -> ClientData:
        return self.worker.data(Assignment(client, self.manifest.client(client)))

    def rng(self, client: int = 0, round: int = 1) -> torch.Generator:
        return fedsim.rng.torch_generator(0, "client", round, client)

    def train(
        self, model: Params, state: Any = None, client: int = 0, round: int = 1
    ) -> tuple[Any, Update]:
        """Train a client from a model; without a state from the method's first one."""
        context = self.context(client, round)
        if state is None and self.client.stateful:
            state = self.client.init_state(context)
        payload = {"model": model}
        return self.client.train(
            payload, state, self.data(client), self.rng(client, round), context
        )

    def module(self, model: Params) -> torch.nn.Module:
        """Return an independent module with these weights, in training mode."""
        module = copy.deepcopy(self.worker.model.module)
        module.load_state_dict({name: model[name].clone() for name in model}, strict=False)
        return module.train().requires_grad_()

    def batches(self, epochs: int = 1, client: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the batches that the first round of training goes through."""
        size = self.experiment.client.options["batch_size"]
        return list(self.data(client).train.batches(size, self.rng(client), epochs))


def changed(params: Params, scale: float = 0.05, seed: int = 7) -> Params:
    """Return other weights near these."""
    noise = torch.randn(params.flat.shape, generator=torch.Generator().manual_seed(seed))
    return params.replace(params.flat + scale * noise)


def assert_weights(params: Params, module: torch.nn.Module, tolerance: float = 1e-5) -> None:
    """Assert that a module's tensors are those of `params`."""
    for name, tensor in module.state_dict().items():
        torch.testing.assert_close(
            params[name], tensor, rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )
