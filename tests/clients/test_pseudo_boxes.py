"""Sorting a teacher's boxes into reliable and uncertain ones."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clients.fedsto import pseudo_targets
from fedsim.maths.detection_loss import Targets


def sorted_boxes(scores: list[float], objectness: list[float], **bounds: float) -> Targets:
    given = {"low": 0.1, "high": 0.6, **bounds}
    boxes = torch.arange(4.0 * len(scores)).view(1, -1, 4)
    labels = torch.arange(len(scores)).view(1, -1)
    return pseudo_targets(
        boxes, labels, torch.tensor([scores]), torch.tensor([objectness]), **given
    )


def test_the_table() -> None:
    found = sorted_boxes([0.6, 0.59, 0.59, 0.1, 0.09], [0.7, 0.99, 0.98, 0.2, 1.0])
    assert found.labels.tolist() == [[0, 1, 2, 3, -1]]
    assert found.classify.tolist() == [[True, False, False, False, False]]
    assert found.regress.tolist() == [[True, True, False, False, False]]
    # A reliable box's objectness is to be the IoU of what is predicted, an uncertain one's o.
    assert found.soft[0, :4].tolist() == pytest.approx([-1.0, 0.99, 0.98, 0.2])


def random_scores(seed: int) -> tuple[list[float], list[float]]:
    draw = torch.Generator().manual_seed(seed)
    objectness = torch.rand(200, generator=draw)
    return (objectness * torch.rand(200, generator=draw)).tolist(), objectness.tolist()


def parts(found: Targets) -> tuple[Tensor, Tensor]:
    there = found.labels >= 0
    return there & found.classify, there & ~found.classify


def test_the_sets_are_disjoint_and_cover_what_scores_enough() -> None:
    scores, objectness = random_scores(0)
    reliable, uncertain = parts(sorted_boxes(scores, objectness))
    assert not bool((reliable & uncertain).any())
    assert (reliable | uncertain).tolist() == (torch.tensor([scores]) >= 0.1).tolist()
    assert reliable.any()
    assert uncertain.any()


def test_equal_thresholds_leave_nothing_uncertain() -> None:
    reliable, uncertain = parts(sorted_boxes(*random_scores(1), low=0.4, high=0.4))
    assert not bool(uncertain.any())
    assert bool(reliable.any())


def test_a_threshold_above_one_teaches_no_class_and_places_of_the_surest_only() -> None:
    scores, objectness = random_scores(2)
    found = sorted_boxes([*scores, 0.9], [*objectness, 0.995], high=1.1)
    assert not bool(found.classify.any())
    assert found.regress.sum() == sum(
        o >= 0.99 and s >= 0.1 for s, o in zip([*scores, 0.9], [*objectness, 0.995], strict=True)
    )


def test_raising_the_threshold_never_adds_a_reliable_box() -> None:
    scores, objectness = random_scores(3)
    sets = [
        parts(sorted_boxes(scores, objectness, high=high))[0] for high in (0.2, 0.4, 0.6, 0.8, 1.0)
    ]
    for wide, narrow in pairwise(sets):
        assert not bool((narrow & ~wide).any())
    assert sets[0].sum() > sets[-1].sum()


def test_a_teacher_that_is_right_and_sure_gives_real_targets() -> None:
    boxes = torch.rand(3, 5, 4)
    labels = torch.tensor([[0, 1, 2, -1, -1], [2, -1, -1, -1, -1], [-1] * 5])
    sure = (labels >= 0).float()
    found, real = (
        pseudo_targets(boxes, labels, sure, sure, 0.1, 0.6),
        Targets.certain(boxes, labels),
    )
    for name in ("boxes", "labels", "classify", "regress"):
        assert getattr(found, name).equal(getattr(real, name)), name
    assert found.soft[labels >= 0].equal(real.soft[labels >= 0])
