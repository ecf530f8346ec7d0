"""Rooms, layers and imports of the code; lazy and type-checking imports count as imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fedsim", "strategies", "clients")

LAYERS = [
    "errors rng",
    "params maths config",
    "data flower",
    "evaluate",
    "models client",
    "strategy training",
    "components strategies clients local_sgd",
    "runs",
    "engine report",
    "rounds",
    "api trackers",
    "sweeps bench testing",
    "__init__",
    "cli",
]
"""Rooms of the house, lowest first: a file imports from lower layers and its own room alone.

A room is a package or module of ``fedsim/``, or one of the two packages beside it.
"""

LOOSE = {
    "__init__",
    "api",
    "client",
    "errors",
    "local_sgd",
    "rng",
    "strategy",
    "testing",
    "trackers",
}
"""Modules beside the packages of fedsim: what users and authors of methods import."""

FLOWER_EDGE = (
    "flower/",
    "strategy.py",
    "engine/grid.py",
    "engine/client_app.py",
    "rounds/flower_server.py",
    "data/partitions/flower.py",
)
"""Where, below ``fedsim/``, Flower may be imported."""


@cache
def modules() -> dict[str, Path]:
    """Return module name -> file of all our code."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


@cache
def imports(name: str) -> frozenset[str]:
    """Return the modules that a module of ours imports, anywhere in its text."""
    return imported(modules()[name])


def imported(path: Path) -> frozenset[str]:
    """Return the modules that a file imports, anywhere in its text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in modules() else str(node.module))
    return frozenset(names)


def arrows() -> Iterator[tuple[str, str]]:
    """Yield (importing, imported) for each import between modules of ours."""
    for name in modules():
        for other in sorted(imports(name)):
            if other in modules() and other != name:
                yield name, other


def room(module: str) -> str:
    """Return the room of a module: ``runs`` of ``fedsim.runs.folder``."""
    parts = module.split(".")
    return parts[0] if parts[0] != "fedsim" else (parts[1] if len(parts) > 1 else "__init__")


def test_every_room_has_a_layer() -> None:
    listed = " ".join(LAYERS).split()
    assert len(listed) == len(set(listed))
    assert {room(m) for m in modules()} == set(listed)


def test_imports_run_down_the_layers() -> None:
    layer = {name: number for number, names in enumerate(LAYERS) for name in names.split()}
    up = [
        f"{importer} -> {imported}"
        for importer, imported in arrows()
        if room(importer) != room(imported) and layer[room(importer)] <= layer[room(imported)]
    ]
    assert up == []


def test_no_two_files_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for importer, imported in arrows():
        graph[importer].add(imported)
    while free := [name for name, below in graph.items() if not below]:
        for name in free:
            del graph[name]
        for below in graph.values():
            below.difference_update(free)
    assert {name: sorted(below) for name, below in graph.items()} == {}


def test_loose_modules_are_what_users_import() -> None:
    assert {path.stem for path in (ROOT / "fedsim").glob("*.py")} == LOOSE


def test_flower_is_imported_at_the_edge_alone() -> None:
    inside = [
        name
        for name, path in modules().items()
        if any(other.split(".")[0] == "flwr" for other in imports(name))
        and path.is_relative_to(ROOT / "fedsim")
        and not path.relative_to(ROOT / "fedsim").as_posix().startswith(FLOWER_EDGE)
    ]
    assert inside == []


def test_methods_import_fedsim_and_not_each_other() -> None:
    across = [
        f"{importer} -> {imported}"
        for importer, imported in arrows()
        if {room(importer), room(imported)} == {"strategies", "clients"}
    ]
    assert across == []


@pytest.mark.parametrize("package", ["strategies", "clients"])
def test_what_serves_methods_alone_lives_with_them(package: str) -> None:
    shared = {"training", "models", *LOOSE}  # models are looked up by name
    users: dict[str, set[str]] = {}
    for importer, imported in arrows():
        users.setdefault(imported, set()).add(room(importer))
    misplaced = [
        module
        for module, rooms in users.items()
        if module.startswith("fedsim.") and rooms == {package} and room(module) not in shared
    ]
    assert misplaced == []


def test_no_test_imports_another_test() -> None:
    """Helpers live in ``tests/support`` and fixtures in a ``conftest``."""
    across = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for module in imported(path)
        if module.split(".")[0] == "tests" and not module.startswith("tests.support.")
    ]
    assert across == []
