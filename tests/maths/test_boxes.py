"""Overlaps, suppression and matching of boxes: worked examples, and another library's IoU."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from faster_coco_eval import mask
from torch import Tensor

from fedsim.maths.boxes import areas, clipped, gathered, matched, overlap, pairwise_iou, suppressed

A, B = torch.tensor([0.0, 0, 4, 2]), torch.tensor([2.0, 0, 6, 4])
"""They share 2 x 2 of 8 + 16 - 4 = 20; the box around both is 6 x 4."""


def random_boxes(n: int, seed: int = 0) -> Tensor:
    corners = torch.rand(n, 2, 2, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def test_areas_and_clipping() -> None:
    boxes = torch.tensor([[1.0, 2, 4, 6], [3, 3, 2, 8], [-2, -1, 9, 3]])
    assert areas(boxes).tolist() == [12.0, 0.0, 44.0]
    assert clipped(boxes, height=5, width=8)[[0, 2]].tolist() == [[1, 2, 4, 5], [0, 0, 8, 3]]


def test_overlaps_by_hand() -> None:
    assert float(overlap(A, B)) == pytest.approx(4 / 20)
    assert float(overlap(A, B, "giou")) == pytest.approx(4 / 20 - 4 / 24)
    # Centres (2, 1) and (4, 2), so d^2 = 5; diagonal c^2 = 36 + 16; aspect ratios 4/2 and 4/4.
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    expected = 4 / 20 - 5 / 52 - v / (1 - 4 / 20 + v) * v
    assert float(overlap(A, B, "ciou")) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["iou", "giou", "ciou"])
def test_a_box_overlaps_itself_fully(kind: str) -> None:
    boxes = random_boxes(20)
    torch.testing.assert_close(overlap(boxes, boxes, kind), torch.ones(20))  # type: ignore[arg-type]


def test_giou_tells_how_far_apart_boxes_are() -> None:
    far = B + torch.tensor([20.0, 0, 20, 0])
    assert float(overlap(A, far)) == 0.0
    # The box around both is 26 x 4, of which 8 + 16 are filled.
    assert float(overlap(A, far, "giou")) == pytest.approx(24 / 104 - 1)


def test_the_gradient_of_ciou_takes_alpha_as_a_constant() -> None:
    a = A.double().requires_grad_()
    (found,) = torch.autograd.grad(overlap(a, B.double(), "ciou"), a)
    v = 4 / math.pi**2 * (math.atan(2) - math.atan(1)) ** 2
    alpha = v / (1 - 0.2 + v)

    def fixed(x: Tensor) -> Tensor:
        ratio = torch.atan((x[2] - x[0]) / (x[3] - x[1])) - math.atan(1)
        around = torch.maximum(x[2:], B[2:].double()) - torch.minimum(x[:2], B[:2].double())
        d = ((x[:2] + x[2:] - B[:2] - B[2:]) / 2).square().sum()
        return (
            overlap(x, B.double()) - d / around.square().sum() - alpha * 4 / math.pi**2 * ratio**2
        )

    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    slopes = [float(fixed(a.detach() + s) - fixed(a.detach() - s)) / 2e-6 for s in steps]
    # The upper edges coincide: at that kink the gradient is between the slopes on either side.
    assert found[[0, 2, 3]].tolist() == pytest.approx([slopes[i] for i in (0, 2, 3)], abs=1e-6)


def test_iou_is_that_of_another_library() -> None:
    a, b = random_boxes(30, 1), random_boxes(40, 2)

    def sides(boxes: Tensor) -> np.ndarray:
        found: np.ndarray = (
            torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).double().numpy()
        )
        return found

    theirs = mask.iou(sides(a), sides(b), [0] * 40)
    np.testing.assert_allclose(pairwise_iou(a, b).numpy(), theirs, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(pairwise_iou(a, b).diagonal(), overlap(a, b[:30]))


def test_empty_boxes_have_no_overlap_and_no_nan() -> None:
    empty = torch.zeros(1, 4)
    for kind in ("iou", "giou", "ciou"):
        for other in (empty, A.unsqueeze(0)):
            assert bool(torch.isfinite(overlap(empty, other, kind)).all())  # type: ignore[arg-type]
    assert pairwise_iou(empty, empty).item() == 0.0


def keep(
    boxes: list[list[float]], scores: list[float], labels: list[int], **options: float
) -> list[int]:
    found = suppressed(
        torch.tensor([boxes]).float(),
        torch.tensor([scores]),
        torch.tensor([labels]),
        **{"iou": 0.5, "least_score": 0.1, "most": 100, **options},  # type: ignore[arg-type]
    )
    return found[0].tolist()


ROW = [[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 5], [50, 50, 60, 60]]
"""The first covers the second by .8 and the third by .5; the second the third by .625."""


def test_suppression_by_hand() -> None:
    assert keep(ROW, [0.9, 0.8, 0.7, 0.3], [0, 0, 0, 0]) == [0, 2, 3]
    # A box that was dropped covers nothing itself, and .5 is not more than .5.
    assert keep(ROW, [0.8, 0.9, 0.7, 0.3], [0, 0, 0, 0]) == [1, 3]
    assert keep(ROW, [0.9, 0.8, 0.7, 0.3], [0, 1, 0, 0]) == [0, 1, 2, 3]
    assert keep(ROW, [0.9, 0.8, 0.7, 0.05], [0, 1, 1, 0]) == [0, 1]
    assert keep(ROW, [0.9, 0.8, 0.7, 0.3], [0, 0, 0, 0], most=2) == [0]
    assert keep(ROW, [0.5] * 4, [0] * 4, iou=0.9) == [0, 1, 2, 3]
    assert keep(ROW, [0.01] * 4, [0] * 4) == []


def test_images_are_suppressed_each_for_itself() -> None:
    boxes = torch.tensor([ROW, ROW[::-1]])
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.3], [0.9, 0.05, 0.05, 0.05]])
    found = suppressed(
        boxes, scores, torch.zeros(2, 4, dtype=torch.int64), iou=0.5, least_score=0.1, most=9
    )
    assert found.tolist() == [[0, 2, 3], [0, -1, -1]]
    assert gathered(scores, found).tolist() == [
        pytest.approx([0.9, 0.7, 0.3]),
        [pytest.approx(0.9), 0, 0],
    ]
    assert gathered(boxes, found)[1].tolist() == [ROW[3], [0] * 4, [0] * 4]
    nothing = torch.full((2, 1), -1)
    assert gathered(torch.zeros(2, 0), nothing, -1).tolist() == [[-1], [-1]]


def test_suppression_equals_the_loop_written_out() -> None:
    boxes, generator = random_boxes(60, 3), torch.Generator().manual_seed(4)
    scores = torch.rand(60, generator=generator)
    labels = torch.randint(2, (60,), generator=generator)
    kept: list[int] = []
    for i in torch.argsort(scores, descending=True).tolist():
        rivals = [j for j in kept if labels[j] == labels[i]]
        if scores[i] >= 0.1 and all(float(overlap(boxes[i], boxes[j])) <= 0.2 for j in rivals):
            kept.append(i)
    found = suppressed(boxes[None], scores[None], labels[None], iou=0.2, least_score=0.1, most=100)
    assert found[0].tolist() == kept
    assert 5 < len(kept) < 50


def test_each_true_box_is_found_once() -> None:
    truth = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30], [0, 0, 0, 0]]])
    true_labels = torch.tensor([[0, 1, -1]])
    boxes = torch.tensor([[ROW[0], ROW[1], [20.0, 20, 30, 30], [20, 20, 30, 29], ROW[2]]])
    labels = torch.tensor([[0, 0, 0, 1, -1]])
    # The second is a duplicate, the third of another class, the last no box.
    assert matched(boxes, labels, truth, true_labels).tolist() == [
        [True, False, False, True, False]
    ]
    assert matched(boxes, labels, truth, true_labels, 0.95).any(1).tolist() == [True]
    assert matched(boxes, labels, truth, true_labels, 0.95)[0, 3].item() is False


def test_a_box_takes_the_free_true_box_it_overlaps_most() -> None:
    truth = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9]]])
    boxes = torch.tensor([[[0.0, 0, 10, 9], [0, 0, 10, 9], [0, 0, 10, 9]]])
    labels = torch.zeros(1, 3, dtype=torch.int64)
    found = matched(boxes, labels, truth, torch.zeros(1, 2, dtype=torch.int64))
    assert found.tolist() == [[True, True, False]]
    none = torch.zeros(1, 0, dtype=torch.int64)
    assert matched(boxes, labels, torch.zeros(1, 0, 4), none).tolist() == [[False] * 3]
