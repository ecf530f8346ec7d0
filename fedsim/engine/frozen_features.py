"""On-disk cache of the outputs of a model's frozen first layers, shared by workers and rounds.

A model takes part through the members of `fedsim.params.protocol.Stem`; client methods need not
know. Augmented images bypass the cache.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.dataset import Card, Split
from fedsim.data.feature_cache import FeatureCache
from fedsim.data.views import View
from fedsim.params import FlatModel, protocol

Features = Callable[[np.ndarray], Tensor]
"""Rows of a split, int64 (k,) -> the stem's outputs, float32 (k, ...), on the CPU."""


def make_stem(model: FlatModel, split: Split, card: Card) -> Features | None:
    """Return a cached reader of a split through the model's stem, None for a model without one."""
    if protocol.stem(model.module) is None:
        return None
    return _Stem(model, split, card).rows


class _Stem:
    def __init__(self, model: FlatModel, split: Split, card: Card) -> None:
        self._model, self._split, self._card = model, split, card

    def rows(self, rows: np.ndarray) -> Tensor:
        return self._cache.get(rows, self._compute)

    def _compute(self, rows: np.ndarray) -> Tensor:
        module: Any = self._model.module
        training = module.training
        module.eval()
        with torch.no_grad():
            inputs = View(self._split, rows, self._card, self._device).inputs()
            outputs: Tensor = module.stem(inputs)
        module.train(training)
        return outputs

    @property
    def _device(self) -> torch.device:
        return self._model.flat.device

    @cached_property
    def _cache(self) -> FeatureCache:
        module: Any = self._model.module
        shape = tuple(self._compute(np.zeros(1, np.int64)).shape[1:])
        # Bits also depend on the kernels, so on the library and the kind of processor.
        machine = torch.__version__, self._device.type, torch.backends.cpu.get_cpu_capability()
        parts = (
            self._model.frozen_digest(),
            module.stem_identity(),
            repr((self._card.mean, self._card.std, *machine)),
        )
        key = hashlib.sha256("\n".join(parts).encode())
        key.update(np.ascontiguousarray(self._split.x).data)
        name = f"stem-{key.hexdigest()[:32]}"
        return FeatureCache(name, len(self._split), shape, module.stem_bytes)
