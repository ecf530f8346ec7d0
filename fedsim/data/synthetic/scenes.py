"""Scenes: pictures with an alpha channel pasted on photographs, and their boxes.

All arithmetic is on whole numbers, or on floats that hold them exactly, and every draw is taken
from a raw Philox stream: the same plan gives the same bytes on any machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from fedsim.rng import derive

VISIBLE = 128
"""The alpha from which a pixel counts as part of its object."""

_LEAST_VISIBLE = 0.5  # of its pixels an object keeps when others are pasted over it
CHUNK = 8
"""Scenes rendered at once: few enough for the processor's cache. Changes no result."""


class Draws:
    """Uniform numbers from the raw stream of an address; rows come in the order of samples."""

    def __init__(self, seed: int, purpose: str) -> None:
        self._bits = np.random.Philox(key=derive(seed, purpose))

    def raw(self, *shape: int) -> np.ndarray:
        """Return uint64 of a shape."""
        return self._bits.random_raw(int(np.prod(shape))).reshape(shape)

    def uniform(self, *shape: int) -> np.ndarray:
        """Return float64 of a shape, in [0, 1)."""
        return (self.raw(*shape) >> np.uint64(11)) * 2.0**-53


@dataclass(frozen=True)
class Objects:
    """Placement of the objects of n scenes: arrays (n, K) of whole numbers.

    `picture` is a row of the pictures, -1 for none; `side` the pixels that the picture is resized
    to, `x` and `y` its upper left corner, inside the scene. Later objects lie over earlier ones.
    """

    picture: np.ndarray
    side: np.ndarray
    x: np.ndarray
    y: np.ndarray

    def __len__(self) -> int:
        return len(self.picture)

    def __getitem__(self, rows: slice) -> Objects:
        return Objects(self.picture[rows], self.side[rows], self.x[rows], self.y[rows])


@dataclass(frozen=True)
class Scenes:
    """Rendered scenes: images uint8 (b, S, S, 3), boxes float32 (b, K, 4), shown bool (b, K).

    A box is tight around the object's visible pixels (alpha of at least 128, nothing pasted over
    them), its corners x1, y1, x2, y2 at the pixels' outer edges; zeros where not shown.
    """

    images: np.ndarray
    boxes: np.ndarray
    shown: np.ndarray


def choose(u: np.ndarray, count: int | np.ndarray) -> np.ndarray:
    """Return whole numbers 0..count-1, int64, from uniform numbers in [0, 1)."""
    return (u * count).astype(np.int64)


def scatter(
    picture: np.ndarray, side: np.ndarray, u: np.ndarray, size: int, overlap: float = 0.25
) -> Objects:
    """Place pictures (n, K) of `side` at random, without those that fit nowhere.

    u (n, K, T, 2) uniform: T places are tried for each. A place is refused if the two squares
    share more than `overlap` of the smaller one, with any object placed before.
    """
    n, most, tries, _ = u.shape
    x, y = np.zeros((n, most), np.int64), np.zeros((n, most), np.int64)
    placed = np.zeros((n, most), bool)
    for k in range(most):
        for t in range(tries):
            new_x, new_y = (choose(u[:, k, t, axis], size + 1 - side[:, k]) for axis in (0, 1))
            fits = (picture[:, k] >= 0) & ~placed[:, k]
            for j in range(k):
                wide = np.minimum(new_x + side[:, k], x[:, j] + side[:, j])
                high = np.minimum(new_y + side[:, k], y[:, j] + side[:, j])
                shared = (wide - np.maximum(new_x, x[:, j])).clip(0)
                shared *= (high - np.maximum(new_y, y[:, j])).clip(0)
                smaller = np.minimum(side[:, k], side[:, j]) ** 2
                fits &= ~placed[:, j] | (shared <= overlap * smaller)
            x[fits, k], y[fits, k] = new_x[fits], new_y[fits]
            placed[:, k] |= fits
    return Objects(np.where(placed, picture, -1), side, x, y)


class Backgrounds:
    """Square crops of photographs, whole and halved, mirrored or not."""

    draws = 5
    """Uniform numbers that one crop takes."""

    def __init__(self, photographs: Sequence[np.ndarray], size: int) -> None:
        self.size = size
        self._levels = []
        for photograph in photographs:
            levels = (photograph, _halve(photograph))
            fitting = [level for level in levels if min(level.shape[:2]) >= size]
            if fitting:
                self._levels.append(fitting)

    def crop(self, u: np.ndarray) -> np.ndarray:
        """Return uint8 (S, S, 3) chosen by u (5,), uniform."""
        levels = self._levels[int(u[0] * len(self._levels))]
        level = levels[int(u[1] * len(levels))]
        top = int(u[2] * (level.shape[0] - self.size + 1))
        left = int(u[3] * (level.shape[1] - self.size + 1))
        square = level[top : top + self.size, left : left + self.size]
        return square[:, ::-1] if u[4] < 0.5 else square


def render(
    pictures: np.ndarray,
    objects: Objects,
    backgrounds: Backgrounds,
    crops: np.ndarray,
) -> Iterator[Scenes]:
    """Yield the scenes in order, up to `CHUNK` at a time.

    pictures uint8 (m, h, h, 4), RGBA; crops (n, 5), uniform. An object that would leave an earlier
    one with less than half of its pixels visible is not pasted: it is not `shown`.
    """
    n, most = objects.picture.shape
    size = backgrounds.size
    for start in range(0, n, CHUNK):
        count = min(CHUNK, n - start)
        scenes = Scenes(
            np.empty((count, size, size, 3), np.uint8),
            np.zeros((count, most, 4), np.float32),
            np.zeros((count, most), bool),
        )
        block = objects[start : start + count]
        resized = _resize_all(pictures, block)
        for i in range(count):
            scenes.images[i] = backgrounds.crop(crops[start + i])
            _paste(scenes, i, block, resized)
        yield scenes


