"""The picture of a model's features: class means, directions used, classifier norms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fedsim.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fedsim.runs.results import Run

SPLIT = "features"
"""The split under which these values are recorded."""

_COLOURS = ("#3b6ea8", "#e0a45c", "#5a9367", "#a8503b", "#7a5ba8", "#777777")


def features_figure(runs: Sequence[Run], round: int | None = None) -> Figure:
    """Return the picture of the features that runs with ``evaluation.features`` recorded.

    Over the classes, largest first: the norm of the class mean with the noise around it, and over
    how many features the mean spreads. At the right, the norms of each classifier's rows against
    class sizes. `round` is the last one recorded unless given.

    Raises:
        InputError: no runs, or one that recorded nothing of the kind or not in this round.
    """
    from matplotlib.figure import Figure

    if not runs:
        raise InputError("the picture of features needs at least one run")
    tables = [_table(run, round) for run in runs]
    figure = Figure(figsize=(12, 3.8), layout="constrained", dpi=110)
    norms, dims, rows = figure.subplots(1, 3)
    for i, (run, (at, values)) in enumerate(zip(runs, tables, strict=True)):
        colour = _COLOURS[i % len(_COLOURS)]
        label = f"{run.config.name}, seed {run.config.seed}, round {at}"
        order = np.argsort(-values["samples"], kind="stable")
        place = np.arange(len(order))
        mean, noise = values["mean_norm"][order], values["noise"][order]
        norms.plot(place, mean, "o-", color=colour, markersize=3, label=label)
        norms.plot(place, noise, ":", color=colour, label="noise around it" if i == 0 else None)
        overall = f"all {values['dims'][0]:.1f}, within classes {values['dims_within'][0]:.1f}"
        dims.plot(place, values["mean_dims"][order], "o-", color=colour, markersize=3,
                  label=overall)  # fmt: skip
        _rows(rows, values, colour, label if len(runs) > 1 else "")
    _dress(norms, "class, largest first", "norm of the class mean")
    _dress(dims, "class, largest first", "effective features of the class mean")
    _dress(rows, "training samples of the class", "norm of the classifier's row")
    if min(float(np.min(v["samples"])) for _, v in tables) > 0:
        rows.set_xscale("log")
    return figure


def _table(run: Run, round: int | None) -> tuple[int, dict[str, np.ndarray]]:
    """Return the round and, by quantity, the values over classes (C,); NaN where there is none."""
    frame = run.metrics
    frame = frame[frame["split"] == SPLIT]
    if frame.empty:
        raise InputError(
            f"run {run.path} has recorded no features; set evaluation.features: true and run again"
        )
    known = sorted(set(frame["round"].tolist()))
    at = known[-1] if round is None else round
    if at not in known:
        raise InputError(f"run {run.path} recorded features in rounds {known}, not in {at}")
    frame = frame[frame["round"] == at]
    return at, _by_class(frame)


def _by_class(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    found: dict[str, dict[int, float]] = {}
    for name, value in zip(frame["name"].tolist(), frame["value"].tolist(), strict=True):
        quantity, slash, last = name.rpartition("/")
        if slash and last.isdecimal():
            found.setdefault(quantity, {})[int(last)] = value
        else:
            found[name] = {0: value}
    size = len(found["samples"])
    tables = {name: np.full(size if len(v) > 1 else 1, np.nan) for name, v in found.items()}
    for name, values in found.items():
        for c, value in values.items():
            tables[name][c] = value
    return tables


def _rows(axes: Axes, values: dict[str, np.ndarray], colour: str, label: str) -> None:
    markers = "osx+"
    kinds = sorted(name for name in values if name.endswith("/head_norm"))
    for marker, name in zip(markers, kinds, strict=False):
        kind = name.removesuffix("/head_norm")
        shown = f"{kind}: {label}" if label else kind
        axes.plot(values["samples"], values[name], marker, color=colour, markersize=4, label=shown)


def _dress(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=8)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=6.5, frameon=False)
