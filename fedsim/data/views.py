"""What a client trains on: normalised float32 batches of its own samples.

This is the hot path of small clients: samples are gathered and normalised many at a time, and
batches are slices of what was gathered.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch

from fedsim.data.augment import Augmentation, Placement
from fedsim.data.dataset import Card, Split
from fedsim.data.partition import MODALITIES, ClientIndices, Modality
from fedsim.errors import check

# Values gathered at once. On a CPU 0.5 MiB of float32 stays in the cache between the passes over
# it (measured: pieces of 4,096 images cost 1.1 to 1.3 times as much); a GPU wants few large copies.
_CHUNK_CPU = 1 << 17
_CHUNK_GPU = 1 << 22

Order = torch.Tensor | np.ndarray | None

_tensors: weakref.WeakKeyDictionary[Split, tuple[torch.Tensor, torch.Tensor]] = (
    weakref.WeakKeyDictionary()
)


class HiddenData(RuntimeError):
    """Raised where a client reads what it has no right to: labels, or a modality it lacks."""


class View:
    """Some samples of a split, in a given order, as a model reads them.

    `indices` are rows of `split` (any integer dtype, copied). Inputs are float32 (n, C, H, W) in
    channels_last memory, normalised with the card's mean and std, or the int64 (n, L) tokens of
    texts; labels are int64 (n,). Both are new tensors on `device`, that the caller may change. An
    `order` is a sequence of positions 0..len-1 in the view.

    Where `labelled` is false labels and boxes raise `HiddenData`; so do images where the modality
    is ``text`` and texts where it is ``image``. `augment` changes the inputs of `batches` and
    `input_batches`, where they are given a generator. With `features`, a function of rows int64
    (k,) of the split, what it returns stands for the inputs that nothing changes.
    """

    def __init__(
        self,
        split: Split,
        indices: np.ndarray,
        card: Card,
        device: str | torch.device = "cpu",
        *,
        labelled: bool = True,
        modality: Modality = "all",
        augment: Augmentation | None = None,
        features: Callable[[np.ndarray], torch.Tensor] | None = None,
    ) -> None:
        self.labelled, self.modality, self.augment = labelled, modality, augment
        self.features = features
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

    def inputs(self, order: Order = None, rng: torch.Generator | None = None) -> torch.Tensor:
        """Return the inputs of all samples, or of those at the positions in `order`.

        With a generator they are changed as those of `batches` are, where there is `augment`.

        Raises:
            HiddenData: the images of a client that holds texts only.
        """
        self._check_inputs()
        if self.augment is None or rng is None:
            return self._gather(self._rows(order))
        return self.changed(order, rng)[0]

    def labels(self, order: Order = None) -> torch.Tensor:
        """Return the labels of all samples, or of those at the positions in `order`.

        Raises:
            HiddenData: the view's client sees no labels.
        """
        self._check_labels()
        return self._y.index_select(0, self._rows(order)).to(self.device)

    def column(self, name: str, order: Order = None) -> torch.Tensor | np.ndarray:
        """Return an extra column of all samples, or of those at the positions in `order`.

        Numbers are a tensor on the view's device, bytes (the column ``text``) a numpy array.

        Raises:
            KeyError: the split has no such column.
            HiddenData: boxes where labels are hidden; the text of a client with images only.
        """
        if name in ("boxes", "box_labels"):
            self._check_labels()
        if name in ("tokens", "text") and self.modality == "image":
            raise HiddenData(f"this client holds images only, not the column {name!r}")
        rows = np.asarray(self.split.extra[name][self._rows(order).numpy()])
        return rows if rows.dtype.kind == "S" else torch.from_numpy(rows).to(self.device)

    def changed(self, order: Order, rng: torch.Generator) -> tuple[torch.Tensor, Placement]:
        """Return the inputs at the positions in `order` changed by `augment`, and how they moved.

        Raises:
            HiddenData: the images of a client that holds texts only.
        """
        self._check_inputs()
        x = self._read(self._rows(order))
        if self.augment is None:
            return self._normalise(x), Placement.same(x)
        return self._augmented(x, rng)

    def target_batches(
        self,
        columns: Sequence[str],
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
    ) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        """Yield inputs as `batches` does, with columns of the data set instead of labels.

        The columns ``boxes`` and ``box_labels`` follow the images that `augment` moves.

        Raises:
            KeyError: the split has no such column.
            HiddenData: the view's client may not see a column, or has no images.
        """
        self._check_inputs()
        for name in columns:
            self.column(name, torch.arange(0))
        return self._target_batches(columns, batch_size, rng, epochs, steps)

    def _target_batches(
        self,
        columns: Sequence[str],
        batch_size: int,
        rng: torch.Generator | None,
        epochs: int,
        steps: int | None,
    ) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, ...]]]:
        for order in self.index_batches(batch_size, rng, epochs, steps):
            values: dict[str, torch.Tensor] = {
                name: torch.as_tensor(self.column(name, order)) for name in columns
            }
            if self.augment is None or rng is None:
                x = self.inputs(order)
            else:
                x, place = self.changed(order, rng)
                if {"boxes", "box_labels"} <= set(columns):
                    values["boxes"], values["box_labels"] = place.boxes(
                        values["boxes"], values["box_labels"]
                    )
            yield x, tuple(values.values())

    def index_batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the positions int64 (batch,) in the view that `batches` would go through."""
        total, _ = self._num_batches(batch_size, epochs, steps)
        while total > 0:
            order = torch.arange(len(self))
            if rng is not None:
                order = torch.randperm(len(self), generator=rng)
            for some in order.split(batch_size)[:total]:
                yield some
                total -= 1

    def input_batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
    ) -> Iterator[torch.Tensor]:
        """Yield the inputs that `batches` would yield, without reading a label."""
        self._check_inputs()
        total, per_epoch = self._num_batches(batch_size, epochs, steps)
        return (x for _, x in self._batches(batch_size, rng, per_epoch, total))

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
            HiddenData: the view's client sees no labels, or no images.
        """
        self._check_inputs()
        self._check_labels()
        total, per_epoch = self._num_batches(batch_size, epochs, steps)
        return self._labelled_batches(batch_size, rng, per_epoch, total)

    def _num_batches(self, batch_size: int, epochs: int, steps: int | None) -> tuple[int, int]:
        """Return the number of batches, in all and an epoch."""
        check(batch_size >= 1, "batch_size must be >= 1", batch_size)
        check(epochs >= 0, "epochs must be >= 0", epochs)
        check(steps is None or steps >= 0, "steps must be >= 0", steps)
        per_epoch = -(-len(self) // batch_size)
        total = epochs * per_epoch if steps is None else steps
        return total if per_epoch else 0, per_epoch

    def _labelled_batches(
        self, batch_size: int, rng: torch.Generator | None, per_epoch: int, total: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        known: torch.Tensor | None = None
        pieces: Iterator[torch.Tensor] = iter(())
        for rows, x in self._batches(batch_size, rng, per_epoch, total):
            if rows is not known:  # a new epoch: its labels are gathered at once
                known = rows
                labels = self._y.index_select(0, rows).to(self.device)
                pieces = iter(labels.split(batch_size))
            yield x, next(pieces)

    def _batches(
        self, batch_size: int, rng: torch.Generator | None, per_epoch: int, total: int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the rows of the whole epoch, one tensor an epoch, and the inputs of a batch."""
        values = _CHUNK_CPU if self.device.type == "cpu" else _CHUNK_GPU
        chunk = max(1, values // (batch_size * self._x[0].numel())) * batch_size
        while total > 0:
            rows = self._index
            if rng is not None:
                rows = rows[torch.randperm(len(rows), generator=rng)]
            rows = rows[: total * batch_size]
            for some in rows.split(chunk):
                if self.augment is None or rng is None:
                    for x in self._gather(some).split(batch_size):
                        yield rows, x
                else:
                    # Draws are made batch by batch: the chunk depends on the device.
                    for x in self._read(some).split(batch_size):
                        yield rows, self._augmented(x, rng)[0]
            total -= per_epoch

    def _augmented(self, x: torch.Tensor, rng: torch.Generator) -> tuple[torch.Tensor, Placement]:
        assert self.augment is not None
        x, place = self.augment.placed(x, rng)
        return self.augment.normalised(self._normalise(x), rng), place

    def _check_labels(self) -> None:
        if not self.labelled:
            raise HiddenData("the labels of this client's samples are hidden from it")

    def _check_inputs(self) -> None:
        if self.modality == "text" and self.split.x.dtype == np.uint8:
            raise HiddenData("this client holds texts only, not images")

    def _rows(self, order: Order) -> torch.Tensor:
        if order is None:
            return self._index
        return self._index[torch.as_tensor(order, dtype=torch.int64)]

    def _gather(self, rows: torch.Tensor) -> torch.Tensor:
        if self.features is not None:
            return self.features(rows.numpy()).to(self.device)
        if self._x.dtype == torch.int32:
            return self._x.index_select(0, rows).to(self.device).long()
        return self._normalise(self._read(rows))

    def _read(self, rows: torch.Tensor) -> torch.Tensor:
        # Bytes travel to the device, not floats.
        return self._x.index_select(0, rows).to(self.device).float()

    def _normalise(self, x: torch.Tensor) -> torch.Tensor:
        # Two passes, not one addcmul: they take half the time, and a value never depends on
        # where in the chunk it stands.
        return x.mul_(self._scale).add_(self._shift).permute(0, 3, 1, 2)


class PairView(View):
    """A view whose inputs are images with the tokens of their texts, int64 (batch, L).

    `batches` and `input_batches` yield tuples of the two in place of images.
    """

    @classmethod
    def of(cls, view: View) -> PairView:
        """Return a view's samples as pairs."""
        return cls(
            view.split,
            view.indices,
            view.card,
            view.device,
            labelled=view.labelled,
            modality=view.modality,
            augment=view.augment,
        )

    def _batches(  # type: ignore[override]
        self, batch_size: int, rng: torch.Generator | None, per_epoch: int, total: int
    ) -> Iterator[tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]]:
        tokens = self.split.extra["tokens"]
        known, start = None, 0
        for rows, x in super()._batches(batch_size, rng, per_epoch, total):
            start = start if rows is known else 0
            known, stop = rows, start + len(x)
            some = torch.from_numpy(np.asarray(tokens[rows[start:stop].numpy()]))
            start = stop
            yield rows, (x, some.to(self.device).long())


