"""Options of components: defaults written out, values checked, objects made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from fedsim.components.lookup import DEFAULT_CLIENT, SECTIONS, resolve, table_of
from fedsim.components.option_types import component_kind, is_callable, replace_sections
from fedsim.components.options import config_class, options, validate
from fedsim.components.registered import entries
from fedsim.config.experiment import Experiment, Section
from fedsim.config.nested import Nested
from fedsim.config.reading import join_problems, load_experiment
from fedsim.config.references import absolute_reference
from fedsim.errors import InputError


def complete(experiment: Experiment, base: Path | None = None, label: str = "") -> Experiment:
    """Check every component and its options; return the experiment with all defaults written out.

    The client method is named, and ``./file.py`` references become absolute, so that the result
    means the same wherever it is read from. The participation and evaluation of the experiment
    also reach a Flower strategy that samples clients itself, unless its own options say otherwise.
    `label` names the experiment's file in messages.

    Raises:
        InputError: one message with a line for each problem of any component.
    """
    tree = experiment.model_dump()
    tree["strategy"] = _with_sampling(experiment, tree["strategy"], base)
    sampled = load_experiment(tree)
    problems: list[str] = []
    for kind, key in SECTIONS.items():
        section: Section = getattr(sampled, key)
        name = section.name or default_client(experiment.strategy.name, base)
        try:
            filled = _written_out(kind, name, section.options, base, key)
        except InputError as error:
            problems += str(error).split("\n")
            continue
        platform = {k: tree[key][k] for k in type(section).model_fields}
        tree[key] = {**platform, **filled}
    if problems:
        raise InputError(join_problems(label or experiment.name, problems))
    return load_experiment(tree)


def _with_sampling(
    experiment: Experiment, section: Mapping[str, Any], base: Path | None
) -> dict[str, Any]:
    section = dict(section)
    try:
        cls = resolve("strategies", section["name"], base)
    except InputError:
        return section  # `complete` says it along with other problems
    accepted = options(cls)
    population = experiment.partition.clients
    evaluation = experiment.evaluation
    limit = population if evaluation.clients == "all" else evaluation.clients
    evaluated = min(limit, population) if evaluation.personal else 0
    if {"fraction_train", "min_train_nodes"} <= set(accepted):
        defaults = {
            "fraction_train": _fraction(experiment.cohort_size, population),
            "fraction_evaluate": _fraction(evaluated, population),
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1 if evaluated else 0,
            "min_available_nodes": 1,
        }
        section = {**{k: v for k, v in defaults.items() if k in accepted}, **section}
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
    values: Mapping[str, Any],
    base: Path | None = None,
    key: str | None = None,
) -> Any:
    """Check the options of a component and return them as it takes them.

    For a class with a ``Config`` that is an instance of it, else the keyword arguments as a
    dict; for a Flower `ClientApp` the options as they are. `key` is the section's name in messages.

    Raises:
        InputError: a line for each option that is unknown, missing, of a wrong type or range.
    """
    key = key or SECTIONS.get(kind, kind)
    obj = resolve(kind, name, base, f"{key}.name")
    if not callable(obj) or (kind == "clients" and not isinstance(obj, type)):
        return dict(values)
    checked = validate(
        obj,
        name,
        values,
        key,
        partial(_nested, base, key),
        platform_keys=_platform_keys(kind) if key == SECTIONS.get(kind) else ("name",),
        base=base,
    )
    config = config_class(obj)
    if config is None:
        return checked
    try:
        return config(**checked)
    except InputError as error:
        raise InputError(_with_key(str(error), key, set(options(obj)))) from None


def instantiate(obj: Any, configured: Any, key: str) -> Any:
    """Make a strategy or client method from its class and the options of `configure`.

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
        listed = ", ".join(f"{k}: {v}" for k, v in plain.items())
        raise InputError(
            f"{key} {obj.__name__!r} refuses its options {{{listed}}}: {error}"
        ) from error


def default_client(strategy: str, base: Path | None = None) -> str:
    """Return the client method that a strategy comes with.

    The one of its name, or of its attribute `client`, or local SGD.
    """
    if strategy in table_of("clients"):
        return strategy
    try:
        declared: str | None = getattr(resolve("strategies", strategy, base), "client", None)
    except InputError:  # reported with the strategy itself
        declared = None
    if declared is None:
        return DEFAULT_CLIENT
    # The name of a built-in strategy, which `resolve` understands, is what experiments have.
    return strategy if isinstance(table_of("strategies").get(strategy), Path) else declared


def _written_out(
    kind: str,
    name: str,
    values: Mapping[str, Any],
    base: Path | None,
    key: str | None = None,
) -> dict[str, Any]:
    """Return a section with an absolute name and every option that a file can hold."""
    obj = resolve(kind, name, base, key and f"{key}.name")
    configured = configure(kind, name, values, base, key)

    def nested(type_: Any, section: Mapping[str, Any], place: str) -> dict[str, Any]:
        kind = str(component_kind(type_))
        return _written_out(kind, section["name"], _without_name(section), base)

    entry = entries(kind).get(name)
    full = absolute_reference(name, base) if entry is None else entry.reference
    filled: dict[str, Any] = {"name": full, **values}
    for option, (annotation, default) in options(obj).items():
        sections = values.get(option, _sections(default))
        replaced = replace_sections(sections, annotation, option, nested)
        if replaced is not sections:
            filled[option] = replaced
        elif isinstance(values.get(option), str) and is_callable(annotation):
            filled[option] = absolute_reference(values[option], base)
        else:
            if isinstance(configured, dict):
                value = configured.get(option, default)
            else:
                value = getattr(configured, option)
            # What a file cannot hold stays as written, or is left to its default.
            with contextlib.suppress(TypeError, ValueError):
                filled[option] = json.loads(json.dumps(value))
    return filled


def _sections(default: Any) -> Any:
    """Return an option's default with the components in it as an experiment file holds them."""
    if isinstance(default, Nested):
        return default.section
    if isinstance(default, list | tuple):
        return [_sections(item) for item in default]
    if isinstance(default, Mapping):
        return {name: _sections(item) for name, item in default.items()}
    return default


def _nested(
    base: Path | None, key: str, annotation: Any, section: Mapping[str, Any], place: str
) -> Any:
    """Return the component of a section at `place`, below `key`, as a value of its type."""
    kind, name = str(component_kind(annotation)), section["name"]
    obj = resolve(kind, name, base, f"{place}.name")
    configured = configure(kind, name, _without_name(section), base, place)
    if kind == "strategies":
        return instantiate(obj, configured, place)
    return annotation(name, obj, configured, place.removeprefix(f"{key}."))


def _without_name(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _with_key(message: str, key: str, known: set[str]) -> str:
    """Return ``beta must be ...`` (or ``fedavgm.beta ...``) as ``strategy.beta must be ...``."""
    subject, _, rest = message.partition(" ")
    option = subject.rpartition(".")[2]
    return f"{key}.{option} {rest}" if option in known else f"{key}: {message}"


def _platform_keys(kind: str) -> tuple[str, ...]:
    section = Experiment.model_fields[SECTIONS[kind]].annotation
    return tuple(section.model_fields) if isinstance(section, type) else ()
