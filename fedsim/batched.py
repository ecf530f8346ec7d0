"""Networks that train several clients in one kernel, each at parameters of its own.

Clients are the first dimension everywhere: `flat` is (clients, size), each row laid out as the
model's flat vector; inputs are (clients, batch, C, H, W), labels int64 (clients, batch). Batches
are padded to the longest; `share` (clients, batch) weighs the samples in a client's loss: 1 / batch
size, and 0 for padding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.models import BodyHead

Head = tuple[Tensor, Tensor]
"""Weights (clients, classes, d) and biases (clients, 1, classes) of linear classifiers."""


class Batched(BodyHead):
    """A body and a linear head without buffers; a subclass writes out the body's two passes.

    `sample_bytes` are the bytes of the largest activation of one sample.
    """

    def __init__(
        self, body: nn.Module, num_features: int, num_classes: int, sample_bytes: int
    ) -> None:
        super().__init__(body, num_features, num_classes)
        self.sample_bytes = sample_bytes
        self._head_shape = num_classes, num_features
        weights = sum(p.numel() for p in body.parameters())
        biases = weights + num_classes * num_features
        self._head_weights = slice(weights, biases)
        self._head_biases = slice(biases, biases + num_classes)

    def batched_features(self, flat: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        """Return features (clients, batch, d), and what `batched_backward` needs of this pass."""
        raise NotImplementedError(f"{type(self).__name__} writes out no forward pass")

    def batched_backward(self, flat: Tensor, tape: Any, delta: Tensor, gradient: Tensor) -> None:
        """Write the body's part of `gradient` (clients, size), given the features' own, `delta`."""
        raise NotImplementedError(f"{type(self).__name__} writes out no backward pass")

    def batched_head(self, flat: Tensor) -> Head:
        """Return the clients' classifiers, views of `flat`."""
        weights = flat[:, self._head_weights].unflatten(1, self._head_shape)
        return weights, flat[:, self._head_biases].unsqueeze(1)

    def head_gradients(
        self, flat: Tensor, features: Tensor, y: Tensor, share: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses (clients,) and the gradients of the features; write those of the head.

        The loss is the cross-entropy of any features (clients, rows, d) with labels and shares.
        """
        weights, biases = self.batched_head(flat)
        losses, delta = cross_entropies(classify((weights, biases), features), y, share)
        into, shifts = self.batched_head(gradient)
        torch.bmm(delta.mT, features, out=into)
        torch.sum(delta, 1, keepdim=True, out=shifts)
        return losses, torch.bmm(delta, weights)

    @torch.no_grad()
    def batched_gradients(
        self, flat: Tensor, x: Tensor, y: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the cross-entropies (clients,) and their gradients (clients, size)."""
        gradient = torch.empty_like(flat, memory_format=torch.contiguous_format)
        features, tape = self.batched_features(flat, x)
        losses, delta = self.head_gradients(flat, features, y, share, gradient)
        self.batched_backward(flat, tape, delta, gradient)
        return losses, gradient


def classify(head: Head, features: Tensor) -> Tensor:
    """Return logits (clients, rows, classes) of features (clients, rows, d)."""
    return torch.baddbmm(head[1], features, head[0].mT)


def cross_entropies(logits: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted cross-entropies (clients,) and their gradients by the logits."""
    log_probabilities = F.log_softmax(logits, dim=2)
    picked = log_probabilities.gather(2, y.unsqueeze(2)).squeeze(2)
    losses = -(picked * share).sum(1)
    delta = log_probabilities.exp_()
    minus = delta.new_full((), -1.0).expand(*y.shape, 1)
    delta.scatter_add_(2, y.unsqueeze(2), minus)
    delta *= share.unsqueeze(2)
    return losses, delta
