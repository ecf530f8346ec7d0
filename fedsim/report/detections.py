"""Images with the boxes that are there and those that were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.evaluate.detection import Found


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

    from fedsim.report.plots import COLOURS

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
