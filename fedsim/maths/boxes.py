"""Bounding boxes as corners x1, y1, x2, y2: overlap, non-maximum suppression, matching.

The area of a box is (x2 - x1)(y2 - y1), 0 if its corners are swapped. The boxes of a batch of
images are padded to one number; a mask or the label -1 marks rows without a box.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Overlap = Literal["iou", "giou", "ciou"]

_TINY = 1e-9  # keeps quotients of empty boxes finite


def areas(boxes: Tensor) -> Tensor:
    """Return the areas (...) of boxes (..., 4)."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Return the intersections over union (..., n, m) of boxes (..., n, 4) and (..., m, 4)."""
    a, b = a.unsqueeze(-2), b.unsqueeze(-3)
    shared = _shared(a, b)
    return shared / (areas(a) + areas(b) - shared + _TINY)


def overlap(a: Tensor, b: Tensor, kind: Overlap = "iou") -> Tensor:
    """Return the overlap (...) of boxes a (..., 4) with their partners b (..., 4).

    iou: intersection over union. giou: IoU minus the share of the smallest box around both that
    neither fills (Rezatofighi et al. 2019, arXiv:1902.09630), in (-1, 1]. ciou: IoU - d^2 / c^2 -
    alpha v with d the distance of the centres, c the diagonal of the box around both, v the
    difference of the aspect ratios and alpha = v / (1 - IoU + v), a constant for the gradient
    (Zheng et al. 2020, arXiv:1911.08287, Eq. 5 to 8).
    """
    shared = _shared(a, b)
    union = areas(a) + areas(b) - shared + _TINY
    iou = shared / union
    if kind == "iou":
        return iou
    around = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    if kind == "giou":
        hull = around.prod(-1) + _TINY
        return iou - (hull - union) / hull
    centres = (a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2
    apart = centres.square().sum(-1) / (around.square().sum(-1) + _TINY)
    turned = _angle(a) - _angle(b)
    v = 4 / math.pi**2 * turned.square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + _TINY)
    return iou - apart - alpha * v


def _shared(a: Tensor, b: Tensor) -> Tensor:
    low = torch.maximum(a[..., :2], b[..., :2])
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - low).clamp_min(0)
    return sides[..., 0] * sides[..., 1]


def _angle(boxes: Tensor) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2]
    return torch.atan(sides[..., 0] / sides[..., 1].clamp_min(_TINY))


def clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return boxes (..., 4) clipped to an image."""
    limits = torch.tensor([width, height, width, height], device=boxes.device, dtype=boxes.dtype)
    return torch.minimum(boxes.clamp_min(0), limits)


def suppressed(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, iou: float, least_score: float, most: int
) -> Tensor:
    """Return the boxes that non-maximum suppression keeps, int64 (n, k), best first, -1 for none.

    `boxes` (n, K, 4), `scores` (n, K) and `labels` (n, K) are those of n images; k is the largest
    number kept in an image. From the highest score down a box is kept unless it overlaps a kept
    one of its class by more than `iou`; boxes below `least_score` are ignored, as are all but the
    `most` best of an image. Equal scores keep their order.
    """
    n, size = scores.shape
    ranked = torch.sort(scores, dim=1, descending=True, stable=True)
    longest = int((ranked.values >= least_score).sum(1).max()) if n and size else 0
    places = ranked.indices[:, : min(longest, most)]
    chosen = gathered(boxes, places)
    classes = labels.gather(1, places)
    covers = pairwise_iou(chosen, chosen) > iou
    covers &= classes.unsqueeze(2) == classes.unsqueeze(1)
    kept = scores.gather(1, places) >= least_score
    for i in range(kept.shape[1] - 1):
        kept[:, i + 1 :] &= ~(covers[:, i, i + 1 :] & kept[:, i : i + 1])
    first = torch.sort((~kept).to(torch.uint8), dim=1, stable=True).indices
    first = first[:, : int(kept.sum(1).max()) if kept.numel() else 0]
    return torch.where(kept.gather(1, first), places.gather(1, first), -1)


def gathered(values: Tensor, places: Tensor, missing: float = 0) -> Tensor:
    """Return the rows (n, k, ...) of values (n, K, ...) at places (n, k), `missing` where -1."""
    index = places.clamp_min(0)
    exists = places >= 0
    for _ in values.shape[2:]:
        index, exists = index.unsqueeze(-1), exists.unsqueeze(-1)
    index = index.expand(*places.shape, *values.shape[2:])
    if values.shape[1] == 0:
        return values.new_full(index.shape, missing)
    return torch.where(exists, values.gather(1, index), missing)


def matched(
    boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor, iou: float = 0.5
) -> Tensor:
    """Return which detections are true positives, bool (n, K).

    Detected boxes of n images are (n, K, 4) with labels (n, K), best first, true ones (n, T, 4)
    with labels (n, T); the label -1 marks no box. In this order each detection takes the unmatched
    true box of its class that it overlaps most, if by `iou` or more.
    """
    overlaps = pairwise_iou(boxes, true_boxes)
    alike = (labels.unsqueeze(2) == true_labels.unsqueeze(1)) & (labels >= 0).unsqueeze(2)
    overlaps = torch.where(alike, overlaps, -1.0)
    right = torch.zeros(labels.shape, dtype=torch.bool, device=labels.device)
    if true_labels.shape[1] == 0:
        return right
    for i in range(labels.shape[1]):
        best, which = overlaps[:, i].max(1)
        right[:, i] = best >= iou
        taken = torch.zeros_like(overlaps[:, 0]).bool().scatter(1, which.unsqueeze(1), True)
        overlaps = torch.where((taken & right[:, i : i + 1]).unsqueeze(1), -1.0, overlaps)
    return right
