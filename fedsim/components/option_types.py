"""Types of options: how a reader sees them, and where they name other components."""

from __future__ import annotations

import collections.abc
import re
import typing
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args, get_origin

from fedsim.config.nested import FromText
from fedsim.config.ranges import Range, is_union
from fedsim.config.yaml import show
from fedsim.errors import InputError
from fedsim.flower.contracts import is_strategy_class

_EXAMPLES = {
    "strategies": ("strategy", "fedavg"),
    "clients": ("client method", "local-sgd"),
    "datasets": ("data set", "digits"),
    "partitions": ("partition", "iid"),
    "models": ("model", "cnn"),
}
"""Kind -> how a message calls a component of it, and the name of one."""
_LISTS = (list, tuple, collections.abc.Sequence)
_MAPPINGS = (dict, collections.abc.Mapping)
_SIMPLE: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a string",
    type(None): "null",
    Any: "anything",
    dict: "a mapping",
}

Replace = Callable[[Any, Mapping[str, Any], str], Any]
"""(component type, section, key of the section) -> what takes the section's place."""


def words(annotation: Any) -> str:
    """Return the words that complete "<key> must be ..." for a type."""
    if isinstance(annotation, collections.abc.Hashable) and annotation in _SIMPLE:
        return _SIMPLE[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        return words(arguments[0])
    if origin is Literal:
        return " or ".join(map(repr, arguments))
    if is_union(annotation):
        return " or ".join(map(words, arguments))
    if origin is tuple and arguments and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)}: {', '.join(map(words, arguments))}"
    if origin in (*_LISTS, set, frozenset) and arguments:
        return f"a list, each {words(arguments[0])}"
    if origin in _MAPPINGS:
        return "a mapping"
    if is_callable(annotation):
        return "a function given as 'package.module:name'"
    if text_type(annotation) is not None:
        return str(annotation.words)
    if (kind := component_kind(annotation)) is not None:
        return f"a mapping with the name and options of a {_EXAMPLES[kind][0]}"
    return f"of type {type_name(annotation)}"


def type_name(annotation: Any) -> str:
    """Return a type as a reader writes it: ``float > 0 | None``, ``tuple[Model, ...]``."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is typing.Annotated:
        ranges = [item.words for item in arguments[1:] if isinstance(item, Range)]
        return " ".join([type_name(arguments[0]), *ranges[:1]]).removesuffix(" and finite")
    if is_union(annotation):
        return " | ".join(map(type_name, arguments))
    if origin in (tuple, list, dict):
        inside = ", ".join("..." if a is Ellipsis else type_name(a) for a in arguments)
        return f"{origin.__name__}[{inside}]"
    if annotation is type(None):
        return "None"
    if isinstance(annotation, type) and not arguments:
        return annotation.__name__
    # A module's name goes, what is quoted stays.
    path = r"'[^']*'|\b(?:[A-Za-z_]\w*\.)+(?=\w)"
    return re.sub(path, lambda m: m[0] if m[0].startswith("'") else "", str(annotation))


def is_callable(annotation: Any) -> bool:
    """Whether options of this type are functions, given by reference."""
    if is_union(annotation):
        return any(map(is_callable, get_args(annotation)))
    return collections.abc.Callable in (annotation, get_origin(annotation))


def text_type(annotation: Any) -> type[FromText] | None:
    """Return the type of options that are made from a string, None if it is another one."""
    members = get_args(annotation) if is_union(annotation) else (annotation,)
    classes = (member for member in members if isinstance(member, type))
    return next((cls for cls in classes if issubclass(cls, FromText)), None)


def component_kind(annotation: Any) -> str | None:
    """Return the kind of component that options of this type name in a section of their own.

    ``strategies`` for a Flower strategy, else the type's attribute ``component_kind``.
    """
    if not get_args(annotation) and is_strategy_class(annotation):
        return "strategies"
    return getattr(annotation, "component_kind", None)


def replace_sections(value: Any, annotation: Any, key: str, replace: Replace) -> Any:
    """Return an option's value with its sections, ``{name: ...}``, replaced; lists become tuples.

    Where the type names no component, or null is allowed and given, that is the value itself.

    Raises:
        InputError: a section is not a mapping with a name.
    """
    if not _names_components(annotation):
        return value
    origin, arguments = get_origin(annotation), get_args(annotation)
    if is_union(annotation):
        if value is None and type(None) in arguments:
            return value
        members = [member for member in arguments if member is not type(None)]
        fitting = [m for m in members if _names_components(m) and _has_shape(value, m)]
        if not fitting and all(map(_names_components, members)):
            fitting = members
        return replace_sections(value, fitting[0], key, replace) if fitting else value
    if origin in _LISTS:
        if not isinstance(value, list | tuple):
            return value
        return tuple(
            replace_sections(item, arguments[0], f"{key}.{place}", replace)
            for place, item in enumerate(value)
        )
    kind = component_kind(arguments[1] if origin in _MAPPINGS else annotation)
    what, example = _EXAMPLES.get(str(kind), ("component", "NAME"))
    if origin in _MAPPINGS:
        if not isinstance(value, Mapping):
            raise InputError(
                f"{key} must map names to a {what} each, such as {{a: {{name: {example}}}}}, got "
                f"{show(value)}"
            )
        return {
            name: replace_sections(item, arguments[1], f"{key}.{name}", replace)
            for name, item in value.items()
        }
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise InputError(
            f"{key} must be a mapping with the name and options of a {what}, such as "
            f"{{name: {example}}}, got {show(value)}"
        )
    return replace(annotation, value, key)


def _names_components(annotation: Any) -> bool:
    if is_union(annotation) or get_origin(annotation) in (*_LISTS, *_MAPPINGS):
        return any(map(_names_components, get_args(annotation)))
    return component_kind(annotation) is not None


def _has_shape(value: Any, annotation: Any) -> bool:
    """Whether a value is a list or a mapping, whichever a type that names components takes."""
    shape = list | tuple if get_origin(annotation) in _LISTS else Mapping
    return isinstance(value, shape)
