"""Networks that train several clients in one kernel, each with its own parameters.

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

from fedsim.models.blocks.body_head import BodyHead

Head = tuple[Tensor, Tensor]
"""Weights (clients, classes, d) and biases (clients, classes, 1) of linear classifiers."""


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
        """Return features (clients, batch, d), and the record that `batched_backward` needs."""
        raise NotImplementedError(f"{type(self).__name__} defines no batched_features")

    def batched_backward(self, flat: Tensor, tape: Any, delta: Tensor, gradient: Tensor) -> None:
        """Write the body's part of `gradient` (clients, size); `delta` is that of the features."""
        raise NotImplementedError(f"{type(self).__name__} defines no batched_backward")

    def batched_head(self, flat: Tensor) -> Head:
        """Return the clients' classifiers, views of `flat`."""
        weights = flat[:, self._head_weights].unflatten(1, self._head_shape)
        return weights, flat[:, self._head_biases].unsqueeze(2)

    def head_gradients(
        self, flat: Tensor, features: Tensor, y: Tensor, share: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses (clients,) and the gradients of the features; write those of the head.

        The loss is the cross-entropy of any features (clients, rows, d) with labels and shares.
        """
        head, into = self.batched_head(flat), self.batched_head(gradient)
        losses, delta = cross_entropies(classify(head, features), y, share)
        into[0].copy_(torch.bmm(delta, features))  # faster than writing it there directly
        torch.sum(delta, 2, keepdim=True, out=into[1])
        return losses, torch.bmm(delta.mT, head[0])

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
    """Return logits (clients, classes, rows) of features (clients, rows, d).

    A softmax over a few classes is an order of magnitude faster when they are not the last
    dimension.
    """
    return torch.baddbmm(head[1], head[0], features.mT)


def cross_entropies(logits: Tensor, y: Tensor, share: Tensor) -> tuple[Tensor, Tensor]:
    """Return weighted cross-entropies (clients,) and their gradients by the logits.

    Logits are (clients, classes, rows), labels and shares (clients, rows).
    """
    log_probabilities, y = F.log_softmax(logits, dim=1), y.unsqueeze(1)
    losses = -(log_probabilities.gather(1, y).squeeze(1) * share).sum(1)
    delta = log_probabilities.exp_()
    delta.scatter_add_(1, y, delta.new_full((), -1.0).expand(y.shape))
    return losses, delta.mul_(share.unsqueeze(1))
