"""What a client trains on: normalised float32 batches of its own samples.

This is the hot path of small clients: samples are gathered and normalised many at a time, and
batches are slices of what was gathered.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from functools import cached_property, lru_cache

import numpy as np
import torch

from fedsim.data.dataset import Card, Split
from fedsim.data.partition import ClientIndices
from fedsim.errors import check

# Values gathered at once. On a CPU 0.5 MiB of float32 stays in the cache between the passes over
# it (measured: pieces of 4,096 images cost 1.1 to 1.3 times as much); a GPU wants few large copies.
_CHUNK_CPU = 1 << 17
_CHUNK_GPU = 1 << 22

Order = torch.Tensor | np.ndarray | None

_tensors: weakref.WeakKeyDictionary[Split, tuple[torch.Tensor, torch.Tensor]] = (
    weakref.WeakKeyDictionary()
)


class View:
    """Some samples of a split, in a given order, as a model reads them.

    `indices` are rows of `split` (any integer dtype, copied). Inputs are float32 (n, C, H, W) in
    channels_last memory, normalised with the card's mean and std; labels are int64 (n,). Both
    are new tensors on `device`, that the caller may change. An `order` is a sequence of positions
    0..len-1 in the view.
    """

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        card: Card,
        device: str | torch.device = "cpu",
    ) -> None:
        self.split = split
        self.card = card
        self.device = torch.device(device)
        self._index = torch.from_numpy(np.array(indices, dtype=np.int64))
        self._x, self._y = _split_tensors(split)
        self._scale, self._shift = _affine(card, self.device)

    @property
    def indices(self) -> np.ndarray:
        """The view's rows of the split, int64 (n,)."""
        return self._index.numpy()

    def __len__(self) -> int:
        return len(self._index)

    def inputs(self, order: Order = None) -> torch.Tensor:
        """Return the inputs of all samples, or of those at the positions in `order`."""
        return self._gather(self._rows(order))

    def labels(self, order: Order = None) -> torch.Tensor:
        """Return the labels of all samples, or of those at the positions in `order`."""
        return self._y.index_select(0, self._rows(order)).to(self.device)

    def batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield (inputs, labels) of `batch_size` samples; the last batch of an epoch may be short.

        With `rng` each epoch begins by drawing a new ``torch.randperm(len, generator=rng)``;
        without, samples keep the view's order. `steps` batches are yielded where it is given,
        over as many epochs as that takes (`epochs` does not count then). An empty view yields
        nothing.

        Raises:
            InputError: `batch_size` < 1, `epochs` < 0 or `steps` < 0.
        """
        check(batch_size >= 1, "batch_size must be >= 1", batch_size)
        check(epochs >= 0, "epochs must be >= 0", epochs)
        check(steps is None or steps >= 0, "steps must be >= 0", steps)
        per_epoch = -(-len(self) // batch_size)
        total = epochs * per_epoch if steps is None else steps
        return self._batches(batch_size, rng, per_epoch, total if per_epoch else 0)

    def _batches(
        self, batch_size: int, rng: torch.Generator | None, per_epoch: int, total: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        values = _CHUNK_CPU if self.device.type == "cpu" else _CHUNK_GPU
        chunk = max(1, values // (batch_size * self._x[0].numel())) * batch_size
        while total > 0:
            rows = self._index
            if rng is not None:
                rows = rows[torch.randperm(len(rows), generator=rng)]
            rows = rows[: total * batch_size]
            labels = self._y.index_select(0, rows).to(self.device)
            for some, y in zip(rows.split(chunk), labels.split(chunk), strict=True):
                x = self._gather(some)
                yield from zip(x.split(batch_size), y.split(batch_size), strict=True)
            total -= per_epoch

    def _rows(self, order: Order) -> torch.Tensor:
        if order is None:
            return self._index
        return self._index[torch.as_tensor(order, dtype=torch.int64)]

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        # Bytes travel to the device, not floats. Two passes, not one addcmul: they take half
        # the time, and a value never depends on where in the chunk it stands.
        x = self._x.index_select(0, rows).to(self.device).float()
        return x.mul_(self._scale).add_(self._shift).permute(0, 3, 1, 2)


class ClientData:
    """One client's own samples over `split`, the training split that was partitioned.

    Every client has some to train on; `validation` and `test` may be empty.
    """

    def __init__(
        self, split: Split, indices: ClientIndices, card: Card, device: str | torch.device = "cpu"
    ) -> None:
        self._split, self._indices, self._card, self._device = split, indices, card, device

    @property
    def train_rows(self) -> np.ndarray:
        """The training samples' rows of the split, int32 (n,)."""
        return self._indices.train

    @property
    def num_train(self) -> int:
        """Number of training samples."""
        return len(self._indices.train)

    @cached_property
    def train(self) -> View:
        """The samples to train on."""
        return View(self._split, self._indices.train, self._card, self._device)

    @cached_property
    def validation(self) -> View:
        """The samples to choose options with."""
        return View(self._split, self._indices.validation, self._card, self._device)

    @cached_property
    def test(self) -> View:
        """The samples to report on."""
        return View(self._split, self._indices.test, self._card, self._device)


def _split_tensors(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the split's images and labels as tensors over the same memory, for reading only."""
    tensors = _tensors.get(split)
    if tensors is None:
        with warnings.catch_warnings():  # a read-only memory map; nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = torch.from_numpy(split.x), torch.from_numpy(split.y)
        _tensors[split] = tensors
    return tensors


@lru_cache(maxsize=16)
def _affine(card: Card, device: torch.device) -> tuple[torch.Tensor | float, torch.Tensor | float]:
    """Return (scale, shift) so that ``(x / 255 - mean) / std == x * scale + shift``.

    Numbers where all channels agree, else tensors (H, W, C): a row for each sample, as
    broadcasting over the short channel axis takes four times as long.
    """
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
