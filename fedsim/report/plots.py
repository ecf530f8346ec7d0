"""The pictures of a comparison.

Colours are those of Okabe and Ito, which colour-blind readers tell apart; where there are more runs
than colours, the line style changes too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.evaluate.metric_names import SHOTS, Metric
from fedsim.evaluate.palette import COLOURS
from fedsim.report.domains import domains_figure, has_domains
from fedsim.report.figures import name_items
from fedsim.report.groups import Group
from fedsim.report.measures import (
    VIRTUAL,
    chosen,
    client_values,
    curve,
    has_virtual,
)
from fedsim.report.statistics import mean_interval
from fedsim.report.tables import Tables
from fedsim.report.text import header

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


STYLES = ("-", "--", ":", "-.")


def style(i: int) -> dict[str, Any]:
    """Return colour and line style of the i-th run of a picture."""
    return {
        "color": COLOURS[i % len(COLOURS)],
        "linestyle": STYLES[i // len(COLOURS) % len(STYLES)],
    }


def comparison_figures(comparison: Tables) -> dict[str, Figure]:
    """Return the pictures by title; those for which nothing was recorded are left out."""
    groups, names = comparison.groups, list(comparison.tables)
    figures = {}
    for name in [n for n in names if not Metric.parse(n).shots]:
        figures[f"{name} by round, bytes and seconds"] = curves_figure(groups, name)
    headline = groups[0].runs[0].headline
    for model in ("deployed", "personal", "generic"):
        if (name := f"clients/{model}/{headline}") in names:
            figures[f"{name} of each client"] = clients_figure(groups, name, comparison.choice)
            break
    shots = [f"generic/{headline}_{s}" for s in SHOTS]
    if all(s in names for s in shots):
        figures["many, medium and few samples"] = bars_figure(comparison, shots, SHOTS)
    for group in groups:
        if has_domains(group.runs[0]):
            figures[f"{group.label}: clients by domains, last round"] = domains_figure(group.runs)
    return figures


def curves_figure(groups: Sequence[Group], name: str) -> Figure:
    """Return a metric against rounds, bytes and time: means over seeds, with 95 % bands.

    Bytes are those all clients sent and received. Time is virtual, as if the clients of a round ran
    all at once, or where a run has not recorded that the time its machine took. Both are means over
    seeds. Bands of shares are drawn between 0 and 100 %.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    virtual = all(has_virtual(run) for group in groups for run in group.runs)
    figure = Figure(figsize=(12, 3.9), layout="constrained", dpi=110)
    by_round, by_bytes, by_seconds = figure.subplots(1, 3, sharey=True)
    unit = groups[0].runs[0].unit(name)
    scale, ends = (100, (0.0, 100.0)) if unit.is_share else (1, (-np.inf, np.inf))
    drawn = []
    for i, group in enumerate(groups):
        found = group_curve(group, name, virtual)
        if found.empty:
            continue
        mean = scale * found["mean"].to_numpy()
        low, high = (np.clip(scale * found[k].to_numpy(), *ends) for k in ("low", "high"))
        drawn += [mean, low, high]
        for axes, x in ((by_round, "round"), (by_bytes, "megabytes"), (by_seconds, "seconds")):
            label = group.label if axes is by_round else None
            axes.plot(found[x], mean, label=label, linewidth=1.6, **style(i))
            if len(group.runs) > 1:
                axes.fill_between(found[x], low, high, color=style(i)["color"], alpha=0.15, lw=0)
    shown = np.concatenate([[], *drawn])
    shown = shown[np.isfinite(shown)]
    if unit.is_share and len(shown):
        by_round.set_ylim(max(0.0, shown.min() - 5), min(100.0, shown.max() + 3))
    by_round.set_ylabel(header(name, unit), fontsize=9)
    by_round.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    time = "virtual seconds, a round's clients all at once [s]"
    time = time if virtual else "time on the runs' own machines [s]"
    labels = ("round", "transferred by all clients [MB]", time)
    for axes, label in zip((by_round, by_bytes, by_seconds), labels, strict=True):
        _dress(axes, label)
    figure.legend(loc="outside right center", fontsize=8, frameon=False)
    return figure


