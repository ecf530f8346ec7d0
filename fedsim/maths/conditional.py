"""Two-layer networks that map a vector and a class to features of a model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import rng
from fedsim.params import FlatModel, Params

_MOMENTUM = 0.1  # of the running statistics, as in torch


class Conditional(nn.Module):
    """concat(x, one-hot y) -> Linear -> BatchNorm -> ReLU -> Linear -> BatchNorm [-> ReLU].

    x is (batch, inputs), y int64 (batch,); the result (batch, outputs), >= 0 with `positive`.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, num_classes: int, positive: bool
    ) -> None:
        super().__init__()
        self.inputs = inputs
        self.first = nn.Linear(inputs + num_classes, hidden)
        self.first_norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, outputs)
        self.last_norm = nn.BatchNorm1d(outputs)
        self.positive = positive

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        weight = self.first.weight
        # A one-hot input picks a column of the weight.
        first = F.linear(x, weight[:, : self.inputs], self.first.bias)
        first = first + weight[:, self.inputs :].T.index_select(0, y)
        h = F.relu(self._normed(self.first_norm, first))
        out = self._normed(self.last_norm, F.linear(h, self.last.weight, self.last.bias))
        return F.relu(out) if self.positive else out

    def _normed(self, norm: nn.BatchNorm1d, x: Tensor) -> Tensor:
        """Apply a BatchNorm in this network's mode; batches are not counted, as nothing asks."""
        statistics = norm.running_mean, norm.running_var
        return F.batch_norm(x, *statistics, norm.weight, norm.bias, self.training, _MOMENTUM)


def generator_network(dim: int, noise: int, num_classes: int) -> Conditional:
    """Return FRAug's generator g: noise (batch, noise) and classes to features (batch, dim)."""
    return Conditional(noise, dim, dim, num_classes, positive=True)


def transformation_network(dim: int, noise: int, num_classes: int) -> Conditional:
    """Return FRAug's RTNet r: features (batch, dim) and classes to residuals (batch, dim)."""
    return Conditional(dim, noise, dim, num_classes, positive=False)


def initial_weights(network: Conditional, seed: int, purpose: str, client: int = -1) -> Params:
    """Return weights as torch draws them, from the stream (seed, purpose, client)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.derive(seed, purpose, 0, client))
        for layer in (network.first, network.last):
            layer.reset_parameters()
    for norm in (network.first_norm, network.last_norm):
        norm.reset_parameters()
    return FlatModel(network).params()
