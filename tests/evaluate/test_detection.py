"""Scoring detectors: COCO's metrics on cases whose value is known, by domain and in total."""

from __future__ import annotations

import io
import pickle
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedsim.data.dataset import Card, Dataset, Split
from fedsim.data.views import View
from fedsim.evaluate.boxes import Boxes, Found
from fedsim.evaluate.detection import DETECTION, Detection
from fedsim.evaluate.metric_names import SHARE, Metric, shifted
from fedsim.evaluate.scoring import score, scorer_of
from fedsim.models.detector import Detections, detector
from fedsim.report.text import number
from fedsim.rounds.scoring import shifted_domains
from fedsim.rounds.setup import Parts

CARD = Card(
    title="t", source="s", licence="l", classes=("a", "b"), input_shape=(3, 32, 32),
    mean=(0.0,) * 3, std=(1.0,) * 3, description="d", kind="detection", domains=("fog", "snow"),
)  # fmt: skip
TRUE = np.array(
    [
        [[0, 0, 10, 10], [20, 20, 30, 30]],
        [[5, 5, 15, 15], [0, 0, 0, 0]],
        [[1, 1, 9, 9], [16, 0, 30, 12]],
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ],
    np.float32,
)
LABELS = np.array([[0, 1], [0, -1], [1, 0], [-1, -1]])
DOMAINS = np.array([0, 0, 1, 1])


def split() -> Split:
    x = np.zeros((4, 32, 32, 3), np.uint8)
    extra = {"boxes": TRUE, "box_labels": LABELS.astype(np.int64), "domain": DOMAINS}
    return Split(x, np.zeros(4, np.int64), extra)


class Says(nn.Module):
    """Finds what it is told, whatever it is shown, in the order of the images."""

    scorer = DETECTION

    def __init__(self, boxes: Any, labels: Any, scores: Any) -> None:
        super().__init__()
        given = torch.tensor(boxes), torch.tensor(labels), torch.tensor(scores)
        self.found: tuple[Tensor, ...] = given
        self.at = 0

    def detect(self, x: Tensor, least_score: float) -> Detections:
        rows = slice(self.at, self.at + len(x))
        self.at = rows.stop
        boxes, labels, scores = (t[rows] for t in self.found)
        labels = torch.where(scores >= least_score, labels, -1)
        return Detections(boxes, labels, scores, scores)


def scores(boxes: Any = TRUE, labels: Any = LABELS, sure: Any = None) -> dict[str, float]:
    sure = np.full(np.shape(labels), 0.9, np.float32) if sure is None else np.float32(sure)
    return score(Says(boxes, labels, sure), View(split(), np.arange(4), CARD), batch_size=3)


def test_a_perfect_detector() -> None:
    found = scores()
    assert set(found) == {
        f"{name}{of}" for name in ("mAP50", "mAP") for of in ("", "/fog", "/snow", "_total")
    }
    assert all(value == pytest.approx(1.0) for value in found.values())


def test_nothing_found_is_zero() -> None:
    found = scores(labels=np.full((4, 2), -1))
    assert len(found) == 8
    assert set(found.values()) == {0.0}


def test_what_is_hardly_believed_counts_from_a_hundredth_on() -> None:
    for sure, expected in ((0.05, 1.0), (0.011, 1.0), (0.009, 0.0)):
        found = scores(sure=np.full(LABELS.shape, sure))
        assert list(found.values()) == pytest.approx([expected] * 8)


def test_a_duplicate_is_a_false_positive() -> None:
    """On fog class 0 has two true boxes, and is found right, twice on the first image."""
    boxes = np.concatenate([TRUE, TRUE[:, :1]], axis=1)
    labels = np.concatenate([LABELS, [[0], [-1], [-1], [-1]]], axis=1)
    ranks = np.array([[0.9, 0.9, 0.8], [0.7, 0, 0], [0.9, 0.9, 0], [0, 0, 0]])
    # In the order of scores: right, wrong, right. Precision is 1 up to a recall of 1/2 and 2/3 from
    # there to 1; of COCO's 101 points 51 have the former.
    expected = (51 * 1 + 50 * 2 / 3) / 101
    found = scores(boxes, labels, ranks)
    assert found["mAP50/fog"] == pytest.approx((expected + 1) / 2, rel=1e-6)
    assert found["mAP50/snow"] == pytest.approx(1.0)
    assert found["mAP50_total"] == pytest.approx((found["mAP50/fog"] + 1) / 2)


def test_a_box_half_right_counts_at_low_thresholds_alone() -> None:
    """Every box cut to 7 of 10 tenths: IoU .7, so right at .50, .55, .60, .65 and .70 of ten."""
    boxes = TRUE.copy()
    boxes[..., 2] = boxes[..., 0] + 0.701 * (boxes[..., 2] - boxes[..., 0])
    found = scores(boxes)
    assert found["mAP50"] == pytest.approx(1.0)
    assert found["mAP"] == pytest.approx(0.5)


def test_a_wrong_class_is_not_found() -> None:
    found = scores(labels=np.where(LABELS >= 0, 1 - LABELS, -1))
    assert set(found.values()) == {0.0}


def test_the_order_of_equal_scores_within_an_image_does_not_matter() -> None:
    turned = scores(TRUE[:, ::-1].copy(), LABELS[:, ::-1].copy())
    assert turned == scores()


