"""Options of a component, and the check of those an experiment gives.

The options are the fields of the component's ``Config`` dataclass, or for a function its
keyword arguments, or for a Flower strategy the parameters of its constructor.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from fedsim.components.option_types import Replace, is_callable, replace_sections, text_type, words
from fedsim.config.ranges import RANGE_ERROR, check_range, evaluate_type, field_types
from fedsim.config.references import load_reference
from fedsim.config.yaml import show
from fedsim.errors import InputError, nearest
from fedsim.flower.contracts import is_client_app, is_strategy_class

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

Options = dict[str, tuple[Any, Any]]


def options(obj: Any) -> Options:
    """Return option name -> (type, default) of a component, in the order declared.

    The type is `Any` where there is none, the default `REQUIRED` where there is none.
    """
    config = config_class(obj)
    if config is not None:
        types = field_types(config)
        return {
            field.name: (types[field.name], _field_default(field))
            for field in dataclasses.fields(config)
            if field.init
        }
    if not callable(obj) or is_client_app(obj):
        return {}
    every = is_strategy_class(obj)
    function = getattr(obj, "__init__", obj) if isinstance(obj, type) else obj
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    parameters: Options = {}
    for p in inspect.signature(obj).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            continue
        if every or p.kind is p.KEYWORD_ONLY or p.default is not p.empty:
            annotation = Any if p.annotation is p.empty else p.annotation
            parameters[p.name] = (evaluate_type(annotation, namespace), p.default)
    return parameters


def config_class(obj: Any) -> type | None:
    """Return the component's ``Config`` dataclass, None if it has none."""
    config = getattr(obj, "Config", None) if isinstance(obj, type) else None
    return config if isinstance(config, type) and dataclasses.is_dataclass(config) else None


def validate(
    obj: Any,
    component: str,
    values: Mapping[str, Any],
    key: str,
    build: Replace,
    *,
    platform_keys: tuple[str, ...] = ("name",),
    base: Path | None = None,
) -> dict[str, Any]:
    """Return options converted to the types that the component declares.

    `key` is the component's section in messages and `platform_keys` those of its keys that are no
    options; `build` makes a nested component of its section.

    Raises:
        InputError: unknown or missing options, or values of a wrong type or range, a line each.
    """
    declared = options(obj)
    problems = []
    converted: dict[str, Any] = {}
    for name, value in values.items():
        if name not in declared:
            allowed = [*platform_keys, *declared]
            problems.append(
                f"{key}.{name} is not an option of {component!r} (got {show(value)}); allowed "
                f"are {', '.join(allowed)}.{nearest(name, allowed)}"
            )
            continue
        try:
            converted[name] = _value(value, declared[name][0], f"{key}.{name}", build, base)
        except InputError as error:
            problems.append(str(error))
    for name, (annotation, default) in declared.items():
        if default is REQUIRED and name not in values:
            problems.append(
                f"{key}.{name} is missing: {component!r} needs it to be {words(annotation)}"
            )
    if problems:
        raise InputError("\n".join(problems))
    return converted


def _value(value: Any, annotation: Any, key: str, build: Replace, base: Path | None) -> Any:
    """Return the value of an option, of its type, for the value in an experiment file."""
    built = replace_sections(value, annotation, key, build)
    if built is not value:
        return built
    if isinstance(value, str) and is_callable(annotation):
        return load_reference(value, base, key)
    made_of_text = text_type(annotation)
    if made_of_text is not None and value is not None:
        if not isinstance(value, str):
            raise InputError(f"{key} must be {made_of_text.words}, got {show(value)}")
        return made_of_text(value)
    return _convert(value, annotation, key)


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Validate strictly: no string is a number, no boolean an integer; a list makes a tuple."""
    if annotation is Any:
        return value
    settings = ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        plain = not (isinstance(annotation, type) and dataclasses.is_dataclass(annotation))
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=settings if plain else None)
    except (PydanticUserError, SchemaError):  # a type that pydantic cannot check
        return value
    try:
        text = json.dumps(value)
    except TypeError:  # an object given from Python
        text = None
    try:
        if text is None:
            return adapter.validate_python(value, strict=True)
        # JSON mode is strict about scalars yet makes a tuple or set of a list.
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        if any(e["type"] == RANGE_ERROR for e in errors):
            check_range(key, annotation, value)
        constraints = [
            e["msg"][len("Input should be ") :]
            for e in errors
            if e["msg"].startswith("Input should be ") and e.get("ctx")
        ]
        allowed = words(annotation)
        if get_origin(annotation) is typing.Annotated and constraints:
            allowed = f"{allowed}, {constraints[0]}"
        raise InputError(f"{key} must be {allowed}, got {show(value)}") from None


def _field_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED
