"""The one call behind ``fedsim sweep``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.errors import RunFailed, check
from fedsim.runs.results import Run
from fedsim.sweeps.plan import Plan, make_plan, pending
from fedsim.sweeps.pool import Listener, default_jobs, num_cores, run_all, visible_gpus


def sweep(
    source: str | Path | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    out: str | Path = "runs",
    jobs: int | None = None,
    force: bool = False,
    view: Callable[[Plan, int, int], Listener] | None = None,
) -> list[Run]:
    """Make all runs of a sweep or experiment file and return them.

    The runs lie in ``out/<sweep>/<variant>,<key>=<value>.../seed-<s>``. Called again, finished
    runs are left as they are and the others resumed. `set` may give several values for a key:
    ``{"client.lr": [0.1, 0.2]}`` or ``["client.lr=0.1,0.2"]``. `jobs` is how many runs go at once,
    by default one a core, or one a GPU where workers need one.

    Raises:
        InputError: anything wrong with the file, any experiment or any folder; nothing was run.
        RunFailed: some runs failed; the others are there.
    """
    check(jobs is None or jobs >= 1, "jobs must be >= 1", jobs)
    plan = make_plan(source, set, seeds, out)
    work = pending(plan, force)
    uses_gpus = any(cell.experiment.engine.gpus > 0 for cell, _ in work)
    gpus = visible_gpus() if uses_gpus else []
    count = default_jobs(work, num_cores(), len(gpus)) if jobs is None else jobs
    listen: Listener = lambda kind, cell, value: None  # noqa: E731
    if view is not None:
        listen = view(plan, len(plan.cells) - len(work), count)
    outcomes = run_all(work, plan.root, count, force, listen, gpus)
    failed = [o for o in outcomes if o.error is not None]
    if failed:
        lines = [f"  {o.cell.label}: {str(o.error).splitlines()[0]}" for o in failed]
        text = f"{len(failed)} of {len(plan.cells)} runs failed:"
        raise RunFailed("\n".join([text, *lines, "call the sweep again to resume them"]))
    return [Run(cell.folder) for cell in plan.cells]


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a row for each combination: seeds, and mean and deviation of the final accuracies.

    Where models are scored by another headline metric, such as mAP, these are of that metric.

    `generic` is the server's model on the global test set; `clients_generic` and `personal` are
    means over the clients' own test sets. The deviation (``_std``) is over seeds, with n - 1.
    """
    columns = {
        "generic": "generic",
        "clients_generic": "clients/generic",
        "personal": "clients/personal",
    }
    values: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        final, headline, split = run.final, run.headline, run.config.evaluation.split
        values.setdefault(run.config.name, []).append(
            {
                key: final.get(f"{split}/{model}/{headline}", float("nan"))
                for key, model in columns.items()
            }
        )
    rows = []
    for name, seeds in values.items():
        row: dict[str, Any] = {"run": name, "seeds": len(seeds)}
        for key in columns:
            numbers = np.array([f[key] for f in seeds])
            row[key] = float(numbers.mean())
            row[f"{key}_std"] = float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def table_text(frame: pd.DataFrame) -> str:
    """Return the table as text, accuracies in percent, without columns that hold nothing."""
    keys = [k for k in ("generic", "clients_generic", "personal") if frame[k].notna().any()]
    width = max(len(str(name)) for name in [*frame["run"], "run"])
    lines = [f"{'run':<{width}}  seeds" + "".join(f"  {k.replace('_', ' '):>17}" for k in keys)]
    for row in frame.to_dict("records"):
        line = f"{row['run']:<{width}}  {row['seeds']:>5}"
        for key in keys:
            cell = "-" if np.isnan(row[key]) else f"{100 * row[key]:.2f} %"
            if not np.isnan(row[f"{key}_std"]):
                cell += f" +- {100 * row[f'{key}_std']:.2f}"
            line += f"  {cell:>17}"
        lines.append(line)
    if any(frame[f"{key}_std"].notna().any() for key in keys):
        lines.append("+-: standard deviation over seeds")
    return "\n".join(lines)
