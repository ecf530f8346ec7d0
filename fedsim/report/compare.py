"""Comparing strategies over seeds: one table a metric, from run folders only.

Every number is first one of a single run, then a mean over the runs of a setting with a 95 %
interval (Student's t), and against a reference a paired difference over the seeds that both have,
tested by the paired t test and corrected for the number of comparisons (Holm).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from fedsim.errors import InputError, check, nearest
from fedsim.evaluate.metric_names import SHOTS, Metric
from fedsim.report.groups import Group, check_same_data, gather, missing_seeds
from fedsim.report.html import write_page
from fedsim.report.measures import (
    VIRTUAL,
    chosen,
    client_values,
    cumulated,
    has_virtual,
    last_count,
    reached,
    worst_tenth,
)
from fedsim.report.plots import comparison_figures
from fedsim.report.statistics import holm, mean_interval, paired_p
from fedsim.report.tables import Tables
from fedsim.report.text import comparison_text
from fedsim.runs.results import Run, load_runs

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Comparison(Tables):
    """The tables of compared runs, and the ways to show them."""

    def __str__(self) -> str:
        return comparison_text(self)

    def figures(self) -> dict[str, Figure]:
        """Return the pictures, by title: curves, clients, many/medium/few where recorded."""
        return comparison_figures(self)

    def to_html(self, path: str | Path) -> None:
        """Write one page with everything, that needs no other file and no network.

        Raises:
            InputError: the file cannot be written.
        """
        write_page(self, Path(path))


def compare(
    runs: str | Path | Iterable[Run | str | Path],
    *,
    metric: str | Sequence[str] | None = None,
    reference: str | None = None,
    choice: str = "last",
    target: float | None = None,
    different_data: bool = False,
) -> Comparison:
    """Compare runs that were made with the same data, partitions and seeds.

    `runs` are runs, or paths and globs of their folders. `metric` names are as recorded, with or
    without ``test/``, such as ``generic/accuracy`` (the server's model on the global test set) or
    ``clients/personal/accuracy`` (mean over clients), and ``clients/deployed/accuracy``, which is
    the personal one where a method has one and else the generic; by default all accuracies, or
    those of the metric that the models are scored by, and those of ``evaluation.metrics``.
    `reference` is a group's name, by default the first of FedAvg or else the first. `choice` says
    which round counts: ``last``, ``mean-of-last-K`` evaluations, or ``best-on-validation``: the
    first one with the best value on validation samples (``evaluation.on: both``). With `target` the
    table of the first metric also says when it was reached. Whether high or low values are the good
    ones is what the model's scorer declares, or the name of a metric tells (`Metric.unit`).

    Raises:
        InputError: no runs, an unknown metric, reference or choice, or runs of different data
            without `different_data`.
    """
    finished, left_out = _open(runs)
    if not finished:
        raise InputError("no finished runs to compare" + "".join(f"\n  {x}" for x in left_out))
    last_count(choice)
    groups = gather(finished)
    if not different_data:
        check_same_data(groups)
    metrics = _metrics(groups, metric)
    if target is not None:
        high = 1.0 if groups[0].runs[0].unit(metrics[0]).is_share else math.inf
        text = "target must be a number" + (" in 0..1, as 0.9" if high == 1.0 else "")
        check(math.isfinite(target) and target <= high, text, target)
    base = _reference(groups, reference)
    tables: dict[str, pd.DataFrame] = {}
    values: list[dict[str, Any]] = []
    remarks: dict[str, None] = {}
    for name in metrics:
        frames = {g.label: {r.config.seed: chosen(r, name, choice) for r in g.runs} for g in groups}
        numbers = {
            label: {seed: _mean(frame) for seed, frame in own.items()}
            for label, own in frames.items()
        }
        for label, own in numbers.items():
            for seed, value in own.items():
                values.append({"metric": name, "run": label, "seed": seed, "value": value})
        rows = [_row(group, numbers, base.label) for group in groups]
        for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
            row["p_holm"] = p
        if Metric.parse(name).clients:
            for row, group in zip(rows, groups, strict=True):
                of = {seed: f["round"].tolist() for seed, f in frames[group.label].items()}
                row |= _fairness(group, name, of)
        if target is not None and name == metrics[0]:
            for row, group in zip(rows, groups, strict=True):
                row |= _costs(group, name, target)
        tables[name] = pd.DataFrame(rows)
        counts = {label: min(map(len, own.values())) for label, own in frames.items()}
        remarks |= dict.fromkeys(_remarks(groups, choice, target, counts))
    return Comparison(
        groups,
        base.label,
        choice,
        tables,
        pd.DataFrame(values),
        missing_seeds(groups),
        left_out,
        target,
        list(remarks),
    )


def _mean(frame: pd.DataFrame) -> float:
    return float(frame["value"].to_numpy().mean()) if len(frame) else math.nan


def _open(source: str | Path | Iterable[Run | str | Path]) -> tuple[list[Run], list[str]]:
    """Return the finished runs, and a sentence for each that was left out."""
    items = [source] if isinstance(source, str | Path) else list(source)
    paths = [item for item in items if not isinstance(item, Run)]
    runs = [item for item in items if isinstance(item, Run)]
    left_out: list[str] = []
    if paths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            runs += load_runs(paths)
        left_out = [str(w.message) for w in caught if str(w.message).startswith("left out")]
    finished = []
    for run in runs:
        if run.status != "finished":
            text = f"run {run.path} is {run.status} after round {run.rounds_done}"
            left_out.append(f"left out: {text}")
            continue
        try:
            _ = run.check(), run.partition_digest
        except InputError as error:
            left_out.append(f"left out: {error}")
            continue
        finished.append(run)
    return finished, left_out


def _metrics(groups: list[Group], requested: str | Sequence[str] | None) -> list[str]:
    """Return the metrics, without ``test/``."""
    known = dict.fromkeys(
        str(Metric.parse(name)) for g in groups for r in g.runs[:1] for name in r.names()
    )
    headline = groups[0].runs[0].headline
    own = [f"clients/{model}/{headline}" for model in ("generic", "personal")]
    deployed = f"clients/deployed/{headline}"
    if own[0] in known or own[1] in known:
        known[deployed] = None
    if requested is None:
        generic = f"generic/{headline}"
        names = [generic, *(f"{generic}_{shots}" for shots in SHOTS), *own]
        names += [deployed] if all(c in known for c in own) else []
        further = groups[0].runs[0].config.evaluation.metrics
        names += [name.removesuffix(headline) + m for m in further for name in [generic, *own]]
        recorded = [name for name in names if name in known]
        recorded = recorded or [f"validation/{n}" for n in names if f"validation/{n}" in known]
        return recorded or [name for name in known if name.startswith("train/train_loss")]
    names = [requested] if isinstance(requested, str) else list(requested)
    for i, name in enumerate(names):
        names[i] = str(Metric.parse(name))
        if names[i] not in known:
            shown = [k for k in known if k.endswith((headline, "loss"))]
            raise InputError(
                f"no run has recorded the metric {name!r}; there are {', '.join(shown)} and "
                f"{len(known) - len(shown)} more.{nearest(names[i], list(known))}"
            )
    return names


def _reference(groups: list[Group], wanted: str | None) -> Group:
    if wanted is None:
        plain = [g for g in groups if g.label == "fedavg"]
        plain += [g for g in groups if g.strategy == "fedavg"]
        return (plain or groups)[0]
    for group in groups:
        if wanted == group.label:
            return group
    labels = [g.label for g in groups]
    raise InputError(
        f"reference must be one of {', '.join(labels)}, got {wanted!r}.{nearest(wanted, labels)}"
    )


def _row(group: Group, numbers: dict[str, dict[int, float]], base: str) -> dict[str, Any]:
    own, other = numbers[group.label], numbers[base]
    values = [v for v in own.values() if not math.isnan(v)]
    over = mean_interval(values)
    row: dict[str, Any] = {
        "run": group.label,
        "strategy": group.strategy,
        "seeds": len(values),
        "mean": over.mean,
        "low": over.low,
        "high": over.high,
    }
    apart = [own[s] - other[s] for s in own if s in other]
    apart = [] if group.label == base else [d for d in apart if not math.isnan(d)]
    by = mean_interval(apart)
    return row | {
        "difference": by.mean,
        "difference_low": by.low,
        "difference_high": by.high,
        "pairs": len(apart),
        "p": paired_p(apart),
    }


def _fairness(group: Group, name: str, rounds: dict[int, list[int]]) -> dict[str, float]:
    """Return how far the clients are apart in these rounds of each seed; means over seeds."""
    worst, spread = [], []
    for run in group.runs:
        values = client_values(run, name, rounds[run.config.seed])
        if len(values):
            worst.append(worst_tenth(values, not run.unit(name).higher_is_better))
            spread.append(float(values.std()))
    none = math.nan
    return {
        "worst_10": float(np.mean(worst)) if worst else none,
        "spread": float(np.mean(spread)) if spread else none,
    }


def _costs(group: Group, name: str, target: float) -> dict[str, float]:
    """Return what it took until an evaluation first reached the target; means over seeds."""
    costs: dict[str, list[float]] = {"rounds": [], "bytes": [], "seconds": [], VIRTUAL: []}
    for run in group.runs:
        at = reached(run, name, target)
        if at is not None:
            costs["rounds"].append(at)
            costs["bytes"].append(cumulated(run, ("bytes_up", "bytes_down"), at))
            costs["seconds"].append(cumulated(run, ("seconds",), at))
            virtual = cumulated(run, (VIRTUAL,), at) if has_virtual(run) else math.nan
            costs[VIRTUAL].append(virtual)
    means = {f"{k}_to_target": float(np.mean(v)) if v else math.nan for k, v in costs.items()}
    return {"reached": len(costs["rounds"]), **means}


def _remarks(
    groups: Sequence[Group], choice: str, target: float | None, counts: dict[str, int]
) -> list[str]:
    """Return a sentence for each thing that the choice and the target pass over in silence.

    `counts` are the evaluations that the value of a group is of, in the run that has the fewest.
    """
    remarks = []
    expected = last_count(choice)
    for label, count in counts.items():
        if 0 < count < expected:
            remarks.append(f"{label} has {count} evaluations only: {choice} is the mean of these")
    every = sorted({run.config.evaluation.every for group in groups for run in group.runs})
    if len(every) > 1 and (target is not None or choice != "last"):
        what = [f"{choice} is of other rounds in each"] * (choice != "last")
        what += ["what a target took is only as exact as that"] * (target is not None)
        remarks.append(f"evaluated every {', '.join(map(str, every))} rounds: {' and '.join(what)}")
    if target is not None:
        remarks += [
            f"{g.label} has runs without virtual seconds, of an earlier version"
            for g in groups
            if not all(map(has_virtual, g.runs))
        ]
    return remarks
