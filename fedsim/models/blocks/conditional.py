"""Class-conditional two-layer networks: a vector and a class to a model's features.

`Conditional` is one as a module; `Stack` holds those of several clients and writes out their
passes, because autograd's record of so small networks costs more than the arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import rng
from fedsim.params import FlatModel, Params, Rows

_MOMENTUM = 0.1  # of the running statistics, as in torch
_EPS = 1e-5  # added to variances, as in torch

_aten = torch.ops.aten


class Conditional(nn.Module):
    """concat(x, one-hot y) -> Linear -> BatchNorm -> ReLU -> Linear -> BatchNorm [-> ReLU].

    x is (batch, inputs), y int64 (batch,); the result (batch, outputs), >= 0 with `positive`.
    """

    def __init__(
        self, inputs: int, hidden: int, outputs: int, num_classes: int, positive: bool
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.first = nn.Linear(inputs + num_classes, hidden)
        self.first_norm = nn.BatchNorm1d(hidden)
        self.last = nn.Linear(hidden, outputs)
        self.last_norm = nn.BatchNorm1d(outputs)
        self.positive = positive

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = self.first(torch.cat([x, F.one_hot(y, self.num_classes).to(x.dtype)], dim=1))
        h = F.relu(self.first_norm(first))
        out: Tensor = self.last_norm(self.last(h))
        return F.relu(out) if self.positive else out


@dataclass
class _Layer:
    """Views of a Linear, its weight (clients, outputs, inputs), and a BatchNorm (clients, 1, d)."""

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor
    mean: Tensor  # running
    variance: Tensor  # running


@dataclass
class _Pass:
    """Record of a layer's forward pass, for its backward pass."""

    inputs: Tensor
    normed: Tensor  # before scale and shift
    deviation: Tensor  # 1 / standard deviation
    outputs: Tensor


class Padding:
    """Mask of the rows of clients' batches that are samples, for the training passes of a `Stack`.

    `share` (clients, batch) is 1 / number of samples, and 0 for padding; `lengths` are the numbers
    of samples; a client without any keeps its statistics. With several `parts` the rows of a pass
    are so many consecutive batches, each normalised by its own statistics.
    """

    def __init__(self, share: Tensor, lengths: Sequence[int], parts: int = 1) -> None:
        self.parts = parts
        # Running statistics move part by part: rows of later parts count more.
        self.pace: float | Tensor = 1 - (1 - _MOMENTUM) ** parts
        self.alive = None
        if 0 in lengths:
            self.alive = share.new_tensor([float(n > 0) for n in lengths])[:, None]
            self.pace = self.pace * self.alive[:, None]
        unbiased = share.new_tensor([n / max(1, n - 1) for n in lengths])[:, None, None]
        self.means = share[:, None]
        self.shares = self.means
        if parts > 1:
            self.shares = self.means.repeat(1, parts, 1).view(-1, 1, share.shape[1])
            weights = [_MOMENTUM * (1 - _MOMENTUM) ** i for i in reversed(range(parts))]
            decay = share.new_tensor(weights)[:, None] / sum(weights)
            self.means = (self.means * decay).view(len(share), 1, -1)
        self.column = self.shares.mT
        self.variances = self.means * unbiased