def test_tallies_add_up_in_any_cut_and_travel() -> None:
    module = detector((3, 32, 32), 2, width=8)
    view = View(split(), np.arange(4), CARD)
    whole = DETECTION.tally(module, view, 2)
    assert module.training
    parts = [DETECTION.tally(module, View(split(), r, CARD), 2) for r in ([0], [1, 2], [3])]
    parts = [pickle.loads(pickle.dumps(part)) for part in parts]
    total = parts[0] + parts[1] + parts[2]
    assert isinstance(total, Boxes)
    for ours, theirs in ((total.found, whole.found), (total.truth, whole.truth)):
        assert ours.images.tolist() == theirs.images.tolist()
        assert ours.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(ours.boxes, theirs.boxes, rtol=1e-5)
    assert total.domains.tolist() == DOMAINS.tolist()
    assert total.truth.images.tolist() == [0, 0, 1, 2, 2]
    assert (total.balanced(), total.by_shots([]), total.moments) == (None, {}, None)


def test_domains_without_images_and_sets_without_domains() -> None:
    one = score(
        Says(TRUE[:2], LABELS[:2], np.ones((2, 2), np.float32)), View(split(), [0, 1], CARD)
    )
    assert set(one) == {f"{n}{of}" for n in ("mAP50", "mAP") for of in ("", "/fog", "_total")}
    extra = {k: v for k, v in split().extra.items() if k != "domain"}
    plain = replace(CARD, domains=())
    view = View(Split(split().x, split().y, extra), np.arange(4), plain)
    assert set(score(Says(TRUE, LABELS, np.ones((4, 2), np.float32)), view)) == {"mAP50", "mAP"}


def test_images_without_boxes_alone_have_no_score() -> None:
    empty = View(split(), np.array([3]), CARD)
    assert score(Says(TRUE[3:], LABELS[3:], np.ones((1, 2), np.float32)), empty) == {}
    with pytest.raises(ValueError, match="no samples"):
        score(Says(TRUE, LABELS, LABELS), View(split(), np.arange(0), CARD))
    nothing = Found(*(np.zeros(0),) * 4)
    with pytest.raises(ValueError, match="no samples"):
        Boxes(nothing, nothing, np.zeros(0, np.int64), (), 2).metrics()


def test_detectors_are_scored_so_and_shown_in_percent() -> None:
    assert isinstance(scorer_of(detector((3, 32, 32), 2, width=8)), Detection)
    names = ("generic/mAP50", "clients/generic/mAP50/fog", "generic/mAP_total", "pseudo_precision")
    assert {Metric.parse(name).unit(DETECTION.units) for name in names} == {SHARE}
    assert number(0.1234, SHARE) == "12.34"


def test_the_picture_has_a_row_for_each_domain() -> None:
    module = detector((3, 32, 32), 2, width=8)
    data = Dataset("boxes", split(), split(), CARD)
    figure = DETECTION.picture(module, data)
    assert figure is not None
    titles = [ax.get_title(loc="left") for ax in figure.axes]
    assert [t for t in titles if t] == ["fog", "snow"]
    assert len(figure.axes) == 4
    # The white outlines are the true boxes: two on the first image, one on the second, two, none.
    white = [sum(p.get_edgecolor()[:3] == (1, 1, 1) for p in ax.patches) for ax in figure.axes]
    assert white == [2, 1, 2, 0]


def test_the_pictures_legend_says_what_is_true_beside_the_images() -> None:
    data = Dataset("boxes", split(), split(), CARD)
    figure = DETECTION.picture(detector((3, 32, 32), 2, width=8), data)
    assert figure is not None
    figure.savefig(io.BytesIO())
    (legend,) = figure.legends
    told = {t.get_text(): p for t, p in zip(legend.texts, legend.get_patches(), strict=True)}
    assert told["true boxes"].get_edgecolor()[:3] == (1, 1, 1)
    assert "found: a colour a class, score" in told
    place = legend.get_window_extent()
    assert sum(legend.get_frame().get_facecolor()[:3]) < 1  # white is seen on it
    assert not any(place.overlaps(ax.get_tightbbox()) for ax in figure.axes)
    assert figure.bbox.x0 <= place.x0 < place.x1 <= figure.bbox.x1


def test_shifted_is_the_mean_over_some_domains() -> None:
    values = {"mAP50": 0.9, "mAP50/clear": 0.8, "mAP50/fog": 0.2, "mAP50/snow": 0.5}
    values |= {"mAP/fog": 0.1, "mAP50_total": 0.5}
    found = shifted(values, ["fog", "snow", "night"])
    assert found == {"mAP50_shifted": pytest.approx(0.35), "mAP_shifted": 0.1}
    assert shifted(values, []) == {}
    assert shifted({"accuracy": 1.0, "loss": 0.1}, ["fog"]) == {}


@pytest.mark.parametrize(
    ("server", "expected"),
    [([0, 1], ["snow"]), ([3], ["fog"]), ([1, 2], []), ([], [])],  # the images' domains: 0 0 1 1
)
def test_the_shifted_domains_are_those_of_which_the_server_has_none(
    server: list[int], expected: list[str]
) -> None:
    data = Dataset("boxes", split(), split(), CARD)
    owned: Any = SimpleNamespace(server=np.array(server, np.int32))
    nothing: Any = None
    assert shifted_domains(Parts(nothing, data, owned, None, None, nothing)) == expected
    plain = Split(split().x, split().y, {})
    data = Dataset("plain", plain, plain, replace(CARD, kind="image", domains=()))
    assert shifted_domains(Parts(nothing, data, owned, None, None, nothing)) == []
