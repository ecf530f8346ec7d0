"""Sweeps: many runs from one file, and the table of their results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsim.errors import RunFailed, check
from fedsim.runs.results import Run
from fedsim.sweeps.plan import Plan, make_plan, pending
from fedsim.sweeps.pool import Display, default_jobs, num_cores, run_all, visible_gpus


def sweep(
    source: str | Path | Mapping[str, Any],
    *,
    set: Mapping[str, Any] | Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    out: str | Path = "runs",
    jobs: int | None = None,
    force: bool = False,
    view: Callable[[Plan, int, int], Display] | None = None,
) -> list[Run]:
    """Run every combination of a sweep or experiment file and return the runs.

    Their folders are ``out/<sweep>/<variant>,<key>=<value>.../seed-<s>``. Called again, it keeps
    finished runs and resumes the others. `set` may give several values for a key:
    ``{"client.lr": [0.1, 0.2]}`` or ``["client.lr=0.1,0.2"]``. `jobs` is the number of concurrent
    runs, by default one for each core, or for each GPU where workers need one.
    `view(plan, finished, jobs)` returns a display of their progress; there is none by default.

    Raises:
        InputError: the file, an experiment or a folder is invalid; nothing was run.
        RunFailed: some runs failed; the others are finished.
    """
    check(jobs is None or jobs >= 1, "jobs must be >= 1", jobs)
    plan = make_plan(source, set, seeds, out)
    work = pending(plan, force)
    on_gpus = any(cell.experiment.engine.gpus > 0 for cell, _ in work)
    gpus = visible_gpus() if on_gpus else []
    if jobs is None:
        jobs = default_jobs(work, num_cores(), len(gpus))
    with closing((view or Display)(plan, len(plan.cells) - len(work), jobs)) as display:
        outcomes = run_all(work, plan.root, jobs, force, display, gpus)
    failed = [o for o in outcomes if o.error is not None]
    if failed:
        lines = [f"  {o.cell.label}: {str(o.error).splitlines()[0]}" for o in failed]
        text = f"{len(failed)} of {len(plan.cells)} runs failed:"
        raise RunFailed("\n".join([text, *lines, "call the sweep again to resume them"]))
    return [Run(cell.folder) for cell in plan.cells]


def table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return one row for each combination: number of seeds, mean and deviation of the final scores.

    The score is the headline metric, such as accuracy or mAP. `generic` is the server's model on
    the global test set; `clients_generic` and `personal` are means over the clients' own test sets.
    The standard deviation (``_std``) is over seeds, with n - 1.
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
    for name, scores in values.items():
        row: dict[str, Any] = {"run": name, "seeds": len(scores)}
        for key in columns:
            numbers = np.array([s[key] for s in scores])
            row[key] = float(numbers.mean())
            row[f"{key}_std"] = float(numbers.std(ddof=1)) if len(numbers) > 1 else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def table_text(frame: pd.DataFrame) -> str:
    """Format the table as text, scores in percent, without empty columns."""
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
