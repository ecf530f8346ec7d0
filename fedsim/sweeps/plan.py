"""Plan of a sweep: all its runs, checked before the first one starts.

A sweep file names an experiment file and its variations:

    base: fashion_lt.yaml           # relative to the sweep file
    seeds: [0, 1, 2]
    variants:                       # name -> changes of the experiment, nested or by dotted keys
      fedavg: {strategy: {name: fedavg}}
      fedprox: {strategy: {name: fedprox}, client.mu: 0.1}
    grid: {client.lr: [0.01, 0.03]} # every combination, for each variant

A section of a variant is merged into that of the experiment, or replaces it if it names another
component. An experiment file is a sweep with one variant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsim.components import configure
from fedsim.config.experiment import Experiment
from fedsim.config.reading import is_sweep, load_experiment, read_mapping
from fedsim.config.yaml import parse_yaml
from fedsim.errors import InputError, nearest
from fedsim.runs.folder import RunFolder

_KEYS = ("name", "base", "seeds", "variants", "grid")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._,=+-]{0,99}")


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    folder: Path
    experiment: Experiment

    @property
    def label(self) -> str:
        return f"{self.experiment.name}, seed {self.experiment.seed}"


@dataclass
class Plan:
    """The runs of a sweep, ordered by combination, then by seed."""

    name: str
    root: Path
    cells: list[Cell] = field(default_factory=list)


def make_plan(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    out: str | Path = "runs",
) -> Plan:
    """Return the runs of a sweep or experiment file; writes nothing.

    Overrides with several values, ``{"client.lr": [0.1, 0.2]}`` or ``["client.lr=0.1,0.2"]``, are
    grid axes; those with a single value hold for all runs. `seeds` replaces the file's.

    Raises:
        InputError: the file or one of the experiments is invalid.
    """
    folder: Path | None = None
    label = "sweep"
    if isinstance(source, Mapping):
        tree = dict(source)
    else:
        label, folder = str(source), Path(source).resolve().parent
        tree = dict(read_mapping(Path(source)))
    name = ""
    variants: Mapping[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    if "base" in tree or "variants" in tree or "grid" in tree:
        name = str(tree.get("name") or (Path(label).stem if folder else "sweep"))
        tree, variants, grid, file_seeds, folder = _parse(tree, label, folder)
        seeds = file_seeds if seeds is None else seeds
    fixed, axes = _axes(overrides)
    grid = {**{k: v for k, v in grid.items() if k not in fixed}, **axes}
    name = name or str(tree.get("name", ""))
    if not _NAME.fullmatch(name):
        raise InputError(f"{label}: name must be usable as a folder's name, got {name!r}")
    plan = Plan(name, Path(out) / name)
    problems: list[str] = []
    for variant, changes in (variants or {"": {}}).items():
        for values in itertools.product(*grid.values()):
            point = dict(zip(grid, values, strict=True))
            cell = ",".join([*([variant] if variant else []), *map(_text, point, values)]) or name
            if not _NAME.fullmatch(cell):
                problems.append(
                    f"{cell!r} is not a valid folder name; rename or shorten the variant"
                )
                continue
            changed = merged(tree, changes)
            for seed in seeds if seeds is not None else [None]:
                settings = {**fixed, **point, "name": cell}
                settings |= {} if seed is None else {"seed": seed}
                where = f"{label}, {cell}"
                try:
                    experiment = load_experiment(changed, settings)
                    experiment = configure.complete(experiment, folder, where)
                except InputError as error:
                    problems.append(_without(str(error), "experiment: ", f"{where}: "))
                    break
                plan.cells.append(Cell(plan.root / cell / f"seed-{experiment.seed}", experiment))
    if problems:
        raise InputError("\n".join(dict.fromkeys(problems)))
    folders = [cell.folder for cell in plan.cells]
    if shared := {f for f in folders if folders.count(f) > 1}:
        raise InputError(f"{label}: two runs would share the folder {min(shared)}")
    if not folders:
        raise InputError(f"{label}: there is nothing to run: an axis or the seeds are empty")
    return plan


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the experiment with a variant's changes; the arguments are not modified.

    Keys may be dotted. A mapping is merged into the existing one, unless it has another `name`.
    """
    result = dict(tree)
    for key, value in changes.items():
        first, _, rest = str(key).partition(".")
        old = result.get(first)
        if rest:
            result[first] = merged(old if isinstance(old, Mapping) else {}, {rest: value})
        elif isinstance(value, Mapping) and isinstance(old, Mapping):
            other = "name" in value and value["name"] != old.get("name")
            result[first] = dict(value) if other else merged(old, value)
        else:
            result[first] = value
    return result


