"""Components by name."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from fedsim.components import lookup
from fedsim.components.configure import configure, default_client
from fedsim.components.lookup import KINDS, names, resolve
from fedsim.components.options import options
from fedsim.config.references import load_file
from fedsim.errors import InputError
from fedsim.training.personal_sgd import PersonalSGD

FLOWER = "flwr.serverapp.strategy"


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> list[EntryPoint]:
    """Entry points that the registry sees instead of the installed ones."""
    points: list[EntryPoint] = []

    def fake(find: Any, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
        found = EntryPoints(points)
        return {kind: list(found.select(group=f"fedsim.{kind}")) for kind in lookup.SECTIONS}

    monkeypatch.setattr(lookup, "_installed", fake)
    return points


def refused(*args: Any, **kwargs: Any) -> str:
    with pytest.raises(InputError) as caught:
        configure(*args, **kwargs)
    return str(caught.value)


def test_names_are_listed_with_a_line_each_and_without_importing_them() -> None:
    code = (
        "import sys; from fedsim.components.lookup import *\n"
        "print([(k, n, d) for k in KINDS for n, d in names(k).items()])\n"
        "print('torch' in sys.modules, any(m.startswith('strategies') for m in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    table, flags = done.stdout.splitlines()
    assert flags == "False False"
    assert "('strategies', 'fedavg', \"Weighted mean of the clients' models.\")" in table
    assert "('datasets', 'fashion-mnist', 'Fashion-MNIST, 28x28" in table
    assert "('clients', 'local-sgd'" in table


@pytest.mark.parametrize("kind", KINDS)
def test_every_built_in_component_loads_and_describes_itself(kind: str) -> None:
    for name, description in names(kind).items():
        assert "_" not in name
        assert description
        assert len(description) <= 100
        component = resolve(kind, name)
        options(component)
        assert description == (inspect.getdoc(component) or "").partition("\n")[0]


def test_built_in_component_is_the_object_of_its_module() -> None:
    from fedsim.data.datasets.fashion_mnist import fashion_mnist
    from strategies.fedavg import FedAvg

    assert resolve("strategies", "fedavg") is FedAvg
    assert resolve("datasets", "fashion-mnist") is fashion_mnist


def test_default_client_is_the_one_of_the_strategys_name_else_local_sgd(
    entry: list[EntryPoint],
) -> None:
    assert default_client("fedavg") == "local-sgd"
    assert default_client(f"{FLOWER}:FedYogi") == "local-sgd"
    entry.append(EntryPoint("fedavg", "os:getcwd", "fedsim.clients"))
    assert default_client("fedavg") == "fedavg"


def test_a_strategy_may_declare_its_client_method(tmp_path: Path) -> None:
    assert default_client("fedper") == "fedper"
    for name in ("fedper", "fedbn", "silobn", "lg-fedavg", "pfedhn", "local"):
        assert resolve("clients", name) is PersonalSGD
    assert resolve("clients", "personal-sgd") is PersonalSGD
    (tmp_path / "rule.py").write_text(
        "from strategies.fedavg import FedAvg\n\nclass Rule(FedAvg):\n    client = 'personal-sgd'\n"
    )
    assert default_client("./rule.py:Rule", tmp_path) == "personal-sgd"
    assert default_client("./none.py:Rule", tmp_path) == "local-sgd"
    with pytest.raises(InputError, match=r"client\.name must be one of"):
        resolve("clients", "fedavg")


def test_component_of_a_file_relative_to_the_experiment_else_to_the_working_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = resolve("strategies", "./mine.py:Mine", folder)
    assert (mine.__name__, mine.__doc__) == ("Mine", "A rule of my own.")
    monkeypatch.chdir(folder)
    assert resolve("strategies", "mine.py:Mine") is mine
    assert resolve("strategies", f"{folder}/mine.py:Mine", Path("/")) is mine


def test_module_of_a_file_is_found_by_pickle_and_follows_edits(folder: Path) -> None:
    config = configure("strategies", "./mine.py:Mine", {"beta": 0.5}, folder)
    assert pickle.loads(pickle.dumps(config)) == config
    module = load_file(folder / "mine.py")
    assert load_file(folder / "mine.py") is module
    text = (folder / "mine.py").read_text()
    (folder / "mine.py").write_text(text.replace("0.9", "0.8"))
    assert configure("strategies", "./mine.py:Mine", {}, folder).beta == 0.8


@pytest.mark.parametrize(
    ("kind", "name", "parts"),
    [
        ("strategies", "fedavgg", ["strategy.name", "'fedavgg'", "Did you mean 'fedavg'?"]),
        ("datasets", "fashion_mnist", ["one of ", "digits, ", "Did you mean 'fashion-mnist'?"]),
        ("models", "no.such:Net", ["model.name", "no module 'no'"]),
        ("models", "fedsim.no:Net", ["no module 'fedsim.no'"]),
        ("models", "fedsim.client:Clien", ["fedsim.client has no 'Clien'", "'Client'"]),
        ("models", "fedsim.client:", ["'package.module:Name' or './file.py:Name'"]),
        ("models", "./no.py:Net", ["no file", "no.py"]),
        ("strategies", f"{FLOWER}:Strategy", ["no abstract method"]),
        ("strategie", "fedavg", ["strategies, clients", "Did you mean 'strategies'?"]),
    ],
)
def test_unknown_names_are_refused(kind: str, name: str, parts: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        resolve(kind, name)
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "line", "what"),
    [
        ("import os\n\ndef f():\n    return 1 / 0\nf()\n", 4, "ZeroDivisionError: division by"),
        ("x = 1\ndef f(:\n", 2, "SyntaxError: "),
        ("import json\njson.loads('{')\n", 2, "JSONDecodeError: "),
        ("import sys\nsys.exit(3)\n", 2, "SystemExit: 3"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, code: str, line: int, what: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    message = refused("models", "broken.py:Net", {}, tmp_path)
    assert f"{path}:{line}: {what}" in message
    assert "\n" not in message
    assert not any(name.startswith("fedsim_file_broken") for name in sys.modules)


def test_a_broken_module_on_the_path_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fedsim_test_broken.py").write_text("import fedsim_test_absent\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused("models", "fedsim_test_broken:Net", {})
    assert "fedsim_test_broken.py:1: ModuleNotFoundError" in message


def test_entry_points_add_components(entry: list[EntryPoint], folder: Path) -> None:
    entry.append(EntryPoint("yogi", f"{FLOWER}:FedYogi", "fedsim.strategies"))
    assert names("strategies")["yogi"].startswith(f"{FLOWER}:FedYogi")
    assert resolve("strategies", "yogi").__name__ == "FedYogi"
    entry.append(EntryPoint("gone", "no.such:Thing", "fedsim.strategies"))
    assert "no.such:Thing" in refused("strategies", "gone", {})


@pytest.mark.parametrize(
    ("first", "second", "parts"),
    [
        (None, ("fedavg", "x:A"), ["the built-in strategies.fedavg", "x:A"]),
        (("mine", "x:A"), ("mine", "y:B"), ["x:A", "y:B", "'mine'"]),
    ],
)
def test_a_clash_of_names_is_an_error_that_names_both(
    entry: list[EntryPoint],
    first: tuple[str, str] | None,
    second: tuple[str, str],
    parts: list[str],
) -> None:
    entry += [EntryPoint(*pair, "fedsim.strategies") for pair in (first, second) if pair]
    for call in (lambda: names("strategies"), lambda: resolve("strategies", second[0])):
        with pytest.raises(InputError) as caught:
            call()
        for part in parts:
            assert part in str(caught.value)


def test_one_entry_point_seen_twice_is_no_clash(entry: list[EntryPoint]) -> None:
    entry += [EntryPoint("yogi", f"{FLOWER}:FedYogi", "fedsim.strategies")] * 2
    assert resolve("strategies", "yogi").__name__ == "FedYogi"
