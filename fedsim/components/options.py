"""What options a component takes, and the check of those an experiment gives.

The options are the fields of the component's ``Config`` dataclass, or for a function its
keyword arguments, or for a Flower strategy the parameters of its constructor.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import inspect
import json
import re
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from fedsim.config.references import load_reference
from fedsim.config.yaml import show
from fedsim.errors import InputError, nearest
from fedsim.flower.contracts import is_client_app, is_strategy_class

REQUIRED = inspect.Parameter.empty
"""The default of an option that has none."""

Options = dict[str, tuple[Any, Any]]
BuildNested = Callable[[Any, str, Mapping[str, Any], str, str], Any]
"""(type, kind, section, the component's key, the option's key below it) -> the option's value."""

# Kinds of nested components: how a message calls one, and an example.
_NESTED = {
    "strategies": ("strategy", "fedavg"),
    "clients": ("client method", "local-sgd"),
    "datasets": ("data set", "digits"),
    "partitions": ("partition", "iid"),
    "models": ("model", "cnn"),
}
_RUNS = "runs"


def options(obj: Any) -> Options:
    """Return option name -> (annotation, default) of a component, in the order declared.

    The annotation is `Any` where there is none, the default `REQUIRED` where there is none.
    """
    config = config_class(obj)
    if config is not None:
        hints = _config_hints(config)
        return {
            f.name: (hints.get(f.name, Any), _field_default(f))
            for f in dataclasses.fields(config)
            if f.init
        }
    if not callable(obj) or is_client_app(obj):
        return {}
    every = is_strategy_class(obj)
    function = getattr(obj, "__init__", obj) if isinstance(obj, type) else obj
    namespace = getattr(inspect.unwrap(function), "__globals__", {})
    found: Options = {}
    for p in inspect.signature(obj).parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD, p.POSITIONAL_ONLY):
            continue
        if every or p.kind is p.KEYWORD_ONLY or p.default is not p.empty:
            annotation = Any if p.annotation is p.empty else _evaluate(p.annotation, namespace)
            found[p.name] = (annotation, p.default)
    return found


def config_class(obj: Any) -> type | None:
    """Return the component's ``Config`` dataclass, None if it has none."""
    config = getattr(obj, "Config", None) if isinstance(obj, type) else None
    return config if isinstance(config, type) and dataclasses.is_dataclass(config) else None


def validate(
    obj: Any,
    component: str,
    given: Mapping[str, Any],
    key: str,
    platform_keys: tuple[str, ...] = ("name",),
    build_nested: BuildNested | None = None,
    base: Path | None = None,
) -> dict[str, Any]:
    """Return the options of `given` converted to the types the component declares.

    `platform_keys` are the keys of the same section that are no options; `build_nested`
    makes the value of an option out of its type, kind and ``{name: ...}`` section, the component's
    key and its own key below that, such as ``image`` or ``image.1``.

    Raises:
        InputError: unknown, missing or ill-typed options, a line each.
    """
    known = options(obj)
    problems = []
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in known:
            allowed = [*platform_keys, *known]
            problems.append(
                f"{key}.{name} is not an option of {component!r} (got {show(value)}); allowed "
                f"are {', '.join(allowed)}.{nearest(name, allowed)}"
            )
            continue
        annotation = known[name][0]
        # Null where it is allowed names no component.
        nothing = value is None and type(None) in get_args(annotation)
        build = None if nothing else build_nested
        try:
            if build and isinstance(value, list | tuple) and nested_items(annotation) is not None:
                values[name] = _build_list(value, nested_items(annotation), key, name, build)
            elif build and _names_one(annotation, value):
                values[name] = _build_one(value, nested_type(annotation), key, name, build)
            elif build and nested_values(annotation) is not None:
                values[name] = _build_each(value, nested_values(annotation), key, name, build)
            elif isinstance(value, str) and _is_callable(annotation):
                values[name] = load_reference(value, base, f"{key}.{name}")
            else:
                values[name] = _convert(value, annotation, f"{key}.{name}")
        except InputError as error:
            problems.append(str(error))
    for name, (annotation, default) in known.items():
        if default is REQUIRED and name not in given:
            problems.append(
                f"{key}.{name} is missing: {component!r} needs it to be {words(annotation)}"
            )
    if problems:
        raise InputError("\n".join(problems))
    return values


def nested_kind(annotation: Any) -> str | None:
    """Return the kind of component that options of this type name in a section of their own.

    ``strategies`` for a Flower strategy, else the type's attribute ``component_kind``.
    """
    if not get_args(annotation) and is_strategy_class(annotation):
        return "strategies"
    return getattr(annotation, "component_kind", None)


def nested_type(annotation: Any) -> Any:
    """Return the type of options that name a component in a section of their own, else None."""
    return _first(annotation, lambda some: some)


def nested_items(annotation: Any) -> Any:
    """Return the type of the items of options that list any number of components, else None."""

    def item(some: Any) -> Any:
        if get_origin(some) in (list, collections.abc.Sequence):
            return get_args(some)[0]
        arguments = get_args(some) if get_origin(some) is tuple else ()
        return arguments[0] if arguments[1:] == (Ellipsis,) else None

    return _first(annotation, item)


def nested_values(annotation: Any) -> Any:
    """Return the type of the values of options that map names to components, else None."""
    maps = (dict, collections.abc.Mapping)
    return _first(annotation, lambda some: get_args(some)[1] if get_origin(some) in maps else None)


