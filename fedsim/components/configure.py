"""Options of components: defaults filled in, values checked, objects made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.components.lookup import DEFAULT_CLIENT, SECTIONS, resolve, table_of
from fedsim.components.options import (
    config_class,
    nested_items,
    nested_kind,
    nested_type,
    nested_values,
    options,
    validate,
)
from fedsim.components.registered import known
from fedsim.config.experiment import Experiment, Section
from fedsim.config.reading import join_problems, load_experiment
from fedsim.config.references import absolute_reference
from fedsim.errors import InputError


def complete(experiment: Experiment, base: Path | None, label: str = "") -> Experiment:
    """Return the experiment with all defaults written out, checked against its components.

    The participation and evaluation of the experiment also reach a Flower strategy that samples
    clients itself, unless its own options say otherwise.
    """
    tree = experiment.model_dump()
    tree["strategy"] = _with_sampling(experiment, tree["strategy"], base)
    return fill_defaults(load_experiment(tree), base, label)


def _with_sampling(
    experiment: Experiment, section: Mapping[str, Any], base: Path | None
) -> dict[str, Any]:
    section = dict(section)
    try:
        cls = resolve("strategies", section["name"], base)
    except InputError:
        return section  # said better by fill_defaults, along with other problems
    known = options(cls)
    population = experiment.partition.clients
    evaluation = experiment.evaluation
    wanted = population if evaluation.clients == "all" else min(evaluation.clients, population)
    evaluated = wanted if evaluation.personal else 0
    if {"fraction_train", "min_train_nodes"} <= set(known):
        defaults = {
            "fraction_train": _fraction(experiment.cohort_size, population),
            "fraction_evaluate": _fraction(evaluated, population),
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1 if evaluated else 0,
            "min_available_nodes": 1,
        }
        section = {**{k: v for k, v in defaults.items() if k in known}, **section}
    for option, value in section.items():
        if isinstance(value, Mapping) and "name" in value:
            section[option] = _with_sampling(experiment, value, base)
    return section


def _fraction(count: int, population: int) -> float:
    """Return a fraction that Flower's ``int(population * fraction)`` turns into `count`."""
    return count / population if count in (0, population) else (count + 0.5) / population


def configure(
    kind: str,
    name: str,
    given: Mapping[str, Any],
    base: Path | None = None,
    key: str | None = None,
) -> Any:
    """Check the options of a component and return them as it takes them.

    For a class with a ``Config`` that is an instance of it, else the keyword arguments as a
    dict; for a Flower `ClientApp` the options as given. `key` is the section's name in messages.

    Raises:
        InputError: a line for each option that is unknown, missing, of a wrong type or range.
    """
    key = key or SECTIONS.get(kind, kind)
    obj = resolve(kind, name, base, f"{key}.name")
    if not callable(obj) or (kind == "clients" and not isinstance(obj, type)):
        return dict(given)
    values = validate(
        obj,
        name,
        given,
        key,
        _platform_keys(kind) if key == SECTIONS.get(kind) else ("name",),
        partial(_nested, base),
        base,
    )
    config = config_class(obj)
    if config is None:
        return values
    try:
        return config(**values)
    except InputError as error:
        raise InputError(_with_key(str(error), key, set(options(obj)))) from None


def instantiate(obj: Any, configured: Any, key: str) -> Any:
    """Return the strategy or client method made of a class and what `configure` returned.

    A Flower `ClientApp` is returned as it is.

    Raises:
        InputError: a foreign constructor that refuses its arguments.
    """
    if not isinstance(obj, type):
        return obj
    if config_class(obj) is not None:
        return obj(configured)
    try:
        return obj(**configured)
    except (TypeError, ValueError) as error:
        plain = {k: v for k, v in configured.items() if isinstance(v, int | float | str)}
        given = ", ".join(f"{k}: {v}" for k, v in plain.items())
        raise InputError(
            f"{key} {obj.__name__!r} refuses its options {{{given}}}: {error}"
        ) from error


