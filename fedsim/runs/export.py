"""A run's record as files that other programs read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fedsim.errors import InputError, RunFailed, nearest
from fedsim.runs.files import reason, replace_with
from fedsim.runs.results import Run


def export_run(folder: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Write ``metrics``, ``clients`` and ``events`` of a run to files in `out`.

    `to` is ``csv`` or ``parquet``. `out` is the run's own folder ``export`` unless given. A csv
    file holds every float in full and ``nan`` for NaN; what is missing is an empty cell.

    Raises:
        InputError: not a run, an unknown format, or pyarrow is missing for parquet.
        RunFailed: the disk is full or fails.
    """
    if to not in ("csv", "parquet"):
        hint = nearest(to, ("csv", "parquet"))
        raise InputError(f"an export's format must be csv or parquet, got {to!r}.{hint}")
    if to == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("export to parquet needs pyarrow: pip install 'fedsim[parquet]'")
    run = Run(folder)
    place = run.path / "export" if out is None else Path(out)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create folder {place}: {reason(error)}") from error
    written = []
    for name in ("metrics", "clients", "events"):
        path = place / f"{name}.{to}"
        try:
            replace_with(path, _writer(getattr(run, name), to))
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {reason(error)}") from error
        written.append(path)
    return written


def _writer(frame: pd.DataFrame, to: str) -> Callable[[Path], object]:
    if to == "parquet":
        return lambda path: frame.to_parquet(path, engine="pyarrow", index=False)
    if "value" in frame:
        frame = frame.assign(value=frame["value"].map(repr))
    return lambda path: frame.to_csv(path, index=False, lineterminator="\n")
