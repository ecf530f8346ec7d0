"""Small convolutional networks; several clients can train in one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.errors import check
from fedsim.models.blocks.batched import Batched
from fedsim.models.blocks.body_head import BodyHead, check_images, num_features

_aten = torch.ops.aten


@dataclass(frozen=True)
class _Convolution:
    """One convolution with its ReLU and, if `pooled`, 2 x 2 max-pooling.

    `weights` and `biases` are the places of its parameters in a client's flat vector.
    """

    inputs: int
    outputs: int
    pooled: bool
    weights: slice
    biases: slice


@dataclass
class _Tape:
    """Inputs and outputs of the layers, first to last, for the backward pass."""

    maps: list[Tensor]
    kernels: list[Tensor]
    raw: list[Tensor]  # before pooling and ReLU
    places: list[Tensor | None]  # of the maxima
    inputs: Tensor  # of the hidden layer
    features: Tensor


class _Batchable(Batched):
    """The network without dropout; clients are the groups of one grouped convolution.

    The backward pass is written out: autograd would add a tenth to the time.
    """

    def __init__(
        self,
        body: nn.Module,
        convolutions: list[tuple[int, int, bool]],
        kernel: int,
        padding: int,
        widths: tuple[int, int, int],
        sample_bytes: int,
    ) -> None:
        super().__init__(body, widths[1], widths[2], sample_bytes)
        self._kernel, self._padding = kernel, padding
        self._convolutions = []
        begin = 0
        for inputs, outputs, pooled in convolutions:
            weights = slice(begin, begin + outputs * inputs * kernel**2)
            biases = slice(weights.stop, begin := weights.stop + outputs)
            self._convolutions.append(_Convolution(inputs, outputs, pooled, weights, biases))
        weights = slice(begin, begin + widths[1] * widths[0])
        self._linear_shape = widths[1], widths[0]
        self._weights, self._biases = weights, slice(weights.stop, weights.stop + widths[1])

    def batched_features(self, flat: Tensor, x: Tensor) -> tuple[Tensor, _Tape]:
        clients = len(flat)
        maps = [_side_by_side(x)]
        kernels, raw, places = [], [], []
        for layer in self._convolutions:
            kernel = self._kernel_of(layer, flat)
            biases = flat[:, layer.biases].reshape(-1)
            z = F.conv2d(maps[-1], kernel, biases, padding=self._padding, groups=clients)
            kernels.append(kernel)
            raw.append(z)
            place = None
            if layer.pooled:  # before ReLU, with which it commutes
                z, place = F.max_pool2d(z, 2, return_indices=True)
            places.append(place)
            maps.append(z.relu_())
        # From here clients are the batches of a matrix product, (clients, batch, features).
        inputs = maps[-1].unflatten(1, (clients, -1)).transpose(0, 1).flatten(2)
        biases = flat[:, self._biases].unsqueeze(1)
        features = torch.baddbmm(biases, inputs, self._matrix(flat).mT).relu_()
        return features, _Tape(maps, kernels, raw, places, inputs, features)

    def batched_backward(self, flat: Tensor, tape: _Tape, delta: Tensor, gradient: Tensor) -> None:
        clients = len(flat)
        delta = _aten.threshold_backward(delta, tape.features, 0)
        torch.bmm(delta.mT, tape.inputs, out=self._matrix(gradient))
        torch.sum(delta, 1, out=gradient[:, self._biases])
        delta = torch.bmm(delta, self._matrix(flat))
        shape = tape.maps[-1].unflatten(1, (clients, -1)).shape
        delta = _side_by_side(delta.unflatten(2, shape[2:]))
        for i in reversed(range(len(self._convolutions))):
            layer, place = self._convolutions[i], tape.places[i]
            delta = _aten.threshold_backward(delta, tape.maps[i + 1], 0)
            if place is not None:
                delta = _aten.max_pool2d_with_indices_backward(
                    delta, tape.raw[i], [2, 2], [2, 2], [0, 0], [1, 1], False, place
                )
            padding = [self._padding, self._padding]
            delta, weights, biases = _aten.convolution_backward(
                delta, tape.maps[i], tape.kernels[i], [clients * layer.outputs], [1, 1], padding,
                [1, 1], False, [0, 0], clients, [i > 0, True, True],
            )  # fmt: skip
            gradient[:, layer.weights] = weights.permute(0, 2, 3, 1).reshape(clients, -1)
            gradient[:, layer.biases] = biases.view(clients, -1)

    def _matrix(self, flat: Tensor) -> Tensor:
        return flat[:, self._weights].unflatten(1, self._linear_shape)

    def _kernel_of(self, layer: _Convolution, flat: Tensor) -> Tensor:
        side = self._kernel
        kernel = flat[:, layer.weights].reshape(-1, side, side, layer.inputs)
        return kernel.permute(0, 3, 1, 2)


def _side_by_side(x: Tensor) -> Tensor:
    """Turn (clients, batch, C, H, W) into channels-last (batch, clients x C, H, W)."""
    clients, batch, channels, height, width = x.shape
    x = x.permute(1, 3, 4, 0, 2).reshape(batch, height, width, clients * channels)
    if clients * channels == 1:
        # One channel fits either order of memory; torch must be told, as pooling in the other
        # order takes nine times as long.
        x = x.as_strided(x.shape, (height * width, width, 1, 1))
    return x.permute(0, 3, 1, 2)


class _HiddenNorm(nn.BatchNorm1d):
    """BatchNorm that normalises a single sample, which has no variance, by running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 1 or not self.training:
            return super().forward(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )


