"""The detector: its parts, what its raw values mean, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.maths.boxes import pairwise_iou
from fedsim.models.detector import Detector, detector
from fedsim.params import FlatModel


def made(size: int = 64, classes: int = 3, **options: Any) -> Any:
    torch.manual_seed(0)
    return detector((3, size, size), classes, **options)


def test_parts_and_size() -> None:
    module = made()
    assert isinstance(module, Detector)
    assert [name for name, _ in module.named_children()] == ["backbone", "neck", "head"]
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in module.named_children()}
    assert 150_000 < sum(sizes.values()) < 400_000
    assert all(sizes.values())
    norms = [n for n, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert {n.split(".")[0] for n in norms} == {"backbone", "neck", "head"}


@pytest.mark.parametrize(("levels", "cells"), [(1, 64), (2, 64 + 16), (3, 64 + 16 + 4)])
def test_raw_values_of_all_cells(levels: int, cells: int) -> None:
    module = made(levels=levels, width=8)
    raw = module(torch.randn(2, 3, 64, 64))
    assert raw.shape == (2, cells, 5 + 3)
    assert len(module.cells(raw.device).strides) == cells


def test_each_cell_predicts_from_its_own_surroundings() -> None:
    """A change in one corner of the image changes the cells there, and none far from it."""
    module = made(size=256, width=8).eval()
    x = torch.randn(1, 3, 256, 256)
    other = x.clone()
    other[..., :8, :8] += 1.0
    moved = (module(x) != module(other)).any(2).view(32, 32)
    assert moved[0, 0]
    assert not moved[16:].any()
    assert not moved[:, 16:].any()


def test_boxes_by_hand() -> None:
    module = made(width=8)
    raw = torch.zeros(1, 64, 8)
    cell = 2 * 8 + 5  # row 2, column 5
    raw[0, cell, :4] = torch.tensor([math.log(3.0), -math.log(3.0), math.log(2.0), 0.0])
    found = module.boxes(raw)
    # sigmoid(log 3) = 3/4: the centre is 8 (5 + 2 * 3/4 - 0.5) = 48; sigmoid(-log 3) = 1/4: 16.
    # Sides are 2 * 8 * 2 = 32 and 16.
    assert found[0, cell].tolist() == pytest.approx([32, 8, 64, 24])
    assert found[0, 0].tolist() == pytest.approx([-4, -4, 12, 12])
    raw[0, 0, 2] = 1000.0
    assert bool(torch.isfinite(module.boxes(raw)).all())


def raw_of(module: Any, found: dict[int, tuple[float, float, int]]) -> Tensor:
    """Return raw values with (objectness, probability, class) at some cells, else background."""
    raw = torch.full((1, 64, 8), -20.0)
    raw[..., :4] = 0.0
    for cell, (objectness, likely, label) in found.items():
        raw[0, cell, 4] = torch.logit(torch.tensor(objectness))
        raw[0, cell, 5 + label] = torch.logit(torch.tensor(likely))
    return raw


def test_detections_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    module = made(width=8)
    # Cells 20 and 44 are far apart; 21 overlaps 20 by (16 - 8) / (16 + 8) = 1/3.
    values = {20: (0.9, 0.8, 1), 44: (0.5, 0.6, 2), 21: (0.8, 0.7, 1)}
    raw = raw_of(module, values)
    monkeypatch.setattr(module, "forward", lambda x: raw)
    images = torch.zeros(1, 3, 64, 64)
    found = module.detect(images, iou=0.5)
    assert found.labels.tolist() == [[1, 1, 2]]
    assert found.scores[0].tolist() == pytest.approx([0.72, 0.56, 0.30], rel=1e-4)
    assert found.objectness[0].tolist() == pytest.approx([0.9, 0.8, 0.5], rel=1e-4)
    assert found.boxes[0, 0].tolist() == pytest.approx([28, 12, 44, 28])
    assert module.detect(images, iou=0.3).labels.tolist() == [[1, 2]]
    assert module.detect(images, iou=0.5, least_score=0.5).labels.tolist() == [[1, 1]]
    assert module.detect(images, iou=0.5, most=1).labels.tolist() == [[1]]
    corner = raw_of(module, {0: (0.9, 0.9, 0)})
    monkeypatch.setattr(module, "forward", lambda x: corner)
    assert module.detect(images).boxes[0].tolist() == [[0, 0, 12, 12]]
    nothing = raw_of(module, {})
    monkeypatch.setattr(module, "forward", lambda x: nothing)
    assert module.detect(images).boxes.shape == (1, 0, 4)


def test_it_finds_squares() -> None:
    """Bright and dark squares on noise: after some hundred steps new ones are found."""
    module = made(classes=2, width=8)
    draw = torch.Generator().manual_seed(1)

    def scenes(n: int) -> tuple[Tensor, Tensor, Tensor]:
        x = 0.3 * torch.randn(n, 3, 64, 64, generator=draw)
        corner = torch.randint(2, 44, (n, 2), generator=draw)
        side = torch.randint(10, 20, (n,), generator=draw)
        labels = torch.randint(2, (n, 1), generator=draw)
        boxes = torch.cat([corner, corner + side[:, None]], dim=1).float()
        for i in range(n):
            x0, y0, x1, y1 = boxes[i].int().tolist()
            x[i, :, y0:y1, x0:x1] += 2.0 if labels[i] else -2.0
        return x, boxes.unsqueeze(1), labels

    rate = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    for _ in range(300):
        x, boxes, labels = scenes(16)
        rate.zero_grad()
        module.loss(module(x), boxes, labels).backward()
        rate.step()
    module.eval()
    x, boxes, labels = scenes(50)
    with torch.no_grad():
        found = module.detect(x)
    best = pairwise_iou(found.boxes[:, :1], boxes).flatten()
    assert float((best > 0.5).float().mean()) > 0.8
    assert float((found.labels[:, 0] == labels[:, 0]).float().mean()) > 0.9


def test_it_lives_in_a_flat_model_and_trains_there() -> None:
    module = made(width=8)
    flat = FlatModel(module)
    before = flat.params()
    assert {n.split(".")[0] for n in flat.layout.names} == {"backbone", "neck", "head"}
    boxes, labels = torch.tensor([[[8.0, 8, 24, 24]]]), torch.tensor([[2]])
    loss = module.loss(module(torch.randn(1, 3, 64, 64)), boxes, labels)
    grads = torch.autograd.grad(loss, flat.parameters)
    assert all(bool(torch.isfinite(g).all()) for g in grads)
    assert sum(float(g.abs().sum()) > 0 for g in grads) > 0.9 * len(grads)
    assert not before.flat.equal(flat.params().flat)  # BatchNorm's statistics followed the batch


@pytest.mark.parametrize(
    ("shape", "options", "named"),
    [
        ((3, 60, 64), {}, "multiples of 16, got"),
        ((3, 48, 48), {"levels": 3}, "multiples of 32"),
        ((3, 64, 64), {"levels": 0}, "model.levels"),
        ((3, 64, 64), {"width": 2}, "model.width"),
        ((3, 64, 64), {"box_weight": -1.0}, "model.box_weight"),
        ((3, 64, 64), {"class_weight": math.inf}, "model.class_weight"),
        ((16, 1000), {}, "needs a data set of images"),
    ],
)
def test_bad_options_are_named(shape: tuple[int, ...], options: Any, named: str) -> None:
    with pytest.raises(InputError, match=named):
        detector(shape, 3, **options)  # type: ignore[arg-type]
