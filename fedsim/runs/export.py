"""A run's record as files that other programs read."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fedsim.errors import InputError, RunFailed, nearest
from fedsim.params import protocol
from fedsim.runs.atomic import reason, replace_with
from fedsim.runs.results import Run

FORMATS = ("csv", "parquet", "weights", "weights-fp16")


def export_run(folder: str | Path, to: str, out: str | Path | None = None) -> list[Path]:
    """Write a run to files in `out` that other programs read.

    ``csv`` and ``parquet`` are the tables ``metrics``, ``clients`` and ``events``; a csv file holds
    every float in full and ``nan`` for NaN, what is missing is an empty cell. ``weights`` is the
    final model's backbone as another experiment's model starts from it, in half precision with
    ``weights-fp16``. `out` is the run's own folder ``export`` unless given.

    Raises:
        InputError: not a run, an unknown format, pyarrow is missing for parquet, or a model that
            has no such backbone or is not finished.
        RunFailed: the disk is full or fails.
    """
    if to not in FORMATS:
        hint = nearest(to, FORMATS)
        raise InputError(
            f"an export's format must be one of {', '.join(FORMATS)}, got {to!r}.{hint}"
        )
    if to == "parquet" and importlib.util.find_spec("pyarrow") is None:
        raise InputError("export to parquet needs pyarrow: pip install 'fedsim[parquet]'")
    run = Run(folder)
    model = _exportable(run) if to.startswith("weights") else None
    place = run.path / "export" if out is None else Path(out)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create folder {place}: {reason(error)}") from error
    if model is not None:
        return _export_weights(model, place, half=to == "weights-fp16")
    written = []
    for name in ("metrics", "clients", "events"):
        path = place / f"{name}.{to}"
        try:
            replace_with(path, _writer(getattr(run, name), to))
        except OSError as error:
            raise RunFailed(f"cannot write {path}: {reason(error)}") from error
        written.append(path)
    return written


def _exportable(run: Run) -> Any:
    model: Any = run.model()
    if not protocol.exports(model):
        raise InputError(
            f"model {run.config.model.name!r} has no backbone that another model starts from; "
            f"its tensors are in {run.path / 'model.safetensors'}"
        )
    return model


def _export_weights(model: Any, place: Path, half: bool) -> list[Path]:
    import torch

    before = set(place.iterdir())
    try:
        model.save_pretrained(place, torch.float16 if half else torch.float32)
    except OSError as error:
        raise RunFailed(f"cannot write to {place}: {reason(error)}") from error
    return sorted(set(place.iterdir()) - before) or sorted(place.iterdir())


def _writer(frame: pd.DataFrame, to: str) -> Callable[[Path], object]:
    if to == "parquet":
        return lambda path: frame.to_parquet(path, engine="pyarrow", index=False)
    if "value" in frame:
        frame = frame.assign(value=frame["value"].map(repr))
    return lambda path: frame.to_csv(path, index=False, lineterminator="\n")