def cnn(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    channels: tuple[int, ...] = (16, 32),
    kernel: int = 5,
    hidden: int | tuple[int, ...] = 64,
    padding: int = 0,
    pool: Literal["each", "last"] | tuple[int, ...] = "each",
    dropout: float = 0.0,
    norm: Literal["none", "batch", "batch-all"] = "none",
) -> nn.Module:
    """A convolutional network: convolutions, one or more hidden layers, a linear head.

    Every convolution is followed by ReLU and, with ``pool: each``, by 2 x 2 max-pooling; with
    ``pool: last`` only the last one is. A list gives the side of each convolution's max-pooling,
    which has stride 2 and padding (side - 1) // 2; 1 is none. Dropout precedes the hidden layers
    and the head. With ``norm: batch`` convolutions are normalised over the batch, with ``norm:
    batch-all`` hidden layers too, where running statistics normalise a single sample.

    Raises:
        InputError: an option out of range, an image too small for the convolutions and pools, or
            a data set of texts.
    """
    check_images("cnn", input_shape)
    check(len(channels) >= 1, "channels must name at least one convolution", channels)
    check(min(channels) >= 1, "channels must be >= 1", channels)
    check(kernel >= 1, "kernel must be >= 1", kernel)
    widths = (hidden,) if isinstance(hidden, int) else hidden
    check(len(widths) >= 1, "hidden must name at least one layer", hidden)
    check(min(widths) >= 1, "hidden must be >= 1", hidden)
    check(padding >= 0, "padding must be >= 0", padding)
    check(0 <= dropout < 1, "dropout must be in [0, 1)", dropout)
    sides = pool
    if isinstance(sides, str):
        sides = (1 if pool == "last" else 2,) * (len(channels) - 1) + (2,)
    check(len(sides) == len(channels), f"pool must have {len(channels)} sides", pool)
    check(min(sides) >= 1, "sides of pool must be >= 1", pool)
    depth, height, width = input_shape
    layers: list[nn.Module] = []
    convolutions: list[tuple[int, int, bool]] = []
    sample_bytes = 0
    for i, (out, side) in enumerate(zip(channels, sides, strict=True)):
        height, width = (size + 2 * padding - kernel + 1 for size in (height, width))
        sample_bytes = max(sample_bytes, 4 * out * height * width)
        edge = (side - 1) // 2
        if side > 1:
            height, width = ((size + 2 * edge - side) // 2 + 1 for size in (height, width))
        check(
            min(height, width) >= 1,
            f"images of {input_shape[1]} x {input_shape[2]} pixels are too small for "
            f"{len(channels)} convolutions of kernel {kernel} with padding {padding} and pool "
            f"{pool!r}; the size left after convolution {i + 1} must be >= 1",
            min(height, width),
        )
        layers.append(nn.Conv2d(depth, out, kernel, padding=padding))
        if norm != "none":
            layers.append(nn.BatchNorm2d(out))
        # Max and ReLU commute, and the ReLU of a pooled map is a quarter of the work.
        layers += [nn.MaxPool2d(side, 2, edge)] if side > 1 else []
        layers.append(nn.ReLU(inplace=True))
        convolutions.append((depth, out, side > 1))
        depth = out
    layers.append(nn.Flatten())
    features = num_features(nn.Sequential(*layers), input_shape)
    if not dropout and norm == "none" and len(widths) == 1 and max(sides) <= 2:
        body = nn.Sequential(*layers, nn.Linear(features, widths[0]), nn.ReLU())
        sizes = (features, widths[0], num_classes)
        return _Batchable(body, convolutions, kernel, padding, sizes, sample_bytes)
    for hidden_width in widths:
        layers += [nn.Dropout(dropout)] if dropout else []
        layers.append(nn.Linear(features, hidden_width))
        layers += [_HiddenNorm(hidden_width)] if norm == "batch-all" else []
        layers.append(nn.ReLU())
        features = hidden_width
    layers += [nn.Dropout(dropout)] if dropout else []
    return BodyHead(nn.Sequential(*layers), features, num_classes)
