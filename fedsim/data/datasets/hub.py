"""Any data set of the Hugging Face hub, or a local copy, by its columns' names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.arrays import dataset_of
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset
from fedsim.data.images import Fit
from fedsim.data.loaders.holdout import held_out
from fedsim.data.loaders.hub_tables import Table, as_numbers, opener
from fedsim.data.sources import digest, fingerprint
from fedsim.data.tokens import build_vocabulary, encode, to_bytes
from fedsim.errors import InputError, check


def hub(
    *,
    path: str,
    config: str | None = None,
    revision: str | None = None,
    image: str | None = "image",
    label: str = "label",
    text: str | None = None,
    domain: str | None = None,
    owner: str | None = None,
    train: str = "train",
    validation: str | None = None,
    test: str | None = "test",
    test_share: float = 0.2,
    split_seed: int = 0,
    size: int | None = None,
    channels: Literal[1, 3] = 3,
    fit: Fit = "squash",
    length: int = 64,
    vocabulary: int | None = 20_000,
) -> Dataset:
    """Any data set of the Hugging Face hub by id, or a local one by path, with its columns' names.

    `path` is an id such as ``ylecun/mnist``, a folder made by ``save_to_disk``, or one of
    parquet, CSV, JSON or image files; `config` and `revision` choose among a set's versions.
    `image` and `text` are columns to learn from, at least one of them; both make image-text pairs.
    `label`, `domain` and `owner` are columns of whole numbers, class labels or texts. `train`,
    `validation` and `test` are names of splits; with `test` null, `test_share` of each class is
    held out of the training split with `split_seed`.

    Images are resized to `size` x `size` (null: all must be of one size). Texts become `length`
    tokens of the `vocabulary` most frequent words of the training split.

    A set of the hub is fetched once for each combination of options; name a `revision` to fetch
    another. Local files that change are read again.

    Raises:
        InputError: the package datasets is not installed; a set, split or column that is not
            there, or not of the right type; a broken image; a label out of range.
    """
    check(image is not None or text is not None, "dataset.image or dataset.text must be set", None)
    check(size is None or size >= 1, "dataset.size must be at least 1 pixel", size)
    check(length >= 1, "dataset.length must be at least 1 token", length)
    options = dict(locals())
    local = Path(path).expanduser()
    if local.exists():
        options["files"] = fingerprint([local, *(p for p in local.rglob("*") if p.is_file())])
    elif path.startswith(("/", ".", "~")):
        raise InputError(f"dataset.path must be a folder or an id of the hub: there is no {path}")
    key = f"hub-1-{digest(json.dumps(options, sort_keys=True))}"
    columns = {"domain": domain, "owner": owner}

    def build() -> Arrays:
        open_split, describe = opener(path, config, revision)
        names = {"train": train, "validation": validation, "test": test}
        tables = {split: open_split(name) for split, name in names.items() if name is not None}
        if test is None:
            (labels,), _ = as_numbers([tables["train"]], label)
            is_test = held_out(labels, test_share, split_seed)
            tables["test"] = tables["train"].select(np.flatnonzero(is_test))
            tables["train"] = tables["train"].select(np.flatnonzero(~is_test))
        arrays, about = _numbers(tables, {"y": label, **columns})
        if text is not None:
            arrays |= _texts(tables, text, length, vocabulary, as_column=image is not None)
        if image is not None:
            arrays |= _images(tables, image, size, channels, fit)
        return {**arrays, "about": to_bytes([json.dumps(about | describe())])}

    arrays = cached_arrays(key, build)
    about: dict[str, Any] = json.loads(arrays["about"][0])
    card = Card(
        title=path,
        source=path if local.exists() else f"huggingface.co/datasets/{path}",
        licence=about["licence"],
        classes=tuple(about["y"]),
        description=about["description"],
        kind="image-text" if image and text else "text" if text else "image",
        domains=tuple(about.get("domain", ())),
    )
    return dataset_of("hub", arrays, card, stats_key=key)


def _numbers(
    tables: dict[str, Table], columns: dict[str, str | None]
) -> tuple[dict[str, Array], dict[str, Any]]:
    """Return the labels and the columns of numbers of all splits, and the names they index."""
    arrays: dict[str, Array] = {}
    about = {}
    for column, source in columns.items():
        if source is None:
            continue
        numbers, names = as_numbers(list(tables.values()), source)
        if column != "owner":  # there may be as many owners as samples
            about[column] = names
        for split, values in zip(tables, numbers, strict=True):
            arrays[f"{split}-y" if column == "y" else f"{split}-extra-{column}"] = values
    return arrays, about


def _images(
    tables: dict[str, Table], column: str, size: int | None, channels: int, fit: Fit
) -> dict[str, Array]:
    first = next(iter(tables.values()))
    shape = (size, size, channels) if size else first.image_shape(column, channels)
    arrays: dict[str, Array] = {}
    for split, table in tables.items():
        images = table.images(column, shape, fit, resize=bool(size))
        arrays[f"{split}-x"] = Stream((len(table), *shape), np.uint8, images)
    return arrays


def _texts(
    tables: dict[str, Table], column: str, length: int, size: int | None, as_column: bool
) -> dict[str, Array]:
    words = build_vocabulary((t for block in tables["train"].texts(column) for t in block), size)
    arrays: dict[str, Array] = {"vocabulary": to_bytes(words)}
    for split, table in tables.items():
        rows = (encode(block, words, length) for block in table.texts(column))
        stream = Stream((len(table), length), np.int32, rows)
        if not as_column:
            arrays[f"{split}-x"] = stream
        else:
            arrays[f"{split}-extra-tokens"] = stream
            texts = (text for block in table.texts(column) for text in block)
            arrays[f"{split}-extra-text"] = to_bytes(texts)
    return arrays
