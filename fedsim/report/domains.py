"""Accuracy of each client's model on every domain, of runs with `evaluation.across_domains`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pandas as pd

from fedsim.errors import InputError
from fedsim.evaluate.metric_names import Metric
from fedsim.runs.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def domain_matrix(runs: Run | Sequence[Run], model: str = "deployed") -> pd.DataFrame:
    """Return accuracies in [0, 1] of each client (rows) on each domain's test samples (columns).

    At the last evaluation, means over the runs. `model` is ``generic``, ``personal``, or
    ``deployed``: the personal model where the method has one and else the generic.

    Raises:
        InputError: no runs, or one that has not recorded this.
    """
    several = [runs] if isinstance(runs, Run) else list(runs)
    if not several:
        raise InputError("a matrix of domains needs at least one run")
    tables = [_of_run(run, model) for run in several]
    mean: pd.DataFrame = sum(tables[1:], tables[0]) / len(tables)
    return mean


def has_domains(run: Run) -> bool:
    """Whether the run has recorded how its clients do on every domain."""
    return bool(_across_domains(run))


def _across_domains(run: Run) -> list[Metric]:
    metrics = map(Metric.parse, run.names())
    return [m for m in metrics if m.tested_on and m.clients and m.name == "accuracy"]


def domains_figure(runs: Run | Sequence[Run], model: str = "deployed") -> Figure:
    """Return the matrix as a picture: clients by domains, in percent."""
    from fedsim.report.figures import matrix_figure

    return matrix_figure(domain_matrix(runs, model), "client", "tested on", "accuracy")


def _domain_order(run: Run) -> dict[str, int]:
    """Return the place of each domain in the data set, if its card can be read here."""
    from fedsim.components.build import build_dataset

    try:
        order = list(build_dataset(run.config).card.domains)
    except (InputError, OSError):
        order = []
    return {domain: i for i, domain in enumerate(order)}


def _of_run(run: Run, model: str) -> pd.DataFrame:
    metrics = _across_domains(run)
    kinds = {metric.model for metric in metrics}
    if not kinds:
        raise InputError(
            f"run {run.path} has recorded nothing across domains; set evaluation.across_domains: "
            "true and run again"
        )
    kind = model
    if model == "deployed":
        kind = "personal" if "personal" in kinds else "generic"
    if kind not in kinds:
        raise InputError(
            f"run {run.path} has no {model!r} model; it has {', '.join(sorted(kinds))}"
        )
    columns = {}
    order = _domain_order(run)
    for metric in sorted(metrics, key=lambda m: order.get(m.tested_on, len(order))):
        if metric.model == kind:
            key = replace(metric, clients=False).key
            frame = run.client_values("test", key, last=True).set_index("client")
            columns[metric.tested_on] = frame["value"]
    table = pd.DataFrame(columns).sort_index()
    table.index = [f"client {c}" for c in table.index]
    return table
