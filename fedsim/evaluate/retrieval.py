"""Scoring retrieval: which of all texts belongs to an image, and which image to a text.

    rank of a query   the unrelated items that are at least as similar to it as the most similar of
                      its own (several captions of an image: the best one counts)
    recall@K          the share of queries with a rank below K

Samples of one group (the column `group`, else each for itself) belong together; an image that is
repeated for its captions is one image, a text that is repeated in its group one text. Ties and
what is not a number count against the model. *folds* are runs of so many images with their texts,
and the mean over them.
"""

from __future__ import annotations

import hashlib
import textwrap
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fedsim.data.views import View
from fedsim.evaluate.feature_statistics import Moments
from fedsim.evaluate.metric_names import SHARE
from fedsim.evaluate.scorer import Scorer
from fedsim.maths.contrastive import similarities

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

    from fedsim.data.dataset import Dataset


RANKS = (1, 5, 10)


@dataclass
class Embedded:
    """Unit vectors (n, d) of the images and texts of n samples, and what belongs together.

    `group` int64 (n,) numbers what belongs together, `image` and `text` int64 (n,) are equal where
    the image, or the text, is the same.
    """

    images: Tensor
    texts: Tensor
    group: np.ndarray
    image: np.ndarray
    text: np.ndarray
    fold: int

    moments: ClassVar[Moments | None] = None

    def __add__(self, other: Embedded) -> Embedded:
        return Embedded(
            torch.cat([self.images, other.images]),
            torch.cat([self.texts, other.texts]),
            np.concatenate([self.group, other.group]),
            np.concatenate([self.image, other.image]),
            np.concatenate([self.text, other.text]),
            self.fold,
        )

    def metrics(self) -> dict[str, float]:
        """Return recalls in [0, 1] and the sum of those at 1, among all and, if several, in folds.

        Raises:
            ValueError: there were no samples.
        """
        if len(self.group) == 0:
            raise ValueError("a model cannot be scored on no samples")
        images, texts = first_rows(self.group, self.image), first_rows(self.group, self.text)
        recalls = self._recalls(images, texts)
        folds = [fold for fold in self._folds(images, texts) if len(fold[0])]
        if len(folds) > 1:
            each = [self._recalls(*fold) for fold in folds]
            for name in list(recalls):
                recalls[f"{name}/folds"] = sum(r[name] for r in each) / len(each)
        first = [value for name, value in recalls.items() if name.startswith("recall@1/")]
        recalls["recall_sum"] = sum(first)
        return recalls

    def _recalls(self, images: np.ndarray, texts: np.ndarray) -> dict[str, float]:
        """Return the recalls of the images and texts at these rows."""
        group = torch.from_numpy(self.group)
        rows = torch.from_numpy(images), torch.from_numpy(texts)
        x, y = self.images[rows[0]], self.texts[rows[1]]
        ranks = {
            "i2t": best_ranks(x, y, group[rows[0]], group[rows[1]]),
            "t2i": best_ranks(y, x, group[rows[1]], group[rows[0]]),
        }
        return {
            f"recall@{k}/{way}": float((found < k).double().mean())
            for way, found in ranks.items()
            for k in RANKS
        }

    def _folds(self, images: np.ndarray, texts: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the rows of images and texts of each whole fold, in the order of the samples."""
        cut = []
        for start in range(0, len(images) - self.fold + 1, self.fold):
            fold_images = images[start : start + self.fold]
            cut.append((fold_images, texts[np.isin(self.group[texts], self.group[fold_images])]))
        return cut

    def balanced(self) -> float | None:
        """Return None: there are no classes."""
        return None

    def by_shots(self, groups: Sequence[np.ndarray]) -> dict[str, float]:
        """Return nothing: there are no classes."""
        return {}


def best_ranks(queries: Tensor, items: Tensor, of_query: Tensor, of_item: Tensor) -> Tensor:
    """Return the rank of each query's best own item among the unrelated ones, int64 (n,).

    `queries` (n, d) and `items` (m, d) are unit vectors; own are the items of the query's group,
    of which there must be one. Ties count against the query, and so does what is not a number.
    """
    ranks = torch.empty(len(queries), dtype=torch.int64)
    for rows, similar in similarities(queries, items):
        own = of_query[rows].unsqueeze(1) == of_item
        best = similar.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        ranks[rows] = (~(similar < best) & ~own).sum(1)  # of NaN neither >= nor < is true
    return ranks


class Retrieval(Scorer):
    """Scores modules with `images` and `texts`, which map inputs to unit vectors (batch, d)."""

    headline = "recall_sum"
    units: ClassVar = {"recall_sum": SHARE, **{f"recall@{k}": SHARE for k in RANKS}}

    def __init__(self, fold: int = 1000) -> None:
        self.fold = fold

    def tally(
        self,
        module: Any,
        view: View,
        num_classes: int = 0,
        batch_size: int = 512,
        *,
        features: bool = False,
    ) -> Embedded:
        split, rows = view.split, view.indices
        group = split.extra.get("group", np.arange(len(split)))
        return Embedded(
            embedded(module, view, "image", batch_size).cpu(),
            embedded(module, view, "text", batch_size).cpu(),
            np.asarray(group)[rows].astype(np.int64),
            _numbers(split.x, rows),
            _numbers(split.extra["tokens"], rows),
            self.fold,
        )

    def picture(self, module: Any, dataset: Dataset) -> Figure | None:

        return retrieval_figure(self, module, dataset)


@torch.no_grad()
def embedded(module: Any, view: View, modality: str, batch_size: int = 512) -> Tensor:
    """Return the unit vectors (n, d) of a view's images or texts, in its order, on its device.

    `module` has `images` or `texts`; it runs in evaluation mode and is left in the mode it was in.
    """
    training = module.training
    module.eval()
    if modality == "image":
        made = [module.images(x) for x in view.input_batches(batch_size)]
    else:
        made = [module.texts(x) for x in view.input_batches(batch_size, reads="texts")]
    module.train(training)
    return torch.cat(made) if made else torch.empty(0, 0, device=view.device)


def _numbers(array: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return a number int64 for each of the rows (n,), equal exactly where their bytes are."""
    numbers = np.empty(len(rows), np.int64)
    for i, row in enumerate(rows.tolist()):
        digest = hashlib.blake2b(np.ascontiguousarray(array[row]).data, digest_size=8).digest()
        numbers[i] = int.from_bytes(digest, "little", signed=True)
    return numbers


def first_rows(group: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Return the first row of each different item of a group, ascending."""
    pairs = np.stack([group, item], axis=1)
    return np.sort(np.unique(pairs, axis=0, return_index=True)[1])


QUERIES = 4
"""Texts, and as many images, spread evenly over the test samples."""


SHOWN = 5


GREEN, RED = "#2a9d5c", "#c8553d"


def nearest(embedded: Embedded, query: int, way: str) -> np.ndarray:
    """Return the rows of the items nearest to a query's row, the nearest first, int64 (<= 5,)."""
    item = embedded.image if way == "t2i" else embedded.text
    rows = first_rows(embedded.group, item)
    queries, items = embedded.images, embedded.texts
    if way == "t2i":
        queries, items = items, queries
    similar = items[torch.from_numpy(rows)] @ queries[query]
    order = torch.argsort(similar, descending=True, stable=True)[:SHOWN]
    return rows[order.numpy()]


def retrieval_figure(scorer: Retrieval, module: Any, dataset: Dataset) -> Figure:
    """Return the picture on the test split; right answers are framed in green."""
    from matplotlib.figure import Figure

    split = dataset.test
    view = View(split, np.arange(len(split)), dataset.card)
    samples = scorer.tally(module, view, dataset.num_classes)
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
        for cell, row in zip(cells[1:], nearest(samples, query, way), strict=False):
            right = samples.group[row] == samples.group[query]
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
