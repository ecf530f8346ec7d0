"""The detector's loss: which cells answer for a box, and each term from paper and pencil."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.maths.boxes import overlap
from fedsim.maths.detection_loss import Grid, Targets, Weights, assigned, detection_loss, grid

CELLS = grid(((4, 4, 8),), torch.device("cpu"))
"""Sixteen cells of 8 pixels."""


def boxes(*rows: list[float]) -> Tensor:
    return torch.tensor([rows]).float()


def which(given: Tensor, cells: Grid = CELLS) -> dict[int, int]:
    found = assigned(given, torch.ones(given.shape[:2], dtype=torch.bool), cells)[0]
    return {cell: int(box) for cell, box in enumerate(found.tolist()) if box >= 0}


def test_cells_are_in_rows_level_by_level() -> None:
    cells = grid(((2, 3, 8), (1, 2, 16)), torch.device("cpu"))
    assert cells.corners.tolist() == [
        [0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0],
    ]  # fmt: skip
    assert cells.strides.tolist() == [8.0] * 6 + [16.0] * 2


def test_cells_made_while_scoring_serve_for_training() -> None:
    with torch.inference_mode():
        cells = grid(((5, 7, 24),), torch.device("cpu"))
    assert not cells.corners.is_inference()
    shift = torch.zeros(35, 2, requires_grad=True)
    (cells.corners * shift).sum().backward()


def test_the_centre_and_its_two_nearest_neighbours_answer() -> None:
    # Centre (10, 13): column 1, the left half of the cell; row 1, the lower half.
    assert which(boxes([5, 8, 15, 18])) == {5: 0, 4: 0, 9: 0}
    # Centre (30, 2): column 3 is the last one, so the right neighbour does not exist; nor a row -1.
    assert which(boxes([28, 0, 32, 4])) == {3: 0}
    # A centre on the very border of the image still has a cell.
    assert 15 in which(boxes([30, 30, 34, 34]))


def test_the_smaller_box_has_a_cell_that_two_want() -> None:
    large, small = [4.0, 4, 20, 20], [9.0, 9, 15, 15]
    for order in ((large, small), (small, large)):
        found = which(boxes(*order))
        assert found[5] == order.index(small)
        assert set(found.values()) == {0, 1} if len(found) > 3 else True
    apart = which(boxes(large, [25, 25, 31, 31]))
    assert set(apart.values()) == {0, 1}


def test_absent_boxes_have_no_cell() -> None:
    there = torch.tensor([[False, True]])
    found = assigned(boxes([5, 8, 15, 18], [25, 25, 27, 27]), there, CELLS)
    assert set(found.unique().tolist()) == {-1, 1}
    assert assigned(torch.zeros(2, 0, 4), torch.zeros(2, 0).bool(), CELLS).unique().tolist() == [-1]


def test_the_level_is_that_of_the_size() -> None:
    cells = grid(((8, 8, 8), (4, 4, 16)), torch.device("cpu"))
    small, large = [20.0, 20, 51, 51], [10.0, 10, 42, 42]  # sides of 31 and of 4 strides = 32
    assert all(cell < 64 for cell in which(boxes(small), cells))
    assert all(cell >= 64 for cell in which(boxes(large), cells))


class Case:
    """One image, two classes, one true box of class 1 with the centre (10, 13)."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(0)
        self.truth = boxes([5, 8, 15, 18])
        self.boxes = self.truth + torch.rand(1, 16, 4, generator=draw)
        self.objectness = torch.randn(1, 16, generator=draw)
        self.classes = torch.randn(1, 16, 2, generator=draw)
        self.targets = Targets.certain(self.truth, torch.tensor([[1]]))

    def loss(self, **weights: float) -> float:
        given = Weights(**{"box": 0.0, "objectness": 0.0, "classes": 0.0, **weights})
        predicted = self.boxes, self.objectness, self.classes
        return float(detection_loss(*predicted, self.targets, CELLS, given))


POSITIVE = [4, 5, 9]


