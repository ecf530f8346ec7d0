"""Detected and true boxes of many images, and their COCO metrics."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np


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
