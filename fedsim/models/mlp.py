"""Multi-layer perceptrons, which can also train many clients in one matrix product."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import check
from fedsim.models import BodyHead, check_images


class _MLP(BodyHead):
    def __init__(self, sizes: list[int], num_classes: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        super().__init__(nn.Sequential(*layers), sizes[-1], num_classes)
        self._sizes = [*sizes, num_classes]
        self.sample_bytes = 4 * max(sizes)

    def batched_gradients(
        self, flat: Tensor, x: Tensor, y: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and gradients of several clients, each at parameters of its own.

        `flat` is (clients, size), each row laid out as the model's flat vector; `x` is (clients,
        batch, C, H, W), `y` int64 (clients, batch). `share` (clients, batch) weighs the samples in
        a client's loss: 1 / batch size, and 0 for padding. Returns the losses (clients,) and the
        gradients (clients, size) of the cross-entropies.
        """
        clients, batch = y.shape
        gradient = torch.empty_like(flat)
        weights: list[Tensor] = []
        biases: list[Tensor] = []
        gradient_weights: list[Tensor] = []
        gradient_biases: list[Tensor] = []
        offset = 0
        for inputs, outputs in pairwise(self._sizes):
            size = inputs * outputs
            for source, kernels, shifts in (
                (flat, weights, biases),
                (gradient, gradient_weights, gradient_biases),
            ):
                kernel = source[:, offset : offset + size].view(clients, outputs, inputs)
                kernels.append(kernel)
                shifts.append(source[:, offset + size : offset + size + outputs].unsqueeze(1))
            offset += size + outputs
        activations = [x.reshape(clients, batch, -1)]
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            z = torch.baddbmm(bias, activations[-1], weight.mT)
            activations.append(z if i == len(weights) - 1 else z.relu_())
        log_probabilities = F.log_softmax(activations[-1], dim=2)
        picked = log_probabilities.gather(2, y.unsqueeze(2)).squeeze(2)
        losses = -(picked * share).sum(1)
        delta = log_probabilities.exp_()
        delta.scatter_add_(2, y.unsqueeze(2), delta.new_full((), -1.0).expand(clients, batch, 1))
        delta *= share.unsqueeze(2)
        for i in reversed(range(len(weights))):
            torch.bmm(delta.mT, activations[i], out=gradient_weights[i])
            torch.sum(delta, 1, keepdim=True, out=gradient_biases[i])
            if i > 0:
                delta = torch.bmm(delta, weights[i])
                delta.masked_fill_(activations[i] <= 0, 0.0)
        return losses, gradient


def mlp(
    input_shape: tuple[int, int, int], num_classes: int, *, hidden: tuple[int, ...] = (64,)
) -> nn.Module:
    """A multi-layer perceptron with ReLU and the hidden widths given.

    Raises:
        InputError: no hidden layer, a width below 1, or a data set of texts.
    """
    check_images("mlp", input_shape)
    check(len(hidden) >= 1, "hidden must name at least one layer", hidden)
    check(min(hidden) >= 1, "hidden widths must be >= 1", hidden)
    channels, height, width = input_shape
    return _MLP([channels * height * width, *hidden], num_classes)
