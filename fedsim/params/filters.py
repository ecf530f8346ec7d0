"""Which tensors of a model belong together: tests for names, for what may travel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fedsim.errors import InputError


def in_body(name: str) -> bool:
    """Whether a tensor belongs to the feature extractor of a model with `body` and `head`."""
    return name.startswith("body.")


def in_head(name: str) -> bool:
    """Whether a tensor belongs to the classifier of a model with `body` and `head`."""
    return name.startswith("head.")


def in_backbone(name: str) -> bool:
    """Whether a tensor belongs to the feature extractor of a detector, which has a `backbone`."""
    return name.startswith("backbone.")


def batch_norm(module: nn.Module, *, statistics_only: bool = False) -> Callable[[str], bool]:
    """Return a test for the names of BatchNorm's tensors, which are found by the type of layer.

    With `statistics_only` the running mean, variance and counter alone, without scale and shift.
    """
    names = set()
    for prefix, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            tensors = dict(layer.named_buffers(recurse=False))
            if not statistics_only:
                tensors |= dict(layer.named_parameters(recurse=False))
            names |= {f"{prefix}.{name}" if prefix else name for name in tensors}
    return names.__contains__


def check_batch_norm(names: Iterable[str], own: Callable[[str], bool], method: str) -> None:
    """Raise `InputError` if no name passes `own`, BatchNorm's test; `method` needs some to."""
    if not any(map(own, names)):
        raise InputError(
            f"{method} needs a model with BatchNorm, such as {{name: resnet}} or "
            "{name: cnn, norm: batch}; this one has none"
        )


def under(layers: Sequence[str]) -> Callable[[str], bool]:
    """Return a test for the names of tensors in these layers, e.g. ``head`` or ``body.3``."""
    starts = tuple(f"{layer}." for layer in layers)
    return lambda name: name.startswith(starts) or name in layers
