"""Read and check an experiment: a YAML file or a mapping, with overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fedsim.config.experiment import Experiment, Section
from fedsim.config.yaml import dump_yaml, parse_yaml, show
from fedsim.errors import InputError, nearest, os_reason


def load_experiment(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Experiment:
    """Read an experiment from a YAML file or a mapping.

    `overrides` are ``{"client.lr": 0.1}`` or ``["client.lr=0.1"]`` (values parsed as YAML),
    applied in order; each replaces the whole value of its key.

    Raises:
        InputError: one message with a line for each problem.
    """
    if isinstance(source, Mapping):
        label, data = "experiment", source
    else:
        label, data = str(source), read_mapping(Path(source))
        if is_sweep(data):
            raise InputError(
                f"{label} is a sweep file, not an experiment; run it with: fedsim sweep {label}"
            )
    try:
        tree = _plain(data, "")
        replaced = list(_parse_overrides(overrides))
        for path, value in replaced:
            _replace(tree, path, _plain(value, ".".join(path)))
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        problems = _problems(error, tree, [".".join(path) for path, _ in replaced])
    raise InputError(join_problems(label, problems))


def to_yaml(experiment: Experiment) -> str:
    """Return the experiment as YAML with every default written out; `load_experiment` reads it."""
    return dump_yaml(experiment.model_dump())


def digest(path: Path) -> str:
    """Return the sha256 (hex) of an experiment file's keys and values, whatever their order.

    The file counts as it stands, without the defaults of keys that it lacks: a run's digest
    outlives keys that are added to the platform or to a component after the run began.
    """
    text = json.dumps(read_mapping(path), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def base_folder(source: str | Path | Mapping[str, Any]) -> Path | None:
    """Return the folder that ``./file.py:Name`` in `source` is relative to; None for a mapping."""
    return None if isinstance(source, Mapping) else Path(source).resolve().parent


def join_problems(label: str, problems: Sequence[str]) -> str:
    """Return one message: ``label: problem``, or a line for each of several."""
    if len(problems) == 1:
        return f"{label}: {problems[0]}"
    return "\n  ".join([f"{label} has {len(problems)} problems:", *problems])


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Whether the content of a file is a sweep rather than an experiment."""
    return "rounds" not in data and ("base" in data or "variants" in data)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Read the mapping in an experiment file or a sweep file.

    Raises:
        InputError: there is no such file, or it is not a mapping in YAML.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an experiment file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        stems = {p.stem: p for p in path.parent.glob("*.y*ml")}
        near = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
        hint = f" Did you mean {str(stems[near[0]])!r}?" if near else ""
        raise InputError(f"there is no experiment file {path}.{hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} must be text in UTF-8, got the byte {error.object[error.start]:#x} at "
            f"position {error.start}"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {os_reason(error)}") from None
    data = parse_yaml(text, str(path))
    if data is None:
        raise InputError(f"{path} is empty: it must hold an experiment (name, rounds, ...)")
    if not isinstance(data, Mapping):
        kind = "a list" if isinstance(data, list) else repr(data)
        raise InputError(f"{path} must hold a mapping (name: ..., rounds: ..., ...), got {kind}")
    return data


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """Return a copy that consists of dict, list, str, int, float, bool and None only."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if depth > 20:
        raise InputError(f"{key} is nested more than 20 levels deep")
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        plain = {}
        for k, v in value.items():
            if not isinstance(k, str):
                where = key or "an experiment"
                raise InputError(f"the keys of {where} must be strings, got {k!r}")
            plain[k] = _plain(v, f"{key}.{k}" if key else k, depth + 1)
        return plain
    raise InputError(
        f"{key} must be a number, string, true, false, null, list or mapping, got {value!r}"
    )


def _parse_overrides(
    overrides: Mapping[str, Any] | Sequence[str],
) -> Iterator[tuple[list[str], Any]]:
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = []
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"an override must be KEY=VALUE, got {text!r}")
            pairs.append((key.strip(), parse_yaml(value, f"override {key.strip()}")))
    for key, value in pairs:
        path = key.split(".") if isinstance(key, str) else [""]
        if not all(path):
            raise InputError(
                f"an override's key must be names joined by dots, such as client.lr, got {key!r}"
            )
        yield path, value


def _replace(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for depth, name in enumerate(path[:-1], start=1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            parent = ".".join(path[:depth])
            raise InputError(
                f"cannot override {'.'.join(path)}: {parent} is {show(tree)}, not a mapping"
            )
    tree[path[-1]] = value


def _problems(
    error: ValidationError, tree: Mapping[str, Any], overridden: Sequence[str]
) -> list[str]:
    """Return one sentence per key; of a union's errors on a key, only the first."""
    problems: dict[str, str] = {}
    for e in error.errors(include_url=False):
        if e["type"] == "rule":
            problems.setdefault(e["msg"], e["msg"])
            continue
        path, model, description = _locate(e["loc"])
        key = ".".join(path)
        if key in problems:
            continue
        parent: Any = tree
        for name in path[:-1]:
            parent = parent[name]
        if e["type"] == "extra_forbidden":
            names = list(model.model_fields)
            owner = ".".join(path[:-1]) or "an experiment"
            problems[key] = (
                f"{key} is not a key of {owner} (got {show(parent[path[-1]])}); allowed are "
                f"{', '.join(names)}.{nearest(path[-1], names)}"
            )
        elif path[-1] not in parent:
            problems[key] = f"{key} is missing: it must be {description}"
            if issubclass(model, Section):  # where a misspelt key looks like an option
                options = [k for k in parent if k not in model.model_fields]
                for near in difflib.get_close_matches(path[-1], options, n=1, cutoff=0.5):
                    problems[key] += f"; is {near!r} meant for it?"
        else:
            problems[key] = f"{key} must be {description}, got {show(parent[path[-1]])}"
        if any(key == o or key.startswith(f"{o}.") for o in overridden):
            problems[key] += " (from an override)"
    return list(problems.values())


def _locate(loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel], str]:
    """Return the key path, the model that owns its last name, and that field's description.

    A location also names the members of unions: it is cut at the first name that is no field.
    """
    owner: type[BaseModel] = Experiment
    path: list[str] = []
    model: type[BaseModel] | None = Experiment
    description = ""
    for name in map(str, loc):
        if model is None:
            break
        owner = model
        path.append(name)
        field = model.model_fields.get(name)
        description = (field.description if field else "") or ""
        annotation = field.annotation if field else None
        candidates = get_args(annotation) or (annotation,)
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
    return path, owner, description
