"""Loss of an anchor-free one-stage detector, for true boxes and pseudo boxes.

    L = B (w_box L_box + w_obj L_obj + w_cls L_cls),  B the batch size (YOLOv5's form)
    L_box  mean of 1 - CIoU over the cells that are assigned a box
    L_obj  binary cross-entropy over all cells: of a cell with a box towards the IoU of its
           prediction, or towards the box's soft value, elsewhere towards 0; mean over the cells of
           a level, weighted sum over levels
    L_cls  binary cross-entropy over classes, mean over the cells that are assigned a box

A box is assigned to the cell of its centre and that cell's two neighbours nearest to the centre, on
the level of its size. If two boxes claim a cell, the smaller one gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fedsim.maths.boxes import areas, overlap

SIZE_OF_LEVEL = 4
"""The square root of a box's area, in strides, from which it is assigned to the next level."""


@dataclass(frozen=True)
class Grid:
    """The cells of a detector for images of one size, level by level, row by row.

    `corners` (A, 2) are the upper left corners in pixels, `strides` (A,) the sides of the cells;
    `shapes` are (rows, columns, stride) of each level, the finest first.
    """

    shapes: tuple[tuple[int, int, int], ...]
    corners: Tensor
    strides: Tensor


@lru_cache(maxsize=32)
def grid(shapes: tuple[tuple[int, int, int], ...], device: torch.device) -> Grid:
    """Return the cells of levels (rows, columns, stride)."""
    corners, strides = [], []
    with torch.inference_mode(False):  # cached, and possibly needed for gradients later
        for rows, columns, stride in shapes:
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            corners.append(torch.stack([x, y], dim=2).view(-1, 2).float() * stride)
            strides.append(torch.full((rows * columns,), float(stride)))
        return Grid(shapes, torch.cat(corners).to(device), torch.cat(strides).to(device))


@dataclass
class Targets:
    """Boxes (n, K, 4) with labels (n, K), -1 for none, and the terms of the loss they enter.

    `classify` and `regress`, bool (n, K): whether a box enters L_cls, and L_box. `soft` (n, K): the
    objectness to predict, or below 0 for the IoU of the prediction.
    """

    boxes: Tensor
    labels: Tensor
    classify: Tensor
    regress: Tensor
    soft: Tensor

    @classmethod
    def certain(cls, boxes: Tensor, labels: Tensor) -> Targets:
        """Return targets of boxes that enter every term."""
        yes = labels >= 0
        return cls(boxes, labels, yes, yes, torch.full_like(boxes[..., 0], -1.0))


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, >= 0; the defaults are YOLOv5's, `classes` for 80 classes."""

    box: float = 0.05
    objectness: float = 0.7
    classes: float = 0.3


def assigned(boxes: Tensor, exists: Tensor, cells: Grid) -> Tensor:
    """Return the box assigned to each cell, int64 (n, A), -1 for none.

    `exists`, bool (n, K), marks the boxes (n, K, 4) that are no padding.
    """
    n, most = exists.shape
    area = areas(boxes)
    side = area.sqrt()
    # Ranks are distinct, so that the smallest one of a cell names one box.
    rank = torch.argsort(torch.argsort(area, dim=1, stable=True), dim=1, stable=True)
    best = torch.full((n, len(cells.strides)), most, dtype=torch.int64, device=boxes.device)
    first, low = 0, 0.0
    for level, (rows, columns, stride) in enumerate(cells.shapes):
        last = level == len(cells.shapes) - 1
        high = float("inf") if last else float(SIZE_OF_LEVEL * stride)
        here = exists & (side >= low) & (side < high)
        centre = (boxes[..., :2] + boxes[..., 2:]) / (2 * stride)
        limits = torch.tensor([columns - 1, rows - 1], device=boxes.device)
        cell = torch.minimum(centre.floor().long().clamp_min(0), limits)
        beside = cell + torch.where(centre - cell < 0.5, -1, 1)
        for x, y in (
            (cell[..., 0], cell[..., 1]),
            (beside[..., 0], cell[..., 1]),
            (cell[..., 0], beside[..., 1]),
        ):
            inside = here & (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
            index = torch.where(inside, first + y * columns + x, 0)
            claim = torch.where(inside, rank, most)
            best.scatter_reduce_(1, index, claim, "amin")
        first, low = first + rows * columns, high
    by_rank = torch.argsort(rank, dim=1)
    padded = F.pad(by_rank, (0, 1), value=-1)
    return padded.gather(1, best)


def detection_loss(
    boxes: Tensor,
    objectness: Tensor,
    classes: Tensor,
    targets: Targets,
    cells: Grid,
    weights: Weights,
) -> Tensor:
    """Return the loss L of a batch of n images, a scalar.

    Predictions of the A cells: `boxes` (n, A, 4) in pixels, `objectness` (n, A) and `classes`
    (n, A, C) as logits.
    """
    n, num_classes = len(boxes), classes.shape[2]
    which = assigned(targets.boxes, targets.labels >= 0, cells)
    image, cell = torch.nonzero(which >= 0, as_tuple=True)
    box = which[image, cell]
    true_boxes = targets.boxes[image, box]
    predicted = boxes[image, cell]
    fit = overlap(predicted, true_boxes, "ciou")
    box_loss = _mean((1 - fit)[targets.regress[image, box]])
    soft = targets.soft[image, box]
    iou = overlap(predicted.detach(), true_boxes)
    goal = torch.zeros_like(objectness)
    goal[image, cell] = torch.where(soft < 0, iou, soft)
    taught = targets.classify[image, box]
    truth = F.one_hot(targets.labels[image, box][taught], num_classes).to(classes.dtype)
    logits = classes[image, cell][taught]
    class_loss = _mean(F.binary_cross_entropy_with_logits(logits, truth, reduction="none"))
    objectness_loss = objectness.new_zeros(())
    sizes = [rows * columns for rows, columns, _ in cells.shapes]
    balance = (4.0, 1.0, 0.4) if len(sizes) == 3 else (1.0,) * len(sizes)
    pieces = zip(balance, objectness.split(sizes, 1), goal.split(sizes, 1), strict=True)
    for weight, level, level_goal in pieces:
        entropy = F.binary_cross_entropy_with_logits(level, level_goal)
        objectness_loss = objectness_loss + weight * entropy
    class_weight = weights.classes * num_classes / 80 * 3 / len(sizes)
    loss = weights.box * box_loss + weights.objectness * objectness_loss + class_weight * class_loss
    return n * loss


def _mean(values: Tensor) -> Tensor:
    """Return the mean, 0 of nothing."""
    return values.sum() / max(1, values.numel())
