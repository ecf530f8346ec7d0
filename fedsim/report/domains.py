"""How each client's model does on every domain, of runs with ``evaluation.across_domains``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from fedsim.errors import InputError
from fedsim.runs.results import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARK = "accuracy_on/"


def domain_matrix(runs: Run | Sequence[Run], model: str = "deployed") -> pd.DataFrame:
    """Return accuracies in [0, 1] of each client (rows) on each domain's test samples (columns).

    At the last evaluation, means over the runs. `model` is ``generic``, ``personal``, or
    ``deployed``: the personal model where the method has one and else the generic.

    Raises:
        InputError: no runs, or one that has not recorded this.
    """
    given = [runs] if isinstance(runs, Run) else list(runs)
    if not given:
        raise InputError("a matrix of domains needs at least one run")
    tables = [_of_run(run, model) for run in given]
    mean: pd.DataFrame = sum(tables[1:], tables[0]) / len(tables)
    return mean


def has_domains(run: Run) -> bool:
    """Whether the run has recorded how its clients do on every domain."""
    return any(_MARK in name for name in run.names())


def domains_figure(runs: Run | Sequence[Run], model: str = "deployed") -> Figure:
    """Return the matrix as a picture: clients by domains, in percent."""
    from fedsim.report.figures import matrix_figure

    return matrix_figure(domain_matrix(runs, model), "client", "tested on", "accuracy")


def _place(run: Run) -> Callable[[str], int]:
    """Return the sort key of the data set's own order of domains, if its card can be read here."""
    from fedsim.components.build import build_dataset

    try:
        order = list(build_dataset(run.config).card.domains)
    except (InputError, OSError):
        order = []
    known = {domain: i for i, domain in enumerate(order)}
    return lambda name: known.get(name.partition(_MARK)[2], len(known))


def _of_run(run: Run, model: str) -> pd.DataFrame:
    names = [n.removeprefix("test/clients/") for n in run.names() if _MARK in n]
    kinds = {name.partition("/")[0] for name in names}
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
    for name in sorted(names, key=_place(run)):
        if name.startswith(f"{kind}/{_MARK}"):
            frame = run.client_values("test", name, last=True).set_index("client")
            columns[name.removeprefix(f"{kind}/{_MARK}")] = frame["value"]
    table = pd.DataFrame(columns).sort_index()
    table.index = [f"client {c}" for c in table.index]
    return table
