"""Several data sets as one: images, texts and image-text pairs, told apart by their domain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np

from fedsim.data.cache import Built, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import Fit, resize_images
from fedsim.data.loaders.texts import pack_vocabulary, split_of, unpack_vocabulary
from fedsim.data.nested import Source
from fedsim.data.sources import track
from fedsim.data.tokens import END, build_vocabulary, encode
from fedsim.errors import InputError, check

_VERSION = 1
_PIECE = 256
"""Images that are resized and written at once."""


def union(
    *,
    sets: dict[str, Source],
    size: tuple[int, int] = (32, 32),
    fit: Fit = "squash",
    length: int = 32,
    vocabulary: int = 10_000,
    test: tuple[str, ...] | None = None,
) -> Dataset:
    """Data sets of images, of texts and of pairs as one of pairs; the domain is the set.

    `sets` name the data sets by what their domains shall be called. Images are resized to `size`
    (H, W), `fit` by ``squash`` or ``crop``. All texts share one `vocabulary`, of the most frequent
    words of all training texts, and are cut at `length` tokens. Classes are those of each set in
    turn, called ``set/class``. What a set lacks is blank: a black image, a text without words. The
    test split has the test samples of the sets in `test`, by default of all.

    Columns: `tokens`, `domain` and `group`, which is kept apart by set.

    Raises:
        InputError: no sets, sets of other kinds, texts that are not kept as text, a bad option.
    """
    check(len(sets) >= 1, "dataset.sets must name at least one data set", 0)
    check(min(size) >= 1, "dataset.size must be >= 1", size)
    check(length >= 1, "dataset.length must be >= 1", length)
    check(vocabulary >= 3, "dataset.vocabulary must be >= 3", vocabulary)
    tested = tuple(sets) if test is None else test
    check(len(tested) >= 1, "dataset.test must name at least one set", tested)
    for name in tested:
        check(name in sets, f"dataset.test must be of {', '.join(sets)}", name)
    parts = {name: _checked(name, source()) for name, source in sets.items()}
    how = f"{_VERSION}{size}{fit}{length}-{vocabulary}{tested}"
    identity = hashlib.sha256(how.encode())
    for name, dataset in parts.items():
        identity.update(f"{name}{sets[name].section}".encode())
        for split in (dataset.train, dataset.test):
            identity.update(_digest(split))

    def build() -> Built:
        texts = (t for d in parts.values() for t in _texts(d.train))
        entries = build_vocabulary(texts, vocabulary)
        arrays: dict[str, np.ndarray | Stream] = {"vocabulary": pack_vocabulary(entries)}
        for part, chosen in (("train", tuple(parts)), ("test", tested)):
            some = {name: getattr(parts[name], part) for name in chosen}
            arrays |= _columns(part, some, parts, size, fit, length, entries)
        return arrays

    arrays = cached_arrays(f"union-{identity.hexdigest()[:16]}", build)
    return _dataset(parts, arrays, size)


def _checked(name: str, dataset: Dataset) -> Dataset:
    kind = dataset.card.kind
    check(
        kind in ("image", "text", "image-text"),
        f"dataset.sets.{name} must be of images, texts or pairs of them",
        kind,
    )
    if kind != "image":
        for split in (dataset.train, dataset.test):
            if "text" not in split.extra:
                raise InputError(
                    f"dataset.sets.{name}, {dataset.name}, keeps no texts but tokens of a "
                    "vocabulary of its own, which can not be made one with others"
                )
    return dataset


def _columns(
    part: str,
    splits: Mapping[str, Split],
    parts: Mapping[str, Dataset],
    size: tuple[int, int],
    fit: Fit,
    length: int,
    entries: tuple[str, ...],
) -> dict[str, np.ndarray | Stream]:
    """Return the arrays of one split, and for the training split the statistics of its images."""
    names = list(parts)
    offsets = np.cumsum([0, *(d.num_classes for d in parts.values())])
    total = sum(map(len, splits.values()))
    pieces = sum(-(-len(split) // _PIECE) for split in splits.values())
    images = track(_images(splits, size, fit), f"union, {part}", pieces)
    found: dict[str, np.ndarray | Stream] = {"x": Stream((total, *size, 3), np.uint8, images)}
    y, domain, tokens, group, base = [], [], [], [], 0
    for name, split in splits.items():
        number = names.index(name)
        y.append(split.y + offsets[number])
        domain.append(np.full(len(split), number, np.int64))
        own = np.full((len(split), length), END, np.int32)
        if parts[name].card.kind != "image":
            own = encode(list(_texts(split)), entries, length)
        tokens.append(own)
        groups = np.asarray(split.extra.get("group", np.arange(len(split))), np.int64)
        groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
        group.append(groups + base)
        base += int(groups.max()) + 1
    for column, values in (("y", y), ("domain", domain), ("tokens", tokens), ("group", group)):
        found[column] = np.concatenate(values)
    return {f"{part}-{column}": values for column, values in found.items()}


def _images(splits: Mapping[str, Split], size: tuple[int, int], fit: Fit) -> Iterator[np.ndarray]:
    """Yield uint8 (k, H, W, 3), in order; zeros where a set has no images."""
    for split in splits.values():
        for start in range(0, len(split), _PIECE):
            some = split.x[start : start + _PIECE]
            if some.dtype == np.uint8:
                yield resize_images(some, size, fit)
            else:
                yield np.zeros((len(some), *size, 3), np.uint8)


def _texts(split: Split) -> Iterator[str]:
    """Yield the texts of a split, none where it has images alone."""
    for text in split.extra.get("text", ()):
        yield bytes(text).decode(errors="replace")


def _digest(split: Split) -> bytes:
    """Return what tells a split from another one: its shapes, and the bytes of some rows."""
    digest = hashlib.sha256()
    rows = np.unique(np.linspace(0, len(split) - 1, 64).astype(int))
    for name, array in sorted({"x": split.x, "y": split.y, **split.extra}.items()):
        digest.update(f"{name}{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array[rows]).tobytes())
    return digest.digest()


def _stats(parts: Mapping[str, Dataset]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel over the sets with images, from those of each set.

    Blank images are none of them.
    """
    cards = [(len(d.train), d.card) for d in parts.values() if d.card.kind != "text"]
    if not cards:
        return (0.0,) * 3, (1.0,) * 3
    share = np.array([[float(n)] for n, _ in cards])
    share /= share.sum()
    means, stds = (
        np.stack([np.broadcast_to(getattr(card, name), 3) for _, card in cards])
        for name in ("mean", "std")
    )
    mean = (share * means).sum(0)
    squares = (share * (stds**2 + means**2)).sum(0)
    std = np.sqrt(np.maximum(squares - mean**2, 0))
    return tuple(mean.tolist()), tuple(np.where(std > 0, std, 1.0).tolist())


def _dataset(
    parts: Mapping[str, Dataset], arrays: Mapping[str, np.ndarray], size: tuple[int, int]
) -> Dataset:
    entries = unpack_vocabulary(arrays["vocabulary"])
    mean, std = _stats(parts)
    cards = {name: dataset.card for name, dataset in parts.items()}
    train, test = split_of(arrays, "train"), split_of(arrays, "test")
    card = Card(
        title="Union of " + ", ".join(card.title for card in cards.values()),
        source="; ".join(f"{name}: {card.source}" for name, card in cards.items()),
        licence="; ".join(f"{name}: {card.licence}" for name, card in cards.items()),
        classes=tuple(f"{name}/{c}" for name, card in cards.items() for c in card.classes),
        input_shape=(3, *size),
        mean=mean,
        std=std,
        description="; ".join(
            f"{name}: {len(dataset.train)} training samples ({dataset.card.kind})"
            for name, dataset in parts.items()
        ),
        kind="image-text",
        domains=tuple(parts),
        text_shape=(train.extra["tokens"].shape[1], len(entries)),
    )
    return Dataset("union", train, test, card, vocabulary=entries)
