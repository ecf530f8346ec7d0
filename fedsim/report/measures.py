"""Measures of a single run: the value that a choice names, its clients' values, costs to a target.

A metric is named as in the tables of a comparison: as recorded, without ``test/``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fedsim.errors import InputError
from fedsim.evaluate.metric_names import Metric
from fedsim.runs.results import Run

BEST = "best-on-validation"
WORST = 10
"""The worst tenth of the clients, rounded up, is what "worst 10 %" is the mean of."""

VIRTUAL = "virtual_seconds"
"""Of a round as if its clients ran all at once: the slowest client's and the server's own."""


def last_count(choice: str) -> int:
    """Return how many of the last evaluations count; 0 for the best one on validation samples.

    Raises:
        InputError: no such choice.
    """
    start, _, number = choice.rpartition("-")
    if choice == "last":
        return 1
    if choice == BEST:
        return 0
    if start == "mean-of-last" and number.isdecimal() and int(number) >= 1:
        return int(number)
    raise InputError(
        f"choice must be 'last', {BEST!r}, or 'mean-of-last-K' with a whole number K, got "
        f"{choice!r}"
    )


def recorded(run: Run, name: str) -> Metric:
    """Return the metric that a run has recorded for one of the tables.

    The model ``deployed`` is the one that a client would use: its personal one, or the generic one
    if it has none.
    """
    metric = Metric.parse(name)
    if not (metric.model == "deployed" and metric.clients and metric.split == "test"):
        return metric
    generic, personal = (replace(metric, model=model) for model in ("generic", "personal"))
    return personal if f"test/{personal.key}" in run.names() else generic


def curve(run: Run, name: str) -> pd.DataFrame:
    """Return round and value of each evaluation of a metric."""
    metric = recorded(run, name)
    return run.values(metric.split, metric.key)


def chosen(run: Run, name: str, choice: str) -> pd.DataFrame:
    """Return round and value of the evaluations that `choice` names; none if none was recorded.

    Raises:
        InputError: `choice` is the best one on validation samples, and the run has not both.
    """
    frame, count = curve(run, name), last_count(choice)
    if count or frame.empty:
        return frame.iloc[-count:]
    metric = recorded(run, name)
    held = run.values("validation", metric.over_all_classes.key)
    if metric.split != "test" or held.empty:
        raise InputError(
            f"run {run.path} has not recorded {metric.key} on validation samples as well; "
            f"{BEST} needs evaluation.on: both"
        )
    scores = held["value"].to_numpy() * (1 if run.unit(name).higher_is_better else -1)
    scores = np.where(np.isnan(scores), -math.inf, scores)
    best = int(held["round"].iloc[int(scores.argmax())])  # the first of equals
    return frame[frame["round"] == best]


def client_values(run: Run, name: str, rounds: Sequence[int]) -> np.ndarray:
    """Return the value of each client in these rounds, where there are several its mean."""
    of_client = replace(recorded(run, name), clients=False)
    frame = run.client_values("test", of_client.key, rounds=rounds)
    values = frame["value"].to_numpy()
    if len(rounds) == 1:
        return values
    _, at = np.unique(frame["client"].to_numpy(), return_inverse=True)
    means: np.ndarray = np.bincount(at, values) / np.bincount(at)
    return means


def worst_tenth(values: np.ndarray, lower: bool) -> float:
    """Return the mean of the worst tenth of the clients, of at least one.

    Those are the highest where `lower` is better; then also those without a number (NaN).
    """
    ordered = np.sort(values)[:: -1 if lower else 1]
    return float(ordered[: -(-len(values) // WORST)].mean())


def reached(run: Run, name: str, target: float) -> int | None:
    """Return the first round in which the metric was evaluated as good as `target`, or better."""
    frame = curve(run, name)
    values = frame["value"]
    good = values >= target if run.unit(name).higher_is_better else values <= target
    rounds = frame["round"][good]
    return int(rounds.iloc[0]) if len(rounds) else None


def cumulated(run: Run, names: Sequence[str], until: int) -> float:
    """Return the sum of these training metrics over the rounds up to one."""
    frames = [run.values("train", name) for name in names]
    return float(sum(f["value"][f["round"] <= until].sum() for f in frames))


def has_virtual(run: Run) -> bool:
    """Whether every round has virtual seconds; those that older versions wrote have none."""
    count = len(run.values("train", VIRTUAL))
    return 0 < count == len(run.values("train", "seconds"))
