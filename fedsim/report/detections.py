"""Images with the boxes that are there and those that were found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.evaluate.detection import Found


def detections_figure(
    rows: Sequence[tuple[str, np.ndarray, Found, Found]], classes: Sequence[str]
) -> Figure:
    """Return a figure with a row of images for each (name, images, found, true boxes).

    `images` are uint8 (n, H, W, 3). True boxes are white, those found in a colour for each class,
    with the class and the score.
    """
    from matplotlib.figure import Figure

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
                _outline(ax, truth.boxes[i], "white", 2.2)
            for i in np.flatnonzero(found.images == column):
                label = int(found.labels[i])
                colour = COLOURS[label % len(COLOURS)]
                _outline(ax, found.boxes[i], colour, 1.2)
                text = f"{classes[label]} {found.scores[i]:.2f}"
                x, y = found.boxes[i, :2].tolist()
                ax.text(x, y, text, fontsize=5, color="white", backgroundcolor=colour, va="bottom",
                        bbox={"facecolor": colour, "pad": 0.6, "linewidth": 0})  # fmt: skip
        if name:
            line[0].set_title(name, loc="left", fontsize=9)
    return figure


def _outline(ax: Any, box: np.ndarray, colour: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(v) - 0.5 for v in box)  # a pixel's centre is at a whole number
    ax.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, color=colour, lw=width))