def pending(plan: Plan, force: bool) -> list[tuple[Cell, bool]]:
    """Return the unfinished runs, each with whether it is to be resumed.

    Raises:
        InputError: a folder holds a run of another experiment, or a process is at work in it.
    """
    work: list[tuple[Cell, bool]] = []
    for cell in plan.cells:
        if force or not (cell.folder / "config.yaml").is_file():
            RunFolder.create(plan.root, cell.experiment.name, cell.experiment.seed, force=force)
            work.append((cell, False))
            continue
        existing = RunFolder.open(cell.folder)
        stored = load_experiment(cell.folder / "config.yaml")
        before = _results_only(configure.complete(stored, None, str(cell.folder)))
        now = _results_only(cell.experiment)
        if before != now:
            names = ", ".join(k for k in now if now[k] != before.get(k))
            raise InputError(
                f"{cell.folder} holds a run with other settings ({names} differ); choose another "
                "--out or name, or replace all runs with --force"
            )
        if existing.status == "running":
            raise InputError(f"another process is at work in {cell.folder}")
        if existing.status != "finished":
            work.append((cell, True))
    return work


def _results_only(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that determine a run's results: all but engine and checkpoints."""
    return experiment.model_dump(exclude={"engine", "checkpoint"})


def _parse(
    tree: Mapping[str, Any], label: str, folder: Path | None
) -> tuple[dict[str, Any], Mapping[str, Any], dict[str, list[Any]], list[int] | None, Path | None]:
    """Return the base experiment, variants, grid, seeds and the base's folder."""
    for key in tree:
        if key not in _KEYS:
            raise InputError(
                f"{label}: {key} is not a key of a sweep; allowed are {', '.join(_KEYS)}."
                f"{nearest(str(key), _KEYS)}"
            )
    base = tree.get("base")
    if isinstance(base, str):
        path = (folder or Path()) / base
        experiment, folder = dict(read_mapping(path)), path.resolve().parent
        if is_sweep(experiment):
            raise InputError(f"{label}: base must be an experiment file, got the sweep {base!r}")
    elif isinstance(base, Mapping):
        experiment = dict(base)
    else:
        raise InputError(f"{label}: base must be an experiment file or a mapping, got {base!r}")
    variants = tree.get("variants") or {}
    if not isinstance(variants, Mapping) or not all(
        isinstance(v, Mapping) for v in variants.values()
    ):
        raise InputError(f"{label}: variants must be a mapping of names to mappings")
    grid = tree.get("grid") or {}
    if not isinstance(grid, Mapping) or not all(isinstance(v, list) for v in grid.values()):
        raise InputError(f"{label}: grid must be a mapping of keys to lists of values")
    seeds = tree.get("seeds")
    if seeds is not None and not (
        isinstance(seeds, list) and all(type(s) is int and s >= 0 for s in seeds)
    ):
        raise InputError(f"{label}: seeds must be a list of whole numbers >= 0, got {seeds!r}")
    return experiment, variants, {str(k): list(v) for k, v in grid.items()}, seeds, folder


def _axes(
    overrides: Mapping[str, Any] | Sequence[str],
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Split overrides into those with one value and those with several."""
    if isinstance(overrides, Mapping):
        several = {k: list(v) for k, v in overrides.items() if isinstance(v, list | tuple)}
        return {k: v for k, v in overrides.items() if k not in several}, several
    fixed: dict[str, Any] = {}
    axes: dict[str, list[Any]] = {}
    for text in [overrides] if isinstance(overrides, str) else overrides:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"an override must be KEY=VALUE or KEY=VALUE,VALUE, got {text!r}")
        values = parse_yaml(f"[{value}]", f"override {key}") or [None]
        if len(values) == 1:
            fixed[key] = values[0]
        else:
            axes[key] = values
    for key in ("seed", "name"):
        if key in fixed or key in axes:
            raise InputError(f"{key} cannot be set in a sweep; use --seeds, or the file's name")
    return fixed, axes


def _text(key: str, value: Any) -> str:
    """Return ``key=value`` with the characters of a folder name."""
    if isinstance(value, Mapping):
        rest = [f"{k}={v}" for k, v in value.items() if k != "name"]
        value = "+".join([*([str(value["name"])] if "name" in value else []), *rest])
    elif isinstance(value, list):
        value = "+".join(map(str, value))
    elif value is None or isinstance(value, bool):
        value = {None: "null", True: "true", False: "false"}[value]
    return re.sub(r"[^A-Za-z0-9._=+-]+", "-", f"{key}={value}")


def _without(text: str, start: str, instead: str) -> str:
    return instead + text[len(start) :] if text.startswith(start) else text
