"""Columns of Hugging Face data sets, of the hub or a local copy, as arrays."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.images import Fit, read_image
from fedsim.data.loaders.decoding import channel_number, decode_rows
from fedsim.data.sources import refusing
from fedsim.errors import InputError, nearest

_BLOCK = 256

Item = tuple[int, Any]
"""A row's number and its image: a mapping with ``bytes`` or ``path``, or None."""


class Table:
    """One split of a data set: `name` is what messages call it, `data` a `datasets.Dataset`."""

    def __init__(self, data: Any, name: str) -> None:
        self.data, self.name = data, name

    def __len__(self) -> int:
        return len(self.data)

    def select(self, rows: np.ndarray) -> Table:
        """Return the rows int64 (k,) as a table."""
        return Table(self.data.select(rows), self.name)

    def blocks(self, column: str, size: int = 4096) -> Iterator[list[Any]]:
        """Yield the values of a column in blocks of rows.

        Raises:
            InputError: there is no such column.
        """
        self._check_column(column)
        data = self.data.select_columns([column])
        for start in range(0, len(self), size):
            yield data[start : start + size][column]

    def texts(self, column: str) -> Iterator[list[str]]:
        """Yield the texts of a column in blocks of rows.

        Raises:
            InputError: there is no such column, or a value is no text.
        """
        start = 0
        for block in self.blocks(column):
            for i, value in enumerate(block, start):
                if not isinstance(value, str):
                    raise InputError(
                        f"column {column!r} of {self.name} must hold texts, got "
                        f"{str(value)[:50]!r} in row {i}"
                    )
            start += len(block)
            yield block

    def image_shape(self, column: str, channels: int) -> tuple[int, int, int]:
        """Return the shape (H, W, `channels`) of the first image.

        Raises:
            InputError: a column that is not there or not of images, a row without a whole image.
        """
        data = self._encoded(column)
        height, width, _ = self._read((0, data[0][column]), None, channels, "squash").shape
        return height, width, channels

    def images(
        self, column: str, shape: tuple[int, int, int], fit: Fit, resize: bool
    ) -> Iterator[np.ndarray]:
        """Yield the images of a column as uint8 (k, *shape), resized to `shape` if `resize`.

        Raises:
            InputError: a column that is not there or not of images; a row without a whole
                image; without `resize`, an image of another shape.
        """
        data = self._encoded(column)
        size = shape[:2] if resize else None

        def items() -> Iterator[Item]:
            for start in range(0, len(data), _BLOCK):
                yield from enumerate(data[start : start + _BLOCK][column], start)

        def read(item: Item) -> np.ndarray:
            return self._read(item, size, shape[2], fit)

        title = f"reading {self.name}"
        return decode_rows(items(), read, self._row_name, shape, title, len(self))

    def _encoded(self, column: str) -> Any:
        """Return the table of the one column, with images as bytes or paths of files."""
        import datasets  # type: ignore[import-untyped]

        self._check_column(column)
        requirement = (
            f"column {column!r} of {self.name} must hold images, got "
            f"{self.data.features[column]}; name another one in dataset.image"
        )
        with refusing(requirement, TypeError, ValueError, NotImplementedError):
            undecoded = datasets.Image(decode=False)
            return self.data.select_columns([column]).cast_column(column, undecoded)

    def _read(
        self, item: Item, size: tuple[int, int] | None, channels: int, fit: Fit
    ) -> np.ndarray:
        content, name = item[1] or {}, self._row_name(item)
        depth = channel_number(channels)
        if content.get("bytes") is not None:
            return read_image(io.BytesIO(content["bytes"]), size, depth, fit, name)
        if content.get("path") is None:
            raise InputError(f"{name} has no image; leave such rows out of the data set")
        return read_image(Path(content["path"]), size, depth, fit)

    def _row_name(self, item: Item) -> str:
        return f"row {item[0]} of {self.name}"

    def _check_column(self, column: str) -> None:
        known = self.data.column_names
        if column not in known:
            raise InputError(
                f"{self.name} has no column {column!r}, only {', '.join(known)}; name the right "
                f"one in dataset.image, label, text, domain or owner.{nearest(column, known)}"
            )