def group_curve(group: Group, name: str, virtual: bool = True) -> pd.DataFrame:
    """Return round, mean, low, high (95 % interval over seeds), megabytes and seconds until then.

    Of the rounds that all runs of the group have evaluated; the seconds are virtual, or those of
    the runs' machines.
    """
    frames = [curve(run, name) for run in group.runs]
    curves = [frame.set_index("round")["value"] for frame in frames if len(frame)]
    if not curves:
        return pd.DataFrame()
    table = pd.concat(curves, axis=1, join="inner").dropna()
    over = [mean_interval(row.tolist()) for row in table.to_numpy()]
    frame = pd.DataFrame({"round": table.index.to_numpy()})
    frame["mean"] = [o.mean for o in over]
    frame["low"], frame["high"] = [o.low for o in over], [o.high for o in over]
    frame["megabytes"] = _until(group, ("bytes_up", "bytes_down"), frame["round"]) / 1e6
    frame["seconds"] = _until(group, (VIRTUAL if virtual else "seconds",), frame["round"])
    return frame


def clients_figure(groups: Sequence[Group], name: str, choice: str = "last") -> Figure:
    """Return how a metric is spread over the clients, all seeds together.

    Of the rounds that `choice` names, as in the table.

    A violin a group, with a point for each client and the median as a line.
    """
    from matplotlib.figure import Figure

    found = [(g, _clients(g, name, choice)) for g in groups]
    found = [(g, values) for g, values in found if len(values)]
    figure = Figure(figsize=(max(5, 1 + 0.75 * len(found)), 4.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    unit = groups[0].runs[0].unit(name)
    scale = 100 if unit.is_share else 1
    for i, (_, values) in enumerate(found):
        colour, shown = style(i)["color"], scale * values
        if np.ptp(shown) > 0:
            for body in axes.violinplot([shown], [i], widths=0.8, showextrema=False)["bodies"]:  # type: ignore[attr-defined]
                body.set_facecolor(colour)
                body.set_alpha(0.25)
        # Points are laid out evenly and not at random: the same runs give the same picture.
        across = (np.arange(len(shown)) * 0.618034 % 1 - 0.5) * 0.4
        axes.plot(i + across, shown, ".", color=colour, markersize=3)
        axes.hlines(np.median(shown), i - 0.3, i + 0.3, color=colour, linewidth=2)
    axes.set_ylabel(f"{header(name, unit)} of a client", fontsize=9)
    _dress(axes, "")
    name_items(axes, [g.label for g, _ in found])
    return figure


def bars_figure(comparison: Tables, names: Sequence[str], labels: Sequence[str]) -> Figure:
    """Return bars of several metrics for each group, with 95 % intervals where there are some."""
    from matplotlib.figure import Figure

    groups = comparison.groups
    figure = Figure(figsize=(max(6, 1.5 + 0.8 * len(groups)), 4.2), layout="constrained", dpi=110)
    axes = figure.subplots()
    width = 0.8 / len(names)
    for j, (name, label) in enumerate(zip(names, labels, strict=True)):
        frame = comparison.tables[name]
        at = np.arange(len(groups)) + (j - (len(names) - 1) / 2) * width
        half = 100 * (frame["high"] - frame["low"]) / 2
        axes.bar(at, 100 * frame["mean"], width, color=COLOURS[j], label=label)
        known = half.notna().to_numpy()
        heights = 100 * frame["mean"].to_numpy()
        axes.errorbar(at[known], heights[known], half[known], fmt="none", ecolor="#333", lw=1)
    axes.set_ylabel("accuracy on the classes [%]", fontsize=9)
    _dress(axes, "")
    axes.set_ylim(0, 100)
    name_items(axes, [g.label for g in groups])
    figure.legend(loc="outside right upper", fontsize=8, frameon=False, title="classes with")
    return figure


def _until(group: Group, names: Sequence[str], rounds: pd.Series) -> np.ndarray:
    """Return the sums of training metrics up to each of these rounds, means over the runs."""
    sums = []
    for run in group.runs:
        total = np.zeros(len(rounds))
        for name in names:
            frame = run.values("train", name)
            at = np.searchsorted(frame["round"].to_numpy(), rounds.to_numpy(), side="right")
            total += np.concatenate([[0.0], np.cumsum(frame["value"].to_numpy())])[at]
        sums.append(total)
    return np.mean(sums, axis=0)


def _clients(group: Group, name: str, choice: str) -> np.ndarray:
    values = []
    for run in group.runs:
        rounds = chosen(run, name, choice)["round"].tolist()
        values.append(client_values(run, name, rounds))
    joined = np.concatenate(values)
    return joined[~np.isnan(joined)]


def _dress(axes: Axes, x: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
