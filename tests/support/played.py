"""Playing a client's round by hand, to compare with loops written out in a test."""

from __future__ import annotations

import copy
from typing import Any

import torch

from fedsim.client import Update
from fedsim.params import Params
from fedsim.testing import Scene
from tests.support.runs import prepared


class Player(Scene):
    """A tiny experiment with these changes, played by hand."""

    def __init__(self, **changes: Any) -> None:
        super().__init__(prepared(**changes))

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
