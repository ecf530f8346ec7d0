"""Scoring detectors: mean average precision, over all test images and over those of each domain.

The metrics are COCO's, computed by `faster-coco-eval`: `mAP` is the mean over the IoU thresholds
0.5, 0.55, ... 0.95, `mAP50` that at 0.5. `mAP50_total` is the mean of the domains' `mAP50`. Where
the server has samples the round loop adds `mAP50_shifted`, that of the domains it has none of.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from fedsim.data.views import View
from fedsim.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.data.dataset import Dataset

LEAST_SCORE = 0.01
"""Detections below it are left out: they are at the far end of every precision-recall curve."""

_SHOWN = 3  # images of a domain in the picture
_SHOWN_SCORE = 0.3


@dataclass
class Found:
    """Boxes of n images, one after another: `images` int64 (m,) are their numbers 0..n-1.

    `boxes` float32 (m, 4), corners in pixels; `labels` int64 (m,); `scores` float32 (m,).
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray

    @classmethod
    def of(cls, boxes: np.ndarray, labels: np.ndarray, scores: np.ndarray) -> Found:
        """Return the boxes of padded arrays (n, K, 4), (n, K), (n, K), labels -1 for none."""
        images, places = np.nonzero(labels >= 0)
        return cls(images, boxes[images, places], labels[images, places], scores[images, places])

    def after(self, n: int, other: Found) -> Found:
        """Return these boxes, of n images, and those of further images."""
        return Found(
            np.concatenate([self.images, other.images + n]),
            np.concatenate([self.boxes, other.boxes]),
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.scores, other.scores]),
        )


@dataclass
class Boxes:
    """What a detector found on some images, and what is there.

    `domains` int64 (n,) is each image's domain, of those in `names`; -1 where there are none.
    """

    found: Found
    truth: Found
    domains: np.ndarray
    names: tuple[str, ...]
    num_classes: int
    moments: ClassVar[None] = None

    def __add__(self, other: Boxes) -> Boxes:
        n = len(self.domains)
        return Boxes(
            self.found.after(n, other.found),
            self.truth.after(n, other.truth),
            np.concatenate([self.domains, other.domains]),
            self.names,
            self.num_classes,
        )

    def metrics(self) -> dict[str, float]:
        """Return mAP50 and mAP, ``mAP50/<domain>`` and the like, and mAP50_total.

        What has no true box has no value.

        Raises:
            ValueError: there were no samples.
        """
        if len(self.domains) == 0:
            raise ValueError("a model cannot be scored on no samples")
        values = self._coco(np.arange(len(self.domains)))
        present = [d for d in range(len(self.names)) if (self.domains == d).any()]
        totals: dict[str, list[float]] = {}
        for domain in present:
            for name, value in self._coco(np.flatnonzero(self.domains == domain)).items():
                values[f"{name}/{self.names[domain]}"] = value
                totals.setdefault(name, []).append(value)
        return values | {f"{name}_total": float(np.mean(v)) for name, v in totals.items()}

    def balanced(self) -> None:
        """Return None: mAP counts all classes alike as it is."""

    def by_shots(self, groups: Sequence[np.ndarray]) -> dict[str, float]:
        """Return nothing: groups of classes are those of classification."""
        return {}

    def _coco(self, images: np.ndarray) -> dict[str, float]:
        """Return COCO's metrics on some of the images; none without true boxes."""
        from faster_coco_eval import COCO, COCOeval_faster

        true, found = (_rows(boxes, images) for boxes in (self.truth, self.found))
        if not true:
            return {}
        with _quiet():
            known = COCO(
                {
                    "images": [{"id": int(i)} for i in images],
                    "categories": [{"id": c, "name": str(c)} for c in range(self.num_classes)],
                    "annotations": true,
                }
            )
            if not found:
                return {"mAP50": 0.0, "mAP": 0.0}
            evaluation = COCOeval_faster(known, known.loadRes(found), iouType="bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        values = evaluation.stats_as_dict
        return {"mAP50": float(values["AP_50"]), "mAP": float(values["AP_all"])}


def _rows(boxes: Found, images: np.ndarray) -> list[dict[str, Any]]:
    """Return the boxes of some images as annotations of COCO's format."""
    rows = np.flatnonzero(np.isin(boxes.images, images))
    sides = boxes.boxes[:, 2:] - boxes.boxes[:, :2]
    return [
        {
            "id": number,
            "image_id": int(boxes.images[i]),
            "category_id": int(boxes.labels[i]),
            "bbox": [*boxes.boxes[i, :2].tolist(), *sides[i].tolist()],
            "area": float(sides[i].prod()),
            "score": float(boxes.scores[i]),
            "iscrowd": 0,
        }
        for number, i in enumerate(rows.tolist(), start=1)
    ]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library from printing its table."""
    log = logging.getLogger("faster_coco_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


class Detection(Scorer):
    """For modules with a method `detect` (`fedsim.models.detector`), on data sets with boxes."""

    headline = "mAP50"

    def tally(
        self,
        module: nn.Module,
        view: View,
        num_classes: int,
        batch_size: int = 512,
        *,
        features: bool = False,
    ) -> Boxes:
        training = module.training
        module.eval()
        names = view.card.domains if "domain" in view.split.extra else ()
        nothing = Found.of(*(np.zeros(s, t) for s, t in _EMPTY))
        total = Boxes(nothing, nothing, np.empty(0, np.int64), names, num_classes)
        with torch.inference_mode():
            for order in view.index_batches(batch_size):
                found: Any = module.detect(view.inputs(order), least_score=LEAST_SCORE)  # type: ignore[operator]
                boxes, labels = (_array(view.column(c, order)) for c in ("boxes", "box_labels"))
                domains = np.full(len(order), -1)
                if names:
                    domains = _array(view.column("domain", order))
                total = total + Boxes(
                    Found.of(*map(_array, (found.boxes, found.labels, found.scores))),
                    Found.of(boxes, labels, np.ones(labels.shape, np.float32)),
                    domains,
                    names,
                    num_classes,
                )
        module.train(training)
        return total

    def picture(self, module: nn.Module, dataset: Dataset) -> Figure | None:
        """Return the first test images of each domain: true boxes white, those found in colour."""
        from fedsim.report.detections import detections_figure

        split = dataset.test
        domains = split.extra.get("domain")
        names: Sequence[str] = dataset.card.domains if domains is not None else ("",)
        shown = []
        for number, name in enumerate(names):
            rows = np.arange(len(split))
            if domains is not None:
                rows = np.flatnonzero(domains == number)
            rows = rows[:_SHOWN]
            tally = self.tally(module, View(split, rows, dataset.card), dataset.num_classes)
            sure = tally.found.scores >= _SHOWN_SCORE
            found = Found(*(column[sure] for column in vars(tally.found).values()))
            shown.append((name, split.x[rows], found, tally.truth))
        return detections_figure(shown, dataset.card.classes)


_EMPTY: tuple[tuple[tuple[int, ...], type], ...] = (
    ((0, 0, 4), np.float32),
    ((0, 0), np.int64),
    ((0, 0), np.float32),
)


def _array(values: Any) -> np.ndarray:
    array: np.ndarray = torch.as_tensor(values).cpu().numpy()
    return array


DETECTION = Detection()
