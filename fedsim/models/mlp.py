"""Multi-layer perceptrons; many clients can train in one matrix product."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from fedsim.errors import check
from fedsim.models.blocks.batched import Batched
from fedsim.models.blocks.body_head import check_images


class _MLP(Batched):
    def __init__(self, sizes: list[int], num_classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), sizes[-1], num_classes, 4 * max(sizes))
        self._sizes = sizes

    def batched_features(self, flat: Tensor, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        activations = [x.flatten(2)]
        for weights, biases in self._layers(flat):
            activations.append(torch.baddbmm(biases, activations[-1], weights.mT).relu_())
        return activations[-1], activations

    def batched_backward(
        self, flat: Tensor, tape: list[Tensor], delta: Tensor, gradient: Tensor
    ) -> None:
        layers = [*zip(self._layers(flat), self._layers(gradient), strict=True)]
        for i in reversed(range(len(layers))):
            (weights, _), (into, shifts) = layers[i]
            delta = delta.masked_fill_(tape[i + 1] <= 0, 0.0)
            torch.bmm(delta.mT, tape[i], out=into)
            torch.sum(delta, 1, keepdim=True, out=shifts)
            if i > 0:
                delta = torch.bmm(delta, weights)

    def _layers(self, flat: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the weights (clients, outputs, inputs) and biases (clients, 1, outputs)."""
        layers, begin = [], 0
        for inputs, outputs in pairwise(self._sizes):
            biases = begin + inputs * outputs
            weights = flat[:, begin:biases].unflatten(1, (outputs, inputs))
            begin = biases + outputs
            layers.append((weights, flat[:, biases:begin].unsqueeze(1)))
        return layers


def mlp(
    input_shape: tuple[int, int, int], num_classes: int, *, hidden: tuple[int, ...] = (64,)
) -> nn.Module:
    """A multi-layer perceptron with ReLU and these hidden widths.

    Raises:
        InputError: no hidden layer, a width below 1, or a data set of texts.
    """
    check_images("mlp", input_shape)
    check(len(hidden) >= 1, "hidden must name at least one layer", hidden)
    check(min(hidden) >= 1, "hidden widths must be >= 1", hidden)
    channels, height, width = input_shape
    return _MLP([channels * height * width, *hidden], num_classes)