def as_numbers(tables: list[Table], column: str) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Return a column of each table as numbers int64 (n,), and the names that they index.

    Names are those of a column of class labels; else the values that occur in any table, sorted.

    Raises:
        InputError: a missing value, one that is neither whole number nor text, a label -1.
    """
    columns = [[value for block in table.blocks(column) for value in block] for table in tables]
    for table, values in zip(tables, columns, strict=True):
        for i, value in enumerate(values):
            if not isinstance(value, (str, int)):
                raise InputError(
                    f"column {column!r} of {table.name} must hold whole numbers or texts, got "
                    f"{value!r} in row {i}"
                )
    names = getattr(tables[0].data.features[column], "names", None)
    if names is None:
        distinct = {value for values in columns for value in values}
        if len({isinstance(value, str) for value in distinct}) > 1:
            raise InputError(f"column {column!r} must hold the same type in all splits")
        number = {value: i for i, value in enumerate(sorted(distinct))}
        arrays = [np.array([number[value] for value in values], np.int64) for values in columns]
        return arrays, tuple(map(str, number))
    arrays = [np.array(values, np.int64) for values in columns]
    for table, array in zip(tables, arrays, strict=True):
        outside = array[(array < 0) | (array >= len(names))]
        if len(outside):
            raise InputError(
                f"column {column!r} of {table.name} must be in 0..{len(names) - 1}, got "
                f"{outside[0]}; choose a split with labels, or dataset.test: null to hold a test "
                "split out of the training split"
            )
    return arrays, tuple(names)


def opener(
    path: str, config: str | None, revision: str | None
) -> tuple[Callable[[str], Table], Callable[[], dict[str, str]]]:
    """Return a function that opens a split of a data set, and one that describes the set.

    `path` is a folder made by `save_to_disk`, a folder of files that `load_dataset` knows
    (parquet, CSV, JSON, images), or an id of the hub.

    Raises:
        InputError: the package is not installed. The function raises it where the data set or
            the split is not there.
    """
    package = "a data set of the hub needs the package datasets: pip install 'fedsim[hub]'"
    with refusing(package, ImportError):
        import datasets
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    local = Path(path).expanduser()
    info: dict[str, str] = {}

    def open_split(split: str) -> Table:
        name = f"{split} of {path}"
        try:
            if (local / "dataset_dict.json").is_file():
                whole = datasets.load_from_disk(str(local))
                if split not in whole:
                    raise ValueError(f"no split {split!r}, only {', '.join(whole)}")
                data = whole[split]
            elif (local / "state.json").is_file():
                if split != "train":
                    raise ValueError(f"no split {split!r}: it is one table, called train")
                data = datasets.load_from_disk(str(local))
            else:
                source = str(local) if local.exists() else path
                data = datasets.load_dataset(source, config, split=split, revision=revision)
        except Exception as error:  # of the hub, its network library, or any file format
            raise InputError(_unavailable(path, name, local.exists(), error)) from error
        info.setdefault("licence", str(data.info.license or "see source"))
        info.setdefault("description", str(data.info.description or "").strip().split("\n\n")[0])
        return Table(data, name)

    return open_split, lambda: info


def _unavailable(path: str, name: str, is_local: bool, error: Exception) -> str:
    if "split" in str(error).lower():
        advice = "name the splits in dataset.train, validation and test, or null for no test"
    elif is_local:
        advice = (
            f"{path} must be a folder made by save_to_disk, or of files that "
            "datasets.load_dataset reads"
        )
    else:
        advice = (
            "check dataset.path, config and revision and that the hub can be reached "
            "(HF_HUB_OFFLINE allows only what was fetched before), or give the path of a local copy"
        )
    return f"{name} cannot be opened ({type(error).__name__}: {str(error)[:300]}); {advice}"
