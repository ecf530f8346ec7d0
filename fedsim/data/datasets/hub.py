"""Any data set of the Hugging Face hub, or a local copy of one, by the names of its columns."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Kind, Split
from fedsim.data.images import Fit
from fedsim.data.loaders.decoding import cached_stats
from fedsim.data.loaders.holdout import held_out
from fedsim.data.loaders.hub_tables import Table, numbered, opener
from fedsim.data.sources import fingerprint
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
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:16]
    key = f"hub-1-{digest}"
    columns = {"domain": domain, "owner": owner}

    def build() -> Built:
        open_split, describe = opener(path, config, revision)
        names = {"train": train, "validation": validation, "test": test}
        tables = {part: open_split(name) for part, name in names.items() if name is not None}
        if test is None:
            (labels,), _ = numbered([tables["train"]], label)
            held = held_out(labels, test_share, split_seed)
            tables["test"] = tables["train"].select(np.flatnonzero(held))
            tables["train"] = tables["train"].select(np.flatnonzero(~held))
        arrays, about = _numbers(tables, {"y": label, **columns})
        if text is not None:
            arrays |= _texts(tables, text, length, vocabulary, as_column=image is not None)
        if image is not None:
            arrays |= _images(tables, image, size, channels, fit)
        return {**arrays, "about": to_bytes([json.dumps(about | describe())])}

    arrays = cached_arrays(key, build)
    return _dataset(
        path, key, arrays, "image-text" if image and text else "text" if text else "image"
    )


def _dataset(path: str, key: str, arrays: dict[str, np.ndarray], kind: Kind) -> Dataset:
    about: dict[str, Any] = json.loads(arrays["about"][0])
    words = tuple(word.decode() for word in arrays["vocabulary"]) if kind != "image" else ()

    def split(part: str) -> Split:
        prefix = f"{part}-extra-"
        extra = {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
        return Split(arrays[f"{part}-x"], arrays[f"{part}-y"], extra)

    training = split("train")
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    text_shape = None
    if kind == "text":
        shape: tuple[int, ...] = (training.x.shape[1], len(words))
    else:
        mean, std = cached_stats(key, training.x)
        shape = (training.x.shape[3], *training.x.shape[1:3])
        if kind == "image-text":
            text_shape = (training.extra["tokens"].shape[1], len(words))
    card = Card(
        title=path,
        source=f"huggingface.co/datasets/{path}" if not Path(path).expanduser().exists() else path,
        licence=about["licence"],
        classes=tuple(about["y"]),
        input_shape=shape,
        mean=mean,
        std=std,
        description=about["description"],
        kind=kind,
        domains=tuple(about.get("domain", ())),
        text_shape=text_shape,
    )
    validation = split("validation") if "validation-y" in arrays else None
    return Dataset("hub", training, split("test"), card, validation, words)


def _numbers(
    tables: dict[str, Table], columns: dict[str, str | None]
) -> tuple[dict[str, np.ndarray | Stream], dict[str, Any]]:
    """Return the labels and the columns of numbers of all splits, and the names they count."""
    arrays: dict[str, np.ndarray | Stream] = {}
    about = {}
    for column, source in columns.items():
        if source is None:
            continue
        numbers, names = numbered(list(tables.values()), source)
        if column != "owner":  # there may be as many owners as samples
            about[column] = names
        for part, values in zip(tables, numbers, strict=True):
            arrays[f"{part}-y" if column == "y" else f"{part}-extra-{column}"] = values
    return arrays, about


def _images(
    tables: dict[str, Table], column: str, size: int | None, channels: int, fit: Fit
) -> dict[str, np.ndarray | Stream]:
    first = next(iter(tables.values()))
    shape = (size, size, channels) if size else first.image_shape(column, channels)
    return {
        f"{part}-x": Stream(
            (len(table), *shape), np.uint8, table.images(column, shape, fit, resize=bool(size))
        )
        for part, table in tables.items()
    }


def _texts(
    tables: dict[str, Table], column: str, length: int, size: int | None, as_column: bool
) -> dict[str, np.ndarray | Stream]:
    words = build_vocabulary((t for block in tables["train"].texts(column) for t in block), size)
    arrays: dict[str, np.ndarray | Stream] = {"vocabulary": to_bytes(words)}
    for part, table in tables.items():
        rows = (encode(block, words, length) for block in table.texts(column))
        stream = Stream((len(table), length), np.int32, rows)
        if not as_column:
            arrays[f"{part}-x"] = stream
        else:
            arrays[f"{part}-extra-tokens"] = stream
            texts = (text for block in table.texts(column) for text in block)
            arrays[f"{part}-extra-text"] = to_bytes(texts)
    return arrays
