"""A picture of retrieval: texts with the nearest images, and images with the nearest texts."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedsim.data.views import View
from fedsim.evaluate.retrieval import Embedded, Retrieval, first_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.data.dataset import Dataset

QUERIES = 4
"""Texts, and as many images, spread evenly over the test samples."""

SHOWN = 5
GREEN, RED = "#2a9d5c", "#c8553d"


def nearest(found: Embedded, query: int, way: str) -> np.ndarray:
    """Return the rows of the items nearest to a query's row, the nearest first, int64 (<= 5,)."""
    item = found.image if way == "t2i" else found.text
    rows = first_rows(found.group, item)
    queries, items = (found.texts, found.images) if way == "t2i" else (found.images, found.texts)
    similar = items[torch.from_numpy(rows)] @ queries[query]
    order = torch.argsort(similar, descending=True, stable=True)[:SHOWN]
    return rows[order.numpy()]


def retrieval_figure(scorer: Retrieval, module: Any, dataset: Dataset) -> Figure:
    """Return the picture on the test split; right answers are framed in green."""
    from matplotlib.figure import Figure

    split = dataset.test
    view = View(split, np.arange(len(split)), dataset.card)
    found = scorer.tally(module, view, dataset.num_classes)
    chosen = np.linspace(0, len(split) - 1, min(QUERIES, len(split)) + 2).astype(int)[1:-1]
    figure = Figure(figsize=(11, 4.2 * len(chosen)), layout="constrained")
    grid = figure.subplots(2 * len(chosen), SHOWN + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_xticks([])
        axes.set_yticks([])
    for cells, (way, query) in zip(
        grid, [(w, int(q)) for w in ("t2i", "i2t") for q in chosen], strict=True
    ):
        _draw(cells[0], split, dataset, query, way == "i2t", "#444444")
        for cell, row in zip(cells[1:], nearest(found, query, way), strict=False):
            right = found.group[row] == found.group[query]
            _draw(cell, split, dataset, int(row), way == "t2i", GREEN if right else RED)
    grid[0][0].set_title("query")
    grid[0][1].set_title("nearest")
    return figure


def _draw(axes: Any, split: Any, dataset: Dataset, row: int, image: bool, colour: str) -> None:
    if image:
        picture = split.x[row]
        axes.imshow(picture if picture.shape[2] == 3 else picture[..., 0], cmap="gray")
    else:
        text = _text(split, dataset, row)
        wrapped = textwrap.fill(text, 18, max_lines=6, placeholder=" ...")
        axes.text(0.5, 0.5, wrapped, ha="center", va="center", fontsize=8, transform=axes.transAxes)
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=2.5)


def _text(split: Any, dataset: Dataset, row: int) -> str:
    """Return a sample's text: as it was written, else the words of its tokens."""
    if "text" in split.extra:
        return bytes(split.extra["text"][row]).decode(errors="replace")
    return " ".join(dataset.vocabulary[t] for t in split.extra["tokens"][row] if t)