def cross_entropy(logit: float, goal: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -goal * math.log(p) - (1 - goal) * math.log(1 - p)


def test_each_term_by_hand() -> None:
    case = Case()
    ciou = [float(overlap(case.boxes[0, c], case.truth[0, 0], "ciou")) for c in POSITIVE]
    assert case.loss(box=2.0) == pytest.approx(2 * sum(1 - v for v in ciou) / 3, rel=1e-5)
    iou = {c: float(overlap(case.boxes[0, c], case.truth[0, 0])) for c in POSITIVE}
    logits = case.objectness[0].tolist()
    terms = [cross_entropy(z, iou.get(c, 0.0)) for c, z in enumerate(logits)]
    assert case.loss(objectness=0.7) == pytest.approx(0.7 * sum(terms) / 16, rel=1e-5)
    by_class = [
        cross_entropy(float(case.classes[0, c, k]), float(k == 1)) for c in POSITIVE for k in (0, 1)
    ]
    # The weight is for 80 classes and three levels; here there are 2 and one.
    expected = 80.0 * 2 / 80 * 3 * sum(by_class) / 6
    assert case.loss(classes=80.0) == pytest.approx(expected, rel=1e-5)


def test_the_loss_grows_with_the_batch() -> None:
    case = Case()
    single = case.loss(box=1.0, objectness=1.0, classes=1.0)
    for name in ("boxes", "objectness", "classes"):
        setattr(case, name, getattr(case, name).repeat_interleave(3, 0))
    case.targets = Targets.certain(case.truth.repeat(3, 1, 1), torch.ones(3, 1, dtype=torch.int64))
    assert case.loss(box=1.0, objectness=1.0, classes=1.0) == pytest.approx(3 * single, rel=1e-5)


@pytest.mark.parametrize(("part", "weight"), [("classify", "classes"), ("regress", "box")])
def test_what_a_box_does_not_teach_has_no_loss(part: str, weight: str) -> None:
    case = Case()
    setattr(case.targets, part, torch.tensor([[False]]))
    assert case.loss(**{weight: 1.0}) == 0.0
    other = {"classes": "box", "box": "classes"}[weight]
    assert case.loss(**{other: 1.0}) == Case().loss(**{other: 1.0}) > 0
    assert case.loss(objectness=1.0) == Case().loss(objectness=1.0)


def test_a_soft_value_takes_the_place_of_the_iou() -> None:
    case = Case()
    case.targets.soft = torch.tensor([[0.3]])
    logits = case.objectness[0].tolist()
    terms = [cross_entropy(z, 0.3 if c in POSITIVE else 0.0) for c, z in enumerate(logits)]
    assert case.loss(objectness=1.0) == pytest.approx(sum(terms) / 16, rel=1e-5)


def test_images_without_boxes_teach_background() -> None:
    case = Case()
    case.targets = Targets.certain(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64))
    terms = [cross_entropy(z, 0.0) for z in case.objectness[0].tolist()]
    assert case.loss(objectness=1.0) == pytest.approx(sum(terms) / 16, rel=1e-5)
    assert case.loss(box=1.0, classes=1.0) == 0.0


def test_levels_are_weighed() -> None:
    """Three levels have the weights 4, 1 and 0.4; each is a mean over its own cells."""
    cells = grid(((2, 2, 8), (1, 1, 16), (1, 1, 32)), torch.device("cpu"))
    objectness = torch.tensor([[1.0, 1, 1, 1, 2, 3]])
    nothing: Any = Targets.certain(torch.zeros(1, 0, 4), torch.zeros(1, 0, dtype=torch.int64))
    weights = Weights(0.0, 1.0, 0.0)
    found = detection_loss(
        torch.zeros(1, 6, 4), objectness, torch.zeros(1, 6, 1), nothing, cells, weights
    )
    expected = [w * cross_entropy(z, 0.0) for w, z in ((4, 1.0), (1, 2.0), (0.4, 3.0))]
    assert float(found) == pytest.approx(sum(expected), rel=1e-5)
