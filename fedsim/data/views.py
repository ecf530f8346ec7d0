"""Views of a client's samples: normalised float32 batches for training and scoring.

This is the hot path of small clients: samples are gathered and normalised many at a time, and
batches are slices of what was gathered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim.data.augment import Augmentation, Placement
from fedsim.data.dataset import Card, Split
from fedsim.data.normalise import affine, split_tensors
from fedsim.data.partition import MODALITIES, ClientIndices, Modality
from fedsim.errors import check
from fedsim.params.protocol import Reads

# Values gathered at once. On a CPU 0.5 MiB of float32 stays in the cache between the passes over
# it (measured: pieces of 4,096 images cost 1.1 to 1.3 times as much); a GPU wants few large copies.
_CHUNK_CPU = 1 << 17
_CHUNK_GPU = 1 << 22

Order = Tensor | np.ndarray | None
_LABELS = ""  # among the names of target columns


class HiddenData(RuntimeError):
    """A client reads data it must not see: labels, or a modality it lacks."""


class View:
    """Samples of a split in a given order, as a model reads them.

    `indices` are rows of `split` (any integer dtype, copied). Inputs are float32 (n, C, H, W) in
    channels_last memory, normalised with the card's mean and std, or the int64 (n, L) tokens of
    texts; labels are int64 (n,). Both are new tensors on `device`, which the caller may change. An
    `order` is a sequence of positions 0..len-1 in the view.

    Unless `labelled`, reading labels or boxes raises `HiddenData`; so does reading images where the
    modality is ``text`` and texts where it is ``image``. `augment` changes inputs that are read
    with a generator. `features`, a function of rows int64 (k,) of the split, replaces the inputs
    that are not augmented.
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
        features: Callable[[np.ndarray], Tensor] | None = None,
    ) -> None:
        self.labelled, self.modality, self.augment = labelled, modality, augment
        self.features = features
        self.split = split
        self.card = card
        self.device = torch.device(device)
        self._index = torch.from_numpy(np.array(indices, dtype=np.int64))
        self._x, self._y = split_tensors(split)
        self._scale, self._shift = affine(card, self.device)

    @property
    def indices(self) -> np.ndarray:
        """The view's rows of the split, int64 (n,)."""
        return self._index.numpy()

    def __len__(self) -> int:
        return len(self._index)

    def inputs(self, order: Order = None, rng: torch.Generator | None = None) -> Tensor:
        """Return the inputs of all samples, or of those at the positions in `order`.

        With a generator they are augmented as in `batches`.

        Raises:
            HiddenData: images of a client that holds texts only.
        """
        self._check_inputs()
        if self.augment is None or rng is None:
            return self._gather(self._rows(order))
        return self.changed(order, rng)[0]

    def changed(self, order: Order, rng: torch.Generator) -> tuple[Tensor, Placement]:
        """Return augmented inputs at the positions in `order`, and how the images moved.

        Raises:
            HiddenData: images of a client that holds texts only.
        """
        self._check_inputs()
        x = self._read(self._rows(order))
        if self.augment is None:
            return self._normalise(x), Placement.same(x)
        return self._augmented(x, rng)

    def tokens(self, order: Order = None) -> Tensor:
        """Return the int64 tokens (n, L) of the texts of image-text pairs.

        Raises:
            KeyError: the split has no texts beside its inputs.
            HiddenData: texts of a client that holds images only.
        """
        self._check_column("tokens")
        return self._tokens(self._rows(order))

    def labels(self, order: Order = None) -> Tensor:
        """Return the labels of all samples, or of those at the positions in `order`.

        Raises:
            HiddenData: the labels are hidden from the client.
        """
        self._check_labels()
        return self._y.index_select(0, self._rows(order)).to(self.device)

    def column(self, name: str, order: Order = None) -> Tensor | np.ndarray:
        """Return an extra column of all samples, or of those at the positions in `order`.

        Numbers are a tensor on the view's device, bytes (the column ``text``) a numpy array.

        Raises:
            KeyError: the split has no such column.
            HiddenData: boxes where labels are hidden; the text of a client with images only.
        """
        self._check_column(name)
        return self._column(name, self._rows(order))

    def batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
        *,
        reads: Reads = "inputs",
        targets: Sequence[str] = (),
    ) -> Iterator[tuple[Any, Any]]:
        """Yield (x, y) of `batch_size` samples; the last batch of an epoch may be short.

        `reads` chooses x: inputs, the tokens of texts (batch, L), or the tuple of both. y are the
        labels (batch,), or with `targets` the tuple of these columns of the data set; ``boxes`` and
        ``box_labels`` together follow the images that `augment` moves.

        With `rng` each epoch begins by drawing a new ``torch.randperm(len, generator=rng)``;
        without, samples keep the view's order. `steps`, where given, is the number of batches,
        over as many epochs as that takes (`epochs` is then ignored). An empty view yields nothing.

        Raises:
            InputError: `batch_size` < 1, `epochs` < 0 or `steps` < 0.
            KeyError: the split lacks a column.
            HiddenData: the labels, images, texts or a column are hidden from the client.
        """
        self._check_reads(reads)
        for name in targets:
            self._check_column(name)
        if not targets:
            self._check_labels()
        total, per_epoch = self._num_batches(batch_size, epochs, steps)
        columns = targets or (_LABELS,)
        batches = self._batches(reads, columns, batch_size, rng, per_epoch, total)
        return batches if targets else ((x, y) for x, (y,) in batches)

    def input_batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
        *,
        reads: Reads = "inputs",
    ) -> Iterator[Any]:
        """Yield the x that `batches` would yield, without reading a label."""
        self._check_reads(reads)
        total, per_epoch = self._num_batches(batch_size, epochs, steps)
        return (x for x, _ in self._batches(reads, (), batch_size, rng, per_epoch, total))

    def index_batches(
        self,
        batch_size: int,
        rng: torch.Generator | None = None,
        epochs: int = 1,
        steps: int | None = None,
    ) -> Iterator[Tensor]:
        """Yield the positions int64 (batch,) in the view of each batch of `batches`."""
        total, per_epoch = self._num_batches(batch_size, epochs, steps)
        for positions in self._epochs(batch_size, rng, per_epoch, total):
            yield from positions.split(batch_size)

    def _num_batches(self, batch_size: int, epochs: int, steps: int | None) -> tuple[int, int]:
        """Return the number of batches, in all and per epoch."""
        check(batch_size >= 1, "batch_size must be >= 1", batch_size)
        check(epochs >= 0, "epochs must be >= 0", epochs)
        check(steps is None or steps >= 0, "steps must be >= 0", steps)
        per_epoch = -(-len(self) // batch_size)
        total = epochs * per_epoch if steps is None else steps
        return total if per_epoch else 0, per_epoch

    def _epochs(
        self, batch_size: int, rng: torch.Generator | None, per_epoch: int, total: int
    ) -> Iterator[Tensor]:
        """Yield the positions of each epoch's samples, of `total` batches altogether."""
        while total > 0:
            if rng is None:
                order = torch.arange(len(self))
            else:
                order = torch.randperm(len(self), generator=rng)
            yield order[: total * batch_size]
            total -= per_epoch

    def _batches(
        self,
        reads: Reads,
        targets: Sequence[str],
        batch_size: int,
        rng: torch.Generator | None,
        per_epoch: int,
        total: int,
    ) -> Iterator[tuple[Any, tuple[Tensor, ...]]]:
        """Yield x and target columns of each batch; `_LABELS` is a column too."""
        values = _CHUNK_CPU if self.device.type == "cpu" else _CHUNK_GPU
        chunk = max(1, values // (batch_size * self._x[0].numel())) * batch_size
        draws = None if self.augment is None else rng
        for positions in self._epochs(batch_size, rng, per_epoch, total):
            for rows in self._index[positions].split(chunk):
                columns = {name: self._target(name, rows) for name in targets}
                images = tokens = None
                if reads != "texts":
                    images = self._gather(rows) if draws is None else self._read(rows)
                if reads != "inputs":
                    tokens = self._tokens(rows)
                for first in range(0, len(rows), batch_size):
                    batch = slice(first, first + batch_size)
                    y = {name: column[batch] for name, column in columns.items()}
                    x: Any = None if images is None else images[batch]
                    if draws is not None and x is not None:
                        # Batch by batch, so that the draws do not depend on the chunk.
                        x, place = self._augmented(x, draws)
                        if {"boxes", "box_labels"} <= y.keys():
                            moved = place.boxes(y["boxes"], y["box_labels"])
                            y["boxes"], y["box_labels"] = moved
                    if tokens is not None:
                        x = tokens[batch] if x is None else (x, tokens[batch])
                    yield x, tuple(y.values())

    def _augmented(self, x: Tensor, rng: torch.Generator) -> tuple[Tensor, Placement]:
        assert self.augment is not None
        x, place = self.augment.placed(x, rng)
        return self.augment.normalised(self._normalise(x), rng), place

    def _check_reads(self, reads: Reads) -> None:
        if reads != "texts":
            self._check_inputs()
        if reads != "inputs":
            self._check_column("tokens")

    def _check_labels(self) -> None:
        if not self.labelled:
            raise HiddenData("the labels of this client's samples are hidden from it")

    def _check_inputs(self) -> None:
        if self.modality == "text" and self.split.x.dtype == np.uint8:
            raise HiddenData("this client holds texts only, not images")

    def _check_column(self, name: str) -> None:
        if name in ("boxes", "box_labels"):
            self._check_labels()
        if name in ("tokens", "text") and self.modality == "image":
            raise HiddenData(f"this client holds images only, not the column {name!r}")
        if name not in self.split.extra:
            raise KeyError(name)

    def _rows(self, order: Order) -> Tensor:
        if order is None:
            return self._index
        return self._index[torch.as_tensor(order, dtype=torch.int64)]

    def _column(self, name: str, rows: Tensor) -> Tensor | np.ndarray:
        values = np.asarray(self.split.extra[name][rows.numpy()])
        return values if values.dtype.kind == "S" else torch.from_numpy(values).to(self.device)

    def _target(self, name: str, rows: Tensor) -> Tensor:
        if name == _LABELS:
            return self._y.index_select(0, rows).to(self.device)
        return torch.as_tensor(self._column(name, rows))

    def _tokens(self, rows: Tensor) -> Tensor:
        return self._target("tokens", rows).long()

    def _gather(self, rows: Tensor) -> Tensor:
        if self.features is not None:
            return self.features(rows.numpy()).to(self.device)
        if self._x.dtype == torch.int32:
            return self._x.index_select(0, rows).to(self.device).long()
        return self._normalise(self._read(rows))

    def _read(self, rows: Tensor) -> Tensor:
        # Bytes travel to the device, not floats.
        return self._x.index_select(0, rows).to(self.device).float()

    def _normalise(self, x: Tensor) -> Tensor:
        # Two passes, not one addcmul: they take half the time, and a value never depends on
        # where in the chunk it stands.
        return x.mul_(self._scale).add_(self._shift).permute(0, 3, 1, 2)


class ClientData:
    """One client's samples over `split`, the training split that was partitioned.

    Every client has training samples; `validation` and `test` may be empty. `test_split` is needed
    where test samples come from there. Labels of test samples can always be read: they are for
    scoring. `augment` changes the training samples; `features` and `test_features` are those of the
    views over the two splits.
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
        features: Callable[[np.ndarray], Tensor] | None = None,
        test_features: Callable[[np.ndarray], Tensor] | None = None,
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
                raise ValueError(
                    "test samples are of the test split, and ClientData has no test_split"
                )
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
