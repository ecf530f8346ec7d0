"""Components by name: built in, from an entry point, ``pkg.mod:Name`` or ``./file.py:Name``.

A built-in component is a module of its kind's package: ``fashion-mnist`` is the function
``fashion_mnist`` of ``fedsim/data/datasets/fashion_mnist.py``; ``fedavg`` is the one strategy
class of ``strategies/fedavg.py``. Another distribution adds components by entry points of the
group ``fedsim.<kind>``, a program by `register`. Names are never shadowed: a clash is an error.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, TypeVar

from fedsim.components.registered import Registered, add, component_of_program, entries
from fedsim.config.references import load_reference
from fedsim.errors import InputError, describe, nearest
from fedsim.flower.contracts import is_client_app, strategy_class

SECTIONS = {
    "strategies": "strategy",
    "clients": "client",
    "datasets": "dataset",
    "partitions": "partition",
    "models": "model",
}
KINDS = tuple(SECTIONS)

_PACKAGES = {
    "strategies": "strategies",
    "clients": "clients",
    "datasets": "fedsim.data.datasets",
    "partitions": "fedsim.data.partitions",
    "models": "fedsim.models",
}
# Arguments that the platform passes by position to a component that is a function.
_ARGUMENTS = {
    "datasets": (),
    "partitions": ("samples", "clients", "rng"),
    "models": ("input_shape", "num_classes"),
}
DEFAULT_CLIENT = "local-sgd"
_TRAINING = Path(__file__).parents[1] / "training"
_TRAINING_CLIENTS = ("local_sgd", "personal_sgd")
_Component = TypeVar("_Component")


def names(kind: str) -> dict[str, str]:
    """Return name -> one-line description of every component of a kind, sorted by name.

    Descriptions are read from the source: no component is imported.

    Raises:
        InputError: unknown kind, or two components of one name.
    """
    described = {}
    for name, source in sorted(table_of(kind).items()):
        if isinstance(source, EntryPoint):
            owner = source.dist.name if source.dist else "an installed package"
            described[name] = f"{source.value} (from {owner})"
        elif isinstance(source, Registered):
            described[name] = source.describe()
        else:
            described[name] = _describe(kind, source)
    return described


def register(kind: str, name: str) -> Callable[[_Component], _Component]:
    """Give a class or function a name that experiments of this program can use.

        @fedsim.register("strategies", "median")
        class Median(fedsim.Strategy): ...

    The component must be at the top of a module or script, as workers load it from there; a script
    keeps what it runs below ``if __name__ == "__main__":``.

    Raises:
        InputError: unknown kind, a name that is taken or no name, or an object of another kind.
    """

    def add_checked(component: _Component) -> _Component:
        source = table_of(kind).get(name)
        if isinstance(source, Path | EntryPoint):
            raise InputError(f"register: {name!r} of {kind} is already {_origin(kind, source)}")
        if ":" in name or not name.strip():
            raise InputError(f"register: a name must be text without ':', got {name!r}")
        _check_kind(kind, name, component, "register")
        add(kind, name, component)
        return component

    return add_checked


def resolve(kind: str, name: str, base: Path | None = None, key: str | None = None) -> Any:
    """Return the component: a class (strategies, clients), a function, or a Flower `ClientApp`.

    `base` is the folder that ``./file.py`` is relative to, before the working directory; `key`
    is what messages call the name, ``strategy.name`` for example. The name of a strategy with an
    attribute `client` also names that client method.

    Raises:
        InputError: unknown name, broken module, or an object of another kind.
    """
    if kind not in SECTIONS:
        raise InputError(_unknown_kind(kind))
    key = key or f"{SECTIONS[kind]}.name"
    if ":" in name:
        obj = component_of_program(name) or load_reference(name, base, key)
    else:
        table = table_of(kind)
        if name not in table and kind == "clients" and (other := client_of(name)) is not None:
            return resolve(kind, other, base, key)
        if name not in table:
            raise InputError(
                f"{key} must be one of {', '.join(sorted(table)) or '(none)'}, "
                f"'package.module:Name' or './file.py:Name', got {name!r}."
                f"{nearest(name, table)}"
            )
        source = table[name]
        if isinstance(source, EntryPoint):
            try:
                obj = source.load()
            except Exception as error:
                fault = f"{key} is {name!r} ({source.value}): {describe(error)}"
                raise InputError(fault) from error
        elif isinstance(source, Registered):
            obj = source.component
        else:
            obj = _load_built_in(kind, source, name, key)
    _check_kind(kind, name, obj, key)
    return obj


def client_of(strategy: str) -> str | None:
    """Return the client method that a strategy of this name declares; None if it declares none."""
    if strategy not in table_of("strategies"):
        return None
    client: str | None = getattr(resolve("strategies", strategy), "client", None)
    return client


def table_of(kind: str) -> dict[str, Path | EntryPoint | Registered]:
    """Return name -> source file (built in), entry point or entry of the running program.

    Raises:
        InputError: two components of one name.
    """
    if kind not in SECTIONS:
        raise InputError(_unknown_kind(kind))
    package = Path(__file__).parents[2].joinpath(*_PACKAGES[kind].split("."))
    table: dict[str, Path | EntryPoint | Registered] = {
        path.stem.replace("_", "-"): path
        for path in package.glob("*.py")
        if not path.stem.startswith("_")
    }
    if kind == "clients":
        for stem in _TRAINING_CLIENTS:
            table[stem.replace("_", "-")] = _TRAINING / f"{stem}.py"
    points = _installed(entry_points, tuple(sys.path))[kind]
    for point in sorted(points, key=lambda p: (p.name, p.value)):
        other = table.setdefault(point.name, point)
        if other is point or (isinstance(other, EntryPoint) and other.value == point.value):
            continue
        raise InputError(
            f"two {kind} are named {point.name!r}: {_origin(kind, other)} and "
            f"{_origin(kind, point)}; uninstall one or rename its entry point"
        )
    return table | entries(kind)


@lru_cache(maxsize=1)
def _installed(find: Callable[..., Any], path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Return the entry points of each kind; cached, as the search reads every package's files."""
    return {kind: list(find(group=f"fedsim.{kind}")) for kind in SECTIONS}


