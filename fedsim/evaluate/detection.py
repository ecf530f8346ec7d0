"""Scoring detectors: mean average precision, over all test images and over those of each domain.

The metrics are COCO's, computed by `faster-coco-eval`: `mAP` is the mean over the IoU thresholds
0.5, 0.55, ... 0.95, `mAP50` that at 0.5. `mAP50_total` is the mean of the domains' `mAP50`. Where
the server has samples the round loop adds `mAP50_shifted`, that of the domains it has none of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from fedsim.data.views import View
from fedsim.evaluate.boxes import Boxes, Found
from fedsim.evaluate.metric_names import SHARE
from fedsim.evaluate.scorer import Scorer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.data.dataset import Dataset


LEAST_SCORE = 0.01
"""Detections below it are left out: they are at the far end of every precision-recall curve."""

_SHOWN = 3  # images of a domain in the picture
_SHOWN_SCORE = 0.3


class Detection(Scorer):
    """For modules with a method `detect` (`fedsim.models.detector`), on data sets with boxes."""

    headline = "mAP50"
    units: ClassVar = {"mAP50": SHARE, "mAP": SHARE}

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


_TRUE, _FOUND = 2.2, 1.2  # widths of outlines in points


_DARK = "#444444"  # behind the legend: white is not seen on white


def detections_figure(
    rows: Sequence[tuple[str, np.ndarray, Found, Found]], classes: Sequence[str]
) -> Figure:
    """Return a figure with a row of images for each (name, images, found, true boxes).

    `images` are uint8 (n, H, W, 3). True boxes are white, those found in a colour for each class,
    with the class and the score; a legend above says so.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    from fedsim.evaluate.palette import COLOURS

    across = max(len(images) for _, images, _, _ in rows)
    figure = Figure(figsize=(2.2 * across, 2.3 * len(rows)), dpi=100, layout="constrained")
    axes = figure.subplots(len(rows), across, squeeze=False)
    for line, (name, images, found, truth) in zip(axes, rows, strict=True):
        for column, ax in enumerate(line):
            ax.set_axis_off()
            if column >= len(images):
                continue
            ax.imshow(images[column], interpolation="nearest")
            for i in np.flatnonzero(truth.images == column):
                _outline(ax, truth.boxes[i], "white", _TRUE)
            for i in np.flatnonzero(found.images == column):
                label = int(found.labels[i])
                colour = COLOURS[label % len(COLOURS)]
                _outline(ax, found.boxes[i], colour, _FOUND)
                text = f"{classes[label]} {found.scores[i]:.2f}"
                x, y = found.boxes[i, :2].tolist()
                ax.text(x, y, text, fontsize=5, color="white", backgroundcolor=colour, va="bottom",
                        bbox={"facecolor": colour, "pad": 0.6, "linewidth": 0})  # fmt: skip
        if name:
            line[0].set_title(name, loc="left", fontsize=9)
    known = [
        Patch(fill=False, edgecolor="white", lw=_TRUE, label="true boxes"),
        Patch(fill=False, edgecolor=COLOURS[0], lw=_FOUND, label="found: a colour a class, score"),
    ]
    figure.legend(
        handles=known, loc="outside upper center", ncols=2, fontsize=8,
        facecolor=_DARK, labelcolor="white", edgecolor="none", framealpha=1.0,
    )  # fmt: skip
    return figure


def _outline(ax: Any, box: np.ndarray, colour: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(v) - 0.5 for v in box)  # a pixel's centre is at a whole number
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=width))