def _paste(
    scenes: Scenes, i: int, objects: Objects, resized: dict[tuple[int, int], np.ndarray]
) -> None:
    image = scenes.images[i]
    owner = np.full(image.shape[:2], -1, np.int8)
    whole: dict[int, int] = {}  # the pixels of each object pasted so far, and those still visible
    visible: dict[int, int] = {}
    for k in range(objects.picture.shape[1]):
        picture = resized.get((i, k))
        if picture is None:
            continue
        x, y, side = objects.x[i, k], objects.y[i, k], objects.side[i, k]
        window = (slice(y, y + side), slice(x, x + side))
        solid = picture[..., 3] >= VISIBLE
        hidden = owner[window][solid]
        lost = np.bincount(hidden[hidden >= 0], minlength=k)
        left = {j: visible[j] - int(lost[j]) for j in visible}
        total = int(np.count_nonzero(solid))
        if total == 0 or any(left[j] < _LEAST_VISIBLE * whole[j] for j in left):
            continue
        under = image[window].astype(np.uint16) * (255 - picture[..., 3:].astype(np.uint16))
        image[window] = picture[..., :3] + _divide_by_255(under)
        owner[window][solid] = k
        whole[k] = total
        visible = {**left, k: total}
        scenes.shown[i, k] = True
    for k in visible:
        x, y, side = (int(a[i, k]) for a in (objects.x, objects.y, objects.side))
        mine = owner[y : y + side, x : x + side] == k
        columns, rows = np.flatnonzero(mine.any(0)), np.flatnonzero(mine.any(1))
        scenes.boxes[i, k] = x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1


def _resize_all(pictures: np.ndarray, objects: Objects) -> dict[tuple[int, int], np.ndarray]:
    """Return (scene, object) -> uint8 (side, side, 4) with colours multiplied by alpha."""
    resized = {}
    present = objects.picture >= 0
    for side in np.unique(objects.side[present]):
        where = np.argwhere(present & (objects.side == side))
        rgba = pictures[objects.picture[where[:, 0], where[:, 1]]]
        colours = rgba[..., :3].astype(np.uint16) * rgba[..., 3:]
        rgba = np.concatenate([_divide_by_255(colours), rgba[..., 3:]], axis=3)
        for (i, k), picture in zip(where.tolist(), resize(rgba, int(side)), strict=True):
            resized[i, k] = picture
    return resized


def resize(pictures: np.ndarray, side: int) -> np.ndarray:
    """Resize square pictures uint8 (m, h, h, c) to uint8 (m, side, side, c), smoothly."""
    m, h, _, c = pictures.shape
    weights = _weights(h, side)
    # Products of weights in 64ths stay below 2**24, so float32 sums them exactly in any order.
    rows = weights @ pictures.reshape(m, h, h * c).astype(np.float32)
    columns = weights @ rows.reshape(m * side, h, c)
    return ((columns + 2048).astype(np.int32) >> 12).astype(np.uint8).reshape(m, side, side, c)


@lru_cache(maxsize=256)
def _weights(source: int, target: int) -> np.ndarray:
    """Return float32 (target, source): a tent over the source pixels in 64ths, rows sum to 64."""
    # Distances in units of half a target pixel's share: whole numbers, so nothing is rounded.
    centres = (2 * np.arange(target) + 1) * source - target
    distances = np.abs(2 * target * np.arange(source) - centres[:, None])
    tent = (2 * max(source, target) - distances).clip(0)
    total = tent.sum(1, keepdims=True)
    weights = (128 * tent + total) // (2 * total)
    weights[np.arange(target), weights.argmax(1)] += 64 - weights.sum(1)
    return weights.astype(np.float32)


def _divide_by_255(products: np.ndarray) -> np.ndarray:
    """Return uint8: uint16 products of two bytes over 255, rounded to nearest."""
    products = products + np.uint16(128)
    return ((products + (products >> np.uint16(8))) >> np.uint16(8)).astype(np.uint8)


def _halve(image: np.ndarray) -> np.ndarray:
    """Return the image at half its size, each pixel the rounded mean of four."""
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    blocks = image[:h, :w].reshape(h // 2, 2, w // 2, 2, 3).astype(np.uint16)
    return ((blocks.sum((1, 3), dtype=np.uint16) + 2) >> 2).astype(np.uint8)


def pack_boxes(scenes: Scenes, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (b, K, 4) and labels (b, K): objects shown come first, then zeros and -1."""
    order = np.argsort(~scenes.shown, axis=1, kind="stable")
    boxes = np.take_along_axis(scenes.boxes, order[..., None], 1)
    packed = np.take_along_axis(np.where(scenes.shown, labels, -1), order, 1)
    return boxes, packed


def label_of_largest(boxes: np.ndarray, box_labels: np.ndarray) -> np.ndarray:
    """Return int64 (n,): the class of each image's largest box, the first of equals, or -1."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    largest = np.where(box_labels >= 0, area, -1).argmax(1)
    return np.take_along_axis(box_labels, largest[:, None], 1)[:, 0]