class Stack:
    """Networks of several clients, each with its own parameters.

    `flat` (clients, size) are their parameters and statistics, each row laid out like `template`'s.
    Inputs are (clients, rows, inputs + classes), with the one-hot classes behind the vectors.
    """

    def __init__(self, template: Params, flat: Tensor, positive: bool) -> None:
        self.template, self.flat, self.positive = template, flat, positive
        self.parameters = flat[:, : template.layout.parameter_size]
        named, begin = {}, 0
        for name, shape in zip(template.layout.names, template.layout.shapes, strict=True):
            end = begin + torch.Size(shape).numel()
            piece = flat[:, begin:end]
            named[name] = piece.unflatten(1, shape) if len(shape) == 2 else piece.unsqueeze(1)
            begin = end
        self._layers = [
            _Layer(
                named[f"{layer}.weight"],
                named[f"{layer}.bias"],
                named[f"{layer}_norm.weight"],
                named[f"{layer}_norm.bias"],
                named[f"{layer}_norm.running_mean"],
                named[f"{layer}_norm.running_var"],
            )
            for layer in ("first", "last")
        ]
        self._tape: list[_Pass] = []
        self._affine: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def of(cls, params: Sequence[Params], device: torch.device, *, positive: bool) -> Stack:
        """Return networks with copies of these parameters."""
        flat = torch.stack([p.flat for p in params])
        return cls(params[0], flat.to(device), positive)

    def first(self, count: int) -> Stack:
        """Return the networks of the first clients, over the same memory."""
        return Stack(self.template, self.flat[:count], self.positive)

    def evaluated(self, x: Tensor) -> Tensor:
        """Return the outputs (clients, rows, outputs) in evaluation mode."""
        if not self._affine:
            for layer in self._layers:
                scale = (layer.variance + _EPS).rsqrt_().mul_(layer.scale)
                shift = torch.addcmul(layer.shift, layer.bias - layer.mean, scale)
                self._affine.append((scale, shift))
        for i, layer in enumerate(self._layers):
            scale, shift = self._affine[i]
            x = torch.addcmul(shift, torch.bmm(x, layer.weight.mT), scale)
            if i == 0 or self.positive:
                x = x.relu_()
        return x

    def trained(self, x: Tensor, padding: Padding) -> Tensor:
        """Return the outputs in training mode; the running statistics move."""
        self._tape, self._affine = [], []
        for i, layer in enumerate(self._layers):
            z = torch.baddbmm(layer.bias, x, layer.weight.mT)
            rows = z.view(*padding.column.shape[:2], -1)
            mean = torch.bmm(padding.shares, rows)
            layer.mean.lerp_(torch.bmm(padding.means, z), padding.pace)
            rows.sub_(mean)
            squares = z.square()
            layer.variance.lerp_(torch.bmm(padding.variances, squares), padding.pace)
            deviation = torch.bmm(padding.shares, squares.view(rows.shape)).add_(_EPS).rsqrt_()
            rows.mul_(deviation)
            out = torch.addcmul(layer.shift, z, layer.scale)
            if i == 0 or self.positive:
                out = out.relu_()
            self._tape.append(_Pass(x, rows, deviation, out))
            x = out
        return x

    def backward(self, delta: Tensor, padding: Padding) -> Tensor:
        """Return the gradients (clients, parameters) after a pass in training mode.

        `padding` is that pass's, `delta` (clients, rows, outputs) the gradient of its outputs, 0 in
        padding. A bias before a BatchNorm in training mode has none.
        """
        pieces: list[Tensor] = []  # last to first
        for i in reversed(range(len(self._layers))):
            layer, tape = self._layers[i], self._tape[i]
            if i == 0 or self.positive:
                delta = _aten.threshold_backward(delta, tape.outputs, 0)
            rows = delta.view(tape.normed.shape)
            shift, scale = rows.sum(1, keepdim=True), (rows * tape.normed).sum(1, keepdim=True)
            for slope in (shift, scale):
                if padding.parts > 1:
                    slope = slope.view(len(delta), padding.parts, -1).sum(1, keepdim=True)
                pieces.append(slope[:, 0])
            common = torch.addcmul(shift, tape.normed, scale)
            rows = torch.addcmul(rows, padding.column, common, value=-1).mul_(tape.deviation)
            delta = rows.view(delta.shape).mul_(layer.scale)
            pieces += [torch.zeros_like(pieces[-1]), torch.bmm(delta.mT, tape.inputs).flatten(1)]
            if i > 0:
                delta = torch.bmm(delta, layer.weight)
        return torch.cat(pieces[::-1], dim=1)

    def descend(self, step: Tensor, lr: float) -> None:
        """Move the parameters against `step` (clients, parameters)."""
        self.parameters.add_(step, alpha=-lr)
        self._affine = []

    def rows(self) -> Rows:
        """Return the parameters and statistics of all clients, on the CPU."""
        return Rows(self.template, self.flat.cpu())


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
