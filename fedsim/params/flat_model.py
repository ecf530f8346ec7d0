"""A resident module whose tensors are views into one vector."""

from __future__ import annotations

import torch
from torch import nn

from fedsim.params import protocol
from fedsim.params.filters import under
from fedsim.params.vector import Layout, Params, tensors_digest


class FlatModel:
    """A module whose parameters and float buffers are views of one resident vector.

    Tensors under the names in the module's attribute `frozen` (`fedsim.params.protocol`), such as
    ``("body.backbone",)``, are never trained and no part of the vector: they are not sent, kept or
    saved, and have no gradient.

    Loading a model is one copy, reading it back is one copy, and a plain SGD step over the
    whole model can be one vector operation. `module` is the module given, changed in place.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        self.module = module.to(device)
        frozen = under(protocol.frozen(module))
        tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.frozen = {name: tensor for name, tensor in tensors.items() if frozen(name)}
        for tensor in self.frozen.values():
            tensor.requires_grad_(False)
        parameters = {n: p for n, p in module.named_parameters() if not frozen(n)}
        buffers = {n: b for n, b in module.named_buffers() if not frozen(n)}
        floats = {k: b for k, b in buffers.items() if b.is_floating_point()}
        integers = {k: b for k, b in buffers.items() if not b.is_floating_point()}
        named = {**parameters, **floats}
        self.layout = Layout(
            names=tuple(named),
            shapes=tuple(tuple(t.shape) for t in named.values()),
            num_parameters=len(parameters),
            integers=tuple(integers),
        )
        self.flat = torch.empty(self.layout.size, dtype=torch.float32, device=device)
        self._integers = integers
        views = self.layout.views(self.flat)
        with torch.no_grad():
            for name, tensor in named.items():
                views[name].copy_(tensor)
                tensor.data = views[name]
        self.parameters: list[nn.Parameter] = list(parameters.values())
        self.parameter_names: list[str] = list(parameters)

    def load(self, params: Params) -> None:
        """Copy `params` into the resident model; what a part of a model lacks stays as it is.

        Raises:
            KeyError: a name that the model does not have.
        """
        if params.layout != self.layout:
            views = self.layout.views(self.flat)
            for name in params.layout.names:
                views[name].copy_(params[name])
            for name, value in params.integers.items():
                self._integers[name].copy_(value)
            return
        self.flat.copy_(params.flat)
        for name, buffer in self._integers.items():
            buffer.copy_(params.integers[name])

    def frozen_digest(self) -> str:
        """Return the sha256 (hex) of the frozen tensors; empty if there are none."""
        return tensors_digest(self.frozen) if self.frozen else ""

    def params(self) -> Params:
        """Return a CPU copy of what the model holds now."""
        return Params(
            self.layout,
            self.flat.detach().to("cpu", copy=True),
            {k: b.detach().to("cpu", copy=True) for k, b in self._integers.items()},
        )
