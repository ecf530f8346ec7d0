"""Boxes of detection sets, in the columns that a `Split` has for them."""

from __future__ import annotations

import numpy as np

from fedsim.data.scenes import Scenes


def pack_boxes(scenes: Scenes, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (b, K, 4) and labels (b, K) of the objects shown, these first, then 0 and -1."""
    order = np.argsort(~scenes.shown, axis=1, kind="stable")
    boxes = np.take_along_axis(scenes.boxes, order[..., None], 1)
    packed = np.take_along_axis(np.where(scenes.shown, labels, -1), order, 1)
    return boxes, packed


def label_of_largest(boxes: np.ndarray, box_labels: np.ndarray) -> np.ndarray:
    """Return int64 (n,): the class of each image's largest box, the first of equals, or -1."""
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    largest = np.where(box_labels >= 0, area, -1).argmax(1)
    return np.take_along_axis(box_labels, largest[:, None], 1)[:, 0]
