"""The picture of a partition: who owns what, how much, and of which domains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedsim.data.dataset import Dataset
from fedsim.data.partition import MODALITIES, Manifest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

MOST_BUBBLES = 60
"""Up to so many clients are drawn one by one, as bubbles."""

MOST_COLUMNS = 400
"""Of more clients than this so many are drawn, evenly spaced in the order of their sizes."""

_TRAIN, _VALIDATION, _TEST, _SERVER = "#3b6ea8", "#9fc1e0", "#e0a45c", "#777777"


def class_counts(manifest: Manifest, dataset: Dataset, column: str = "label") -> np.ndarray:
    """Return the samples of each client and class (or ``domain``), int64 (clients, kinds).

    Counted are a client's rows of the training split, held-out ones too; a sample without a class
    (a detection image without boxes) counts nowhere.
    """
    by_domain = column == "domain"
    values = dataset.train.extra["domain"] if by_domain else dataset.train.y
    kinds = len(dataset.card.domains) if by_domain else dataset.num_classes
    mine = values[manifest.indices]
    keys = (manifest.owners * kinds + mine)[mine >= 0]
    counts = np.bincount(keys, minlength=manifest.num_clients * kinds)
    return counts.reshape(manifest.num_clients, kinds)


def partition_figure(manifest: Manifest, dataset: Dataset, title: str) -> Figure:
    """Return the picture of a partition.

    In the middle class against client: bubbles with areas by the number of samples, or for many
    clients a heat map of each client's class shares. Above it the clients' sizes, at the right the
    classes' sizes (the long tail), below the clients' domains where the data set has any.
    """
    from matplotlib.figure import Figure

    counts = class_counts(manifest, dataset)
    has_domains = len(dataset.card.domains) > 1 and "domain" in dataset.train.extra
    shown = np.arange(manifest.num_clients)
    if len(shown) > MOST_COLUMNS:
        by_size = np.argsort(manifest.sizes, kind="stable")[::-1]
        shown = by_size[np.linspace(0, len(by_size) - 1, MOST_COLUMNS).astype(np.int64)]
    rows = min(dataset.num_classes, 30)
    domain_rows = 0.35 * len(dataset.card.domains) if has_domains else 0
    figure = Figure(figsize=(10, 3.4 + 0.22 * rows + domain_rows), layout="constrained", dpi=110)
    grid = figure.add_gridspec(
        3 if has_domains else 2,
        2,
        width_ratios=(5, 1.3),
        height_ratios=[1.6, max(2.2, 0.22 * rows), *([domain_rows] if has_domains else [])],
    )
    middle = figure.add_subplot(grid[1, 0])
    top = figure.add_subplot(grid[0, 0], sharex=middle)
    right = figure.add_subplot(grid[1, 1], sharey=middle)
    if len(shown) <= MOST_BUBBLES:
        _bubbles(middle, counts)
    else:
        key = figure.add_subplot(grid[0, 1])
        key.axis("off")
        _heat_map(figure, middle, key, counts[shown])
    _name_classes(middle, dataset)
    _sizes(top, manifest, shown)
    _tail(right, counts, manifest, dataset)
    lowest = middle
    if has_domains:
        lowest = figure.add_subplot(grid[2, 0], sharex=middle)
        key = figure.add_subplot(grid[2, 1])
        key.axis("off")
        _domains(figure, lowest, key, class_counts(manifest, dataset, "domain")[shown], dataset)
        middle.tick_params(labelbottom=False)
    _name_clients(lowest, manifest, shown)
    figure.suptitle(f"{title}\n{_summary(manifest)}", fontsize=10)
    return figure


def _bubbles(axes: Axes, counts: np.ndarray) -> None:
    clients, classes = np.nonzero(counts)
    values = counts[clients, classes]
    areas = 320 * values / values.max() * min(1.0, 25 / len(counts))
    axes.scatter(clients, classes, s=np.maximum(areas, 1.5), c=_TRAIN, alpha=0.75, linewidths=0)
    axes.grid(color="0.93", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlim(-0.7, len(counts) - 0.3)
    axes.set_title(f"area: samples of a class (largest {values.max():,})", fontsize=8, loc="left")


def _heat_map(figure: Figure, axes: Axes, key: Axes, counts: np.ndarray) -> None:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(
        shares.T, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest"
    )
    _scale(figure, image, key, (0.05, 0.3, 0.9, 0.12), "of a class")


def _scale(
    figure: Figure, image: AxesImage, key: Axes, place: tuple[float, float, float, float], of: str
) -> None:
    bar = figure.colorbar(image, cax=key.inset_axes(place), orientation="horizontal")
    bar.set_label(f"share of a client's samples\n{of}", fontsize=8)
    bar.ax.tick_params(labelsize=8)


def _name_classes(axes: Axes, dataset: Dataset) -> None:
    names = dataset.card.classes
    step = -(-len(names) // 30)
    ticks = range(0, len(names), step)
    axes.set_yticks(ticks, [names[i][:18] for i in ticks], fontsize=8)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_ylabel("class", fontsize=8)


def _sizes(axes: Axes, manifest: Manifest, shown: np.ndarray) -> None:
    bottom = np.zeros(len(shown))
    width = 0.85 if len(shown) <= MOST_BUBBLES else 1.0
    parts = [
        ("train", manifest.num_train, _TRAIN),
        ("validation", manifest.num_validation, _VALIDATION),
        ("test", manifest.num_test, _TEST),
    ]
    for name, values, colour in parts:
        if values[shown].any():
            height = values[shown].astype(float)
            axes.bar(np.arange(len(shown)), height, width, bottom, color=colour, label=name)
            bottom += height
    axes.set_ylabel("samples", fontsize=8)
    axes.tick_params(labelbottom=False, labelsize=8)
    axes.legend(fontsize=7, ncols=3, frameon=False, loc="upper right")
    axes.set_ylim(0, bottom.max() * 1.25)
    axes.spines[["top", "right"]].set_visible(False)


def _tail(axes: Axes, counts: np.ndarray, manifest: Manifest, dataset: Dataset) -> None:
    totals = counts.sum(0)
    axes.barh(np.arange(len(totals)), totals, 0.8, color=_TRAIN, label="clients")
    if len(manifest.server):
        labels = dataset.train.y[manifest.server]
        own = np.bincount(labels[labels >= 0], minlength=len(totals))
        axes.barh(np.arange(len(own)), own, 0.8, totals, color=_SERVER, label="server")
        axes.legend(fontsize=7, frameon=False, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    present = totals[totals > 0]
    if len(present) and present.max() > 10 * present.min():
        axes.set_xscale("log")
    axes.set_xlabel("samples of a class", fontsize=8)
    axes.tick_params(labelleft=False, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _domains(figure: Figure, axes: Axes, key: Axes, counts: np.ndarray, dataset: Dataset) -> None:
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axes.imshow(
        shares.T, aspect="auto", cmap="Greens", vmin=0, vmax=1, interpolation="nearest"
    )
    _scale(figure, image, key, (0.05, 0.6, 0.9, 0.25), "of a domain")
    names = dataset.card.domains
    axes.set_ylabel("domain", fontsize=8)
    axes.set_yticks(range(len(names)), [name[:18] for name in names], fontsize=8)


def _name_clients(axes: Axes, manifest: Manifest, shown: np.ndarray) -> None:
    if len(shown) < manifest.num_clients:
        what = f"{len(shown)} of {manifest.num_clients:,} clients, largest first, evenly spaced"
        axes.set_xlabel(what, fontsize=8)
        axes.set_xticks([])
        return
    axes.set_xlabel("client", fontsize=8)
    step = -(-len(shown) // 30)
    names = []
    for client in shown[::step]:
        name = str(client)
        if len(manifest.modality) and manifest.modality[client]:
            name += f"\n{MODALITIES[manifest.modality[client]]}"
        if len(manifest.labelled) and not manifest.labelled[client]:
            name += "\nno\nlabels" if len(shown) <= 30 else "*"
        names.append(name)
    axes.set_xticks(shown[::step], names, fontsize=7)


def _summary(manifest: Manifest) -> str:
    sizes = manifest.sizes
    text = (
        f"{manifest.num_clients:,} clients, {len(manifest.indices):,} samples; "
        f"a client has {sizes.min():,} to {sizes.max():,}, median {np.median(sizes):,.0f}"
    )
    if manifest.on_test_split:
        tests = np.diff(manifest.test_pointers)
        text += f"; tested on {tests.min():,} to {tests.max():,} of the test split"
    if len(manifest.server):
        text += f"; the server has {len(manifest.server):,}"
    return text
