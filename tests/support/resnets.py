"""State dicts of residual networks as torchvision writes them, with random numbers in them."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


def torchvision_state(depth: int, classes: int = 1000, flat: bool = False) -> dict[str, Tensor]:
    """Return what ``torchvision.models.resnet<depth>().state_dict()`` has: names and shapes.

    With `flat` each tensor is one random number, repeated, so that a file of them is small.
    """
    generator = torch.Generator().manual_seed(depth)
    state: dict[str, Tensor] = {}

    def uniform(name: str, *shape: int, low: float, high: float) -> None:
        drawn = torch.rand(() if flat else shape, generator=generator) * (high - low) + low
        state[name] = drawn.expand(shape)

    def convolution(name: str, outputs: int, inputs: int, kernel: int) -> None:
        bound = (6 / (inputs * kernel**2)) ** 0.5
        uniform(f"{name}.weight", outputs, inputs, kernel, kernel, low=-bound, high=bound)

    def norm(name: str, channels: int) -> None:
        uniform(f"{name}.weight", channels, low=0.4, high=0.6)
        uniform(f"{name}.bias", channels, low=-0.2, high=0.2)
        uniform(f"{name}.running_mean", channels, low=-0.2, high=0.2)
        uniform(f"{name}.running_var", channels, low=0.5, high=1.5)
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("conv1", 64, 3, 7)
    norm("bn1", 64)
    inputs, expansion = 64, 1 if depth < 50 else 4
    for stage, blocks in enumerate(BLOCKS[depth], start=1):
        inner = 32 * 2**stage
        for i in range(blocks):
            at = f"layer{stage}.{i}"
            if expansion == 1:
                kernels = ((inputs, inner, 3), (inner, inner, 3))
            else:
                kernels = ((inputs, inner, 1), (inner, inner, 3), (inner, 4 * inner, 1))
            for k, (before, after, kernel) in enumerate(kernels, start=1):
                convolution(f"{at}.conv{k}", after, before, kernel)
                norm(f"{at}.bn{k}", after)
            if inputs != expansion * inner:
                convolution(f"{at}.downsample.0", expansion * inner, inputs, 1)
                norm(f"{at}.downsample.1", expansion * inner)
            inputs = expansion * inner
    uniform("fc.weight", classes, inputs, low=-0.1, high=0.1)
    uniform("fc.bias", classes, low=-0.1, high=0.1)
    return state