def _origin(kind: str, source: Path | EntryPoint | Registered) -> str:
    if isinstance(source, Path):
        return f"the built-in {_module_name(kind, source)}"
    if isinstance(source, Registered):
        return source.reference
    return f"{source.value} of {source.dist.name if source.dist else 'an installed package'}"


def _module_name(kind: str, source: Path) -> str:
    package = "fedsim.training" if source.parent == _TRAINING else _PACKAGES[kind]
    return f"{package}.{source.stem}"


def _load_built_in(kind: str, source: Path, name: str, key: str) -> Any:
    module_name = _module_name(kind, source)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise InputError(f"{key} is {name!r}: {describe(error)}") from error
    if kind in _ARGUMENTS:
        candidates = [v for k, v in vars(module).items() if k == source.stem]
        expected = f"a function {source.stem}"
    else:
        parent = _base_class(kind)
        candidates = [
            v
            for k, v in vars(module).items()
            if isinstance(v, type)
            and issubclass(v, parent)
            and v.__module__ == module_name
            and not k.startswith("_")
        ]
        expected = f"one subclass of {parent.__name__}"
    if len(candidates) != 1:
        raise InputError(f"{key} is {name!r}, but {source} must define {expected}")
    return candidates[0]


def _base_class(kind: str) -> type:
    if kind == "strategies":
        return strategy_class()
    from fedsim.client import Client  # imports torch, which listing names does without

    return Client


def _check_kind(kind: str, name: str, obj: Any, key: str) -> None:
    if kind in _ARGUMENTS:
        if not _takes(obj, len(_ARGUMENTS[kind])):
            arguments = ", ".join([*_ARGUMENTS[kind], "*, options..."])
            raise InputError(
                f"{key} must be a function of ({arguments}), got {name!r}, {_object_name(obj)}"
            )
        return
    if kind == "clients" and is_client_app(obj):
        return
    parent = _base_class(kind)
    expected = {
        "strategies": "a strategy, a subclass of fedsim.Strategy or of Flower's Strategy",
        "clients": "a client method, a subclass of fedsim.Client or a Flower ClientApp",
    }[kind]
    if not (isinstance(obj, type) and issubclass(obj, parent)):
        raise InputError(f"{key} must be {expected}, got {name!r}, {_object_name(obj)}")
    if inspect.isabstract(obj):
        raise InputError(f"{key} must be {expected} with no abstract method, got {name!r}")


def _takes(obj: Any, count: int) -> bool:
    """Whether `obj` is a function of `count` positional arguments, besides options by keyword."""
    if isinstance(obj, type) and issubclass(
        obj, (_base_class("strategies"), _base_class("clients"))
    ):
        return False
    try:
        signature = inspect.signature(obj)
        parameters = signature.parameters.values()
        required = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        signature.bind(*[None] * count, **dict.fromkeys(required))
    except (TypeError, ValueError):
        return False
    return True


def _object_name(obj: Any) -> str:
    if isinstance(obj, type):
        for kind in ("strategies", "clients"):
            if issubclass(obj, _base_class(kind)):
                return f"a {SECTIONS[kind]}"
        return "a class"
    if inspect.isfunction(obj):
        return f"a function of {inspect.signature(obj)}"
    return f"an object of type {type(obj).__name__}"


def _unknown_kind(kind: str) -> str:
    return f"a kind must be one of {', '.join(KINDS)}, got {kind!r}.{nearest(kind, KINDS)}"


def _describe(kind: str, source: Path) -> str:
    """Return the first docstring line of the component in a source file, or of the module."""
    try:
        tree = ast.parse(source.read_bytes(), str(source))
    except (OSError, SyntaxError) as error:
        return f"cannot be read: {describe(error)}"
    components: list[ast.FunctionDef | ast.ClassDef | ast.Module] = [tree]
    # A class has the name of its file in capitals: FedAvg of fedavg.py, LocalSGD of local_sgd.py.
    name = source.stem if kind in _ARGUMENTS else source.stem.replace("_", "")
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            own = node.name if kind in _ARGUMENTS else node.name.lower()
            if own == name:
                components.insert(0, node)
    docstrings = filter(None, map(ast.get_docstring, components))
    return next(docstrings, "").partition("\n")[0]