def default_client(strategy: str) -> str:
    """Return the client method a strategy comes with: the one of its name, else local SGD."""
    return strategy if strategy in table_of("clients") else DEFAULT_CLIENT


def fill_defaults(experiment: Experiment, base: Path | None = None, label: str = "") -> Experiment:
    """Check every component and its options; return the experiment with all defaults written out.

    The client method is named, and ``./file.py`` references become absolute, so that the result
    means the same wherever it is read from. `label` names the experiment's file in messages.

    Raises:
        InputError: one message with a line for each problem of any component.
    """
    tree = experiment.model_dump()
    problems: list[str] = []
    for kind, section in SECTIONS.items():
        given: Section = getattr(experiment, section)
        name = given.name or default_client(experiment.strategy.name)
        try:
            configured = configure(kind, name, given.options, base, section)
            filled = _fill(kind, name, given.options, configured, base)
        except InputError as error:
            problems += str(error).split("\n")
            continue
        platform = {k: tree[section][k] for k in type(given).model_fields}
        tree[section] = {**platform, **filled}
    if problems:
        raise InputError(join_problems(label or experiment.name, problems))
    return load_experiment(tree)


def _fill(
    kind: str, name: str, given: Mapping[str, Any], configured: Any, base: Path | None
) -> dict[str, Any]:
    """Return a section with an absolute name and the value of every option a file can hold."""
    obj = resolve(kind, name, base)
    entry = known(kind).get(name)
    full = absolute_reference(name, base) if entry is None else entry.reference
    filled: dict[str, Any] = {"name": full, **given}
    for option, (annotation, default) in options(obj).items():
        if isinstance(configured, dict):
            value = configured.get(option, default)
        else:
            value = getattr(configured, option)
        nested, listed = nested_kind(nested_type(annotation)), nested_kind(nested_items(annotation))
        section = given.get(option, getattr(default, "section", None))
        each = nested_kind(nested_values(annotation))
        if listed is not None and option not in given and isinstance(default, list | tuple):
            section = [some.section for some in default]
        if listed is not None and isinstance(section, list | tuple):
            filled[option] = [_fill_nested(listed, some, base) for some in section]
        elif nested is not None and isinstance(section, Mapping):
            filled[option] = _fill_nested(nested, section, base)
        elif each is not None and given.get(option) is not None:
            named = given[option].items()
            filled[option] = {name: _fill_nested(each, some, base) for name, some in named}
        elif option in given and callable(value):
            filled[option] = absolute_reference(given[option], base)
        else:
            # What a file cannot hold stays as given, or is left to its default.
            with contextlib.suppress(TypeError, ValueError):
                filled[option] = json.loads(json.dumps(value))
    return filled


def _fill_nested(kind: str, section: Mapping[str, Any], base: Path | None) -> dict[str, Any]:
    rest = {k: v for k, v in section.items() if k != "name"}
    return _fill(kind, section["name"], rest, configure(kind, section["name"], rest, base), base)


def _nested(
    base: Path | None, annotation: Any, kind: str, section: Mapping[str, Any], key: str, option: str
) -> Any:
    """Return the component of the nested section `key.option` as a value of type `annotation`."""
    name, at = section["name"], f"{key}.{option}"
    if kind == "runs":
        return annotation(name)
    rest = {k: v for k, v in section.items() if k != "name"}
    obj = resolve(kind, name, base, f"{at}.name")
    configured = configure(kind, name, rest, base, at)
    if kind == "strategies":
        return instantiate(obj, configured, at)
    return annotation(name, obj, configured, option)


def _with_key(message: str, key: str, known: set[str]) -> str:
    """Return ``beta must be ...`` (or ``fedavgm.beta ...``) as ``strategy.beta must be ...``."""
    subject, _, rest = message.partition(" ")
    option = subject.rpartition(".")[2]
    return f"{key}.{option} {rest}" if option in known else f"{key}: {message}"


def _platform_keys(kind: str) -> tuple[str, ...]:
    section = Experiment.model_fields[SECTIONS[kind]].annotation
    return tuple(section.model_fields) if isinstance(section, type) else ()