def view_for(module: object, view: View) -> View:
    """Return a view as a model reads it: as pairs where its attribute `reads` is ``pairs``."""
    return PairView.of(view) if getattr(module, "reads", "inputs") == "pairs" else view


class ClientData:
    """One client's own samples over `split`, the training split that was partitioned.

    Every client has some to train on; `validation` and `test` may be empty. `test_split` is needed
    where test samples come from there. Labels of test samples can always be read: they are for
    scoring. `augment` changes what the client trains on; `features` and `test_features` are those
    of the views over the two splits.
    """

    def __init__(
        self,
        split: Split,
        indices: ClientIndices,
        card: Card,
        device: str | torch.device = "cpu",
        *,
        test_split: Split | None = None,
        augment: Augmentation | None = None,
        features: Callable[[np.ndarray], torch.Tensor] | None = None,
        test_features: Callable[[np.ndarray], torch.Tensor] | None = None,
    ) -> None:
        self._split, self._indices, self._card, self._device = split, indices, card, device
        self._test_split, self._augment = test_split, augment
        self._features, self._test_features = features, test_features
        self.labelled = indices.labelled
        self.modality: Modality = MODALITIES[indices.modality]

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
        return self._view(self._split, self._indices.train, self.labelled, self._augment)

    @cached_property
    def validation(self) -> View:
        """The samples to choose options with."""
        return self._view(self._split, self._indices.validation, self.labelled)

    @cached_property
    def test(self) -> View:
        """The samples to report on."""
        split = self._split
        if self._indices.on_test_split:
            if self._test_split is None:
                raise ValueError("test samples are of the test split, which was not given")
            split = self._test_split
        return self._view(split, self._indices.test, labelled=True)

    def _view(
        self,
        split: Split,
        rows: np.ndarray,
        labelled: bool,
        augment: Augmentation | None = None,
    ) -> View:
        return View(
            split,
            rows,
            self._card,
            self._device,
            labelled=labelled,
            modality=self.modality,
            augment=augment,
            features=self._features if split is self._split else self._test_features,
        )


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
    if card.kind == "text":
        return 1.0, 0.0
    scales = [1 / (255 * std) for std in card.std]
    shifts = [-mean / std for mean, std in zip(card.mean, card.std, strict=True)]
    if len(set(zip(scales, shifts, strict=True))) == 1:
        return scales[0], shifts[0]
    channels, height, width = card.input_shape  # of images; texts are not normalised
    scale, shift = (
        torch.tensor(v, dtype=torch.float32, device=device)
        .expand(height, width, channels)
        .contiguous()
        for v in (scales, shifts)
    )
    return scale, shift