def _first(annotation: Any, part: Callable[[Any], Any]) -> Any:
    """Return the first part that is a component's type, of a type or of a union's members."""
    parts = map(part, get_args(annotation) if _is_union(annotation) else (annotation,))
    return next((some for some in parts if nested_kind(some) is not None), None)


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (typing.Union, types.UnionType)


def words(annotation: Any) -> str:
    """Return the words that complete "<key> must be ..." for a type."""
    simple = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "a string",
        None: "null",
        type(None): "null",
        Any: "anything",
        dict: "a mapping",
    }
    if isinstance(annotation, collections.abc.Hashable) and annotation in simple:
        return simple[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return words(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if _is_union(annotation):
        return " or ".join(map(words, arguments))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(words, arguments))}"
    if origin in (list, tuple, set, frozenset, collections.abc.Sequence) and arguments:
        return f"a list, each {words(arguments[0])}"
    if origin in (dict, collections.abc.Mapping):
        return "a mapping"
    if _is_callable(annotation):
        return "a function given as 'package.module:name'"
    if (kind := nested_kind(annotation)) == _RUNS:
        return "the folder of a finished run"
    if kind is not None:
        return f"a mapping with the name and options of a {_NESTED[kind][0]}"
    return f"of type {type_name(annotation)}"


def type_name(annotation: Any) -> str:
    """Return a type as a reader writes it: ``float | None``, ``tuple[Model, ...]``."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation.__name__
    # A module's name goes, what is quoted stays.
    path = r"'[^']*'|\b(?:[A-Za-z_]\w*\.)+(?=\w)"
    return re.sub(path, lambda m: m[0] if m[0].startswith("'") else "", str(annotation))


def _section(value: Any, key: str, kind: str) -> Mapping[str, Any]:
    if kind == _RUNS:
        if not isinstance(value, str):
            raise InputError(f"{key} must be the folder of a finished run, got {show(value)}")
        return {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        what, example = _NESTED[kind]
        raise InputError(
            f"{key} must be a mapping with the name and options of a {what}, such as "
            f"{{name: {example}}}, got {show(value)}"
        )
    return value


def _names_one(annotation: Any, value: Any) -> bool:
    """Whether a value stands for one component: in a union with other types only a mapping does."""
    members = get_args(annotation) if _is_union(annotation) else (annotation,)
    others = [
        some
        for some in members
        if some is not type(None)
        and nested_type(some) is None
        and nested_items(some) is None
        and nested_values(some) is None
    ]
    return nested_type(annotation) is not None and (isinstance(value, Mapping) or not others)


def _build_one(value: Any, annotation: Any, key: str, option: str, build: BuildNested) -> Any:
    """Return the component of a section, of the type `annotation`."""
    kind = nested_kind(annotation)
    assert kind is not None
    section = _section(value, f"{key}.{option}", kind)
    return build(annotation, kind, section, key, option)


def _build_list(
    value: Sequence[Any], annotation: Any, key: str, option: str, build: BuildNested
) -> tuple[Any, ...]:
    """Return the components of a list of sections, all of the type `annotation`."""
    return tuple(
        _build_one(some, annotation, key, f"{option}.{place}", build)
        for place, some in enumerate(value)
    )


def _build_each(
    value: Any, annotation: Any, key: str, option: str, build: BuildNested
) -> dict[str, Any]:
    """Return the components of a mapping of sections, all of the type `annotation`."""
    kind = nested_kind(annotation)
    assert kind is not None
    if not isinstance(value, Mapping):
        what, example = _NESTED[kind]
        raise InputError(
            f"{key}.{option} must map names to a {what} each, such as {{a: {{name: {example}}}}}, "
            f"got {show(value)}"
        )
    return {
        name: _build_one(some, annotation, key, f"{option}.{name}", build)
        for name, some in value.items()
    }


def _convert(value: Any, annotation: Any, key: str) -> Any:
    """Validate strictly: no string is a number, no boolean an integer; a list makes a tuple."""
    if annotation is Any:
        return value
    settings = ConfigDict(strict=True, arbitrary_types_allowed=True)
    try:
        own = isinstance(annotation, type) and dataclasses.is_dataclass(annotation)
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=None if own else settings)
    except (PydanticUserError, SchemaError):  # a type pydantic knows nothing of
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
        constraints = [
            e["msg"][len("Input should be ") :]
            for e in error.errors(include_url=False)
            if e["msg"].startswith("Input should be ") and e.get("ctx")
        ]
        allowed = words(annotation)
        if get_origin(annotation) is typing.Annotated and constraints:
            allowed = f"{allowed}, {constraints[0]}"
        raise InputError(f"{key} must be {allowed}, got {show(value)}") from None


def _config_hints(config: type) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for owner in reversed(config.__mro__):
        namespace = vars(sys.modules.get(owner.__module__, types.ModuleType("")))
        for name, annotation in vars(owner).get("__annotations__", {}).items():
            hints[name] = _evaluate(annotation, namespace)
    return hints


def _evaluate(annotation: Any, namespace: dict[str, Any]) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, namespace)
    except Exception:  # a name imported for type checkers only: the option goes unchecked
        return Any


def _field_default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _is_callable(annotation: Any) -> bool:
    if _is_union(annotation):
        return any(map(_is_callable, get_args(annotation)))
    return collections.abc.Callable in (annotation, get_origin(annotation))
