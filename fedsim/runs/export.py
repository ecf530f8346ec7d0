"""Export of runs to CSV, Parquet and model weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.errors import InputError, RunFailed, check_choice, os_errors_as
from fedsim.runs.atomic import replace_with
from fedsim.runs.results import Run

FORMATS = ("csv", "parquet", "weights", "weights-fp16")


def export_run(folder: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Export a run to files in `out` and return their paths.

    ``csv`` and ``parquet`` write the tables ``metrics``, ``clients`` and ``events``; csv has every
    digit of a float, ``nan`` for NaN and an empty cell for a missing value. ``weights`` writes the
    final model's backbone, for another experiment's model to start from; ``weights-fp16`` the same
    in half precision. `out` defaults to the folder ``export`` of the run.

    Raises:
        InputError: not a run, an unknown format, pyarrow is missing for parquet, or the model is
            not finished or has no such backbone.
        RunFailed: the disk is full or fails.
    """
    check_choice("an export's format", to, FORMATS)
    if to == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("export to parquet needs pyarrow: pip install 'fedsim[parquet]'")
    run = Run(folder)
    model = _exportable(run) if to.startswith("weights") else None
    place = run.path / "export" if out is None else Path(out)
    with os_errors_as(InputError, f"cannot create folder {place}"):
        place.mkdir(parents=True, exist_ok=True)
    if model is not None:
        return _export_weights(model, place, half=to == "weights-fp16")
    written = []
    for name in ("metrics", "clients", "events"):
        path = place / f"{name}.{to}"
        with os_errors_as(RunFailed, f"cannot write {path}"):
            replace_with(path, _writer(getattr(run, name), to))
        written.append(path)
    return written


def _exportable(run: Run) -> Any:
    model: Any = run.model()
    if not hasattr(model, "save_pretrained"):
        raise InputError(
            f"model {run.config.model.name!r} has no backbone that another model could start from; "
            f"its tensors are in {run.path / 'model.safetensors'}"
        )
    return model


def _export_weights(model: Any, place: Path, half: bool) -> list[Path]:
    import torch

    before = set(place.iterdir())
    with os_errors_as(RunFailed, f"cannot write to {place}"):
        model.save_pretrained(place, torch.float16 if half else torch.float32)
    return sorted(set(place.iterdir()) - before) or sorted(place.iterdir())


def _writer(frame: pd.DataFrame, to: str) -> Callable[[Path], object]:
    if to == "parquet":
        return lambda path: frame.to_parquet(path, engine="pyarrow", index=False)
    if "value" in frame:
        frame = frame.assign(value=frame["value"].map(repr))
    return lambda path: frame.to_csv(path, index=False, lineterminator="\n")
