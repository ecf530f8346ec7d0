"""Splits as tensors without a copy, and the factors that normalise their pixels."""

from __future__ import annotations

import warnings
import weakref
from functools import lru_cache

import torch
from torch import Tensor

from fedsim.data.dataset import Card, Split

_tensors: weakref.WeakKeyDictionary[Split, tuple[Tensor, Tensor]] = weakref.WeakKeyDictionary()


def split_tensors(split: Split) -> tuple[Tensor, Tensor]:
    """Return a split's inputs and labels as read-only tensors over the same memory."""
    tensors = _tensors.get(split)
    if tensors is None:
        with warnings.catch_warnings():  # a read-only memory map; nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = torch.from_numpy(split.x), torch.from_numpy(split.y)
        _tensors[split] = tensors
    return tensors


@lru_cache(maxsize=16)
def affine(card: Card, device: torch.device) -> tuple[Tensor | float, Tensor | float]:
    """Return (scale, shift) so that ``(x / 255 - mean) / std == x * scale + shift``.

    Numbers where all channels agree, else tensors (H, W, C), since broadcasting over the short
    channel axis takes four times as long; 1 and 0 for texts.
    """
    if card.kind == "text":
        return 1.0, 0.0
    scales = [1 / (255 * std) for std in card.std]
    shifts = [-mean / std for mean, std in zip(card.mean, card.std, strict=True)]
    if len(set(zip(scales, shifts, strict=True))) == 1:
        return scales[0], shifts[0]
    channels, height, width = card.input_shape
    scale, shift = (
        torch.tensor(v, dtype=torch.float32, device=device)
        .expand(height, width, channels)
        .contiguous()
        for v in (scales, shifts)
    )
    return scale, shift
