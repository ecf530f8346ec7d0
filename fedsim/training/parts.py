"""Training of one part of a resident model, with an optimiser whose state outlives the round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fedsim.params import FlatModel, Params
from fedsim.params.filters import under
from fedsim.training.optimisers import Optimiser, OptimiserState, on_device


class PartTraining:
    """Gradient steps on the submodule `name` of a resident model, which is left in place.

    `module` is that submodule; `state` is the optimiser's from the last round, empty at first.
    """

    def __init__(
        self, model: FlatModel, name: str, optimiser: Optimiser, lr: float, state: OptimiserState
    ) -> None:
        self.module: Any = model.module.get_submodule(name)
        self._model, self._belongs = model, under((name,))
        named = zip(model.parameter_names, model.parameters, strict=True)
        self._parameters = {n: p for n, p in named if self._belongs(n)}
        self._optimiser, self._lr = optimiser, lr
        self._state = on_device(state, model.flat.device)

    def step(self, loss: Tensor) -> None:
        """Move the part along the gradient of a loss; what the loss does not use stays."""
        names, parameters = list(self._parameters), list(self._parameters.values())
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        self._optimiser.step(parameters, gradients, names, self._lr, self._state)

    def params(self) -> Params:
        """Return a CPU copy of the part, under its full names."""
        return self._model.params().only(self._belongs)

    def state(self) -> OptimiserState:
        """Return a CPU copy of the optimiser's state."""
        return on_device(self._state, "cpu")
