"""Union of data sets of images, texts and image-text pairs, a domain each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedsim.data.arrays import dataset_of, pack_names, split_arrays
from fedsim.data.cache import Array, Arrays, Stream, cached_arrays
from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.images import Fit, resize_images
from fedsim.data.nested import Source
from fedsim.data.sources import digest, track
from fedsim.data.tokens import END, build_vocabulary, encode
from fedsim.errors import InputError, check

_VERSION = 1
_BLOCK = 256
"""Images resized and written at once."""


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

    `sets` maps the name of a domain to its data set. Images are resized to `size` (H, W), `fit` by
    ``squash`` or ``crop``. All texts share one `vocabulary`, of the most frequent words of all
    training texts, and are cut at `length` tokens. Classes are those of each set in turn, named
    ``set/class``. A missing modality is blank: a black image, a text without words. The test split
    has the test samples of the sets in `test`, by default of all.

    Columns: `tokens`, `domain` and `group`, numbered separately for each set.

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
    datasets = {name: _mergeable(name, source()) for name, source in sets.items()}
    identity: list[str | bytes] = [f"{_VERSION}{size}{fit}{length}-{vocabulary}{tested}"]
    for name, dataset in datasets.items():
        identity += [f"{name}{sets[name].section}", _digest(dataset.train), _digest(dataset.test)]

    def build() -> Arrays:
        texts = (t for dataset in datasets.values() for t in _texts(dataset.train))
        words = build_vocabulary(texts, vocabulary)
        arrays: dict[str, Array] = {"vocabulary": pack_names(words)}
        for split, names in (("train", tuple(datasets)), ("test", tested)):
            columns = _columns(split, names, datasets, size, fit, length, words)
            arrays |= split_arrays(split, columns)
        return arrays

    arrays = cached_arrays(f"union-{digest(*identity)}", build)
    return dataset_of("union", arrays, _card(datasets, size))


def _mergeable(name: str, dataset: Dataset) -> Dataset:
    kind = dataset.card.kind
    requirement = f"dataset.sets.{name} must be of images, texts or pairs of them"
    check(kind in ("image", "text", "image-text"), requirement, kind)
    if kind != "image":
        for split in (dataset.train, dataset.test):
            if "text" not in split.extra:
                raise InputError(
                    f"dataset.sets.{name}, {dataset.name}, keeps no texts but tokens of a "
                    "vocabulary of its own, which cannot be merged with others"
                )
    return dataset


def _columns(
    split: str,
    names: Sequence[str],
    datasets: Mapping[str, Dataset],
    size: tuple[int, int],
    fit: Fit,
    length: int,
    words: tuple[str, ...],
) -> Arrays:
    """Return the columns of one split, with the samples of the sets in `names`."""
    number = {name: i for i, name in enumerate(datasets)}
    offsets = np.cumsum([0, *(dataset.num_classes for dataset in datasets.values())])
    splits: dict[str, Split] = {name: getattr(datasets[name], split) for name in names}
    total, base = sum(map(len, splits.values())), 0
    y, domain, tokens, group = [], [], [], []
    for name, samples in splits.items():
        y.append(samples.y + offsets[number[name]])
        domain.append(np.full(len(samples), number[name], np.int64))
        if datasets[name].card.kind == "image":
            tokens.append(np.full((len(samples), length), END, np.int32))
        else:
            tokens.append(encode(list(_texts(samples)), words, length))
        groups = np.asarray(samples.extra.get("group", np.arange(len(samples))), np.int64)
        groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
        group.append(groups + base)
        base += int(groups.max()) + 1
    blocks = sum(-(-len(samples) // _BLOCK) for samples in splits.values())
    images = track(_images(splits, size, fit), f"union, {split}", blocks)
    columns = {"y": y, "domain": domain, "tokens": tokens, "group": group}
    return {
        "x": Stream((total, *size, 3), np.uint8, images),
        **{name: np.concatenate(values) for name, values in columns.items()},
    }


def _images(splits: Mapping[str, Split], size: tuple[int, int], fit: Fit) -> Iterator[np.ndarray]:
    """Yield uint8 (k, H, W, 3), in order; zeros where a set has no images."""
    for split in splits.values():
        for start in range(0, len(split), _BLOCK):
            block = split.x[start : start + _BLOCK]
            if block.dtype == np.uint8:
                yield resize_images(block, size, fit)
            else:
                yield np.zeros((len(block), *size, 3), np.uint8)


def _texts(split: Split) -> Iterator[str]:
    """Yield the texts of a split, none where it has images alone."""
    for text in split.extra.get("text", ()):
        yield bytes(text).decode(errors="replace")


def _digest(split: Split) -> bytes:
    """Return a fingerprint of a split: its dtypes and shapes, and the bytes of some rows."""
    whole = hashlib.sha256()
    rows = np.unique(np.linspace(0, len(split) - 1, 64).astype(int))
    for name, array in sorted({"x": split.x, "y": split.y, **split.extra}.items()):
        whole.update(f"{name}{array.dtype}{array.shape}".encode())
        whole.update(np.ascontiguousarray(array[rows]).tobytes())
    return whole.digest()


def _stats(datasets: Mapping[str, Dataset]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation per channel over the sets with images, from those of each set.

    Blank images do not count.
    """
    cards = [(len(d.train), d.card) for d in datasets.values() if d.card.kind != "text"]
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


def _card(datasets: Mapping[str, Dataset], size: tuple[int, int]) -> Card:
    mean, std = _stats(datasets)
    cards = {name: dataset.card for name, dataset in datasets.items()}
    return Card(
        title="Union of " + ", ".join(card.title for card in cards.values()),
        source="; ".join(f"{name}: {card.source}" for name, card in cards.items()),
        licence="; ".join(f"{name}: {card.licence}" for name, card in cards.items()),
        classes=tuple(f"{name}/{c}" for name, card in cards.items() for c in card.classes),
        input_shape=(3, *size),
        mean=mean,
        std=std,
        description="; ".join(
            f"{name}: {len(dataset.train)} training samples ({dataset.card.kind})"
            for name, dataset in datasets.items()
        ),
        kind="image-text",
        domains=tuple(datasets),
    )
