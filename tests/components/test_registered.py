"""Names that a program gives its own components."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedsim
from fedsim.components import lookup, registered
from fedsim.config.references import load_file
from fedsim.errors import InputError
from tests.support.runs import assert_same, cli, environment, tiny

PROGRAM = '''\
import sys
import torch
import fedsim

@fedsim.register("strategies", "half")
class Half(fedsim.Strategy):
    """Half of the mean update."""
    def init(self, params, ctx):
        return {"model": params}
    def configure(self, state, round, cohort):
        return {"model": state["model"]}
    def generic(self, state):
        return state["model"]
    def aggregate(self, state, updates):
        mean = sum(u.weight * u.tensors["model"].flat for u in updates)
        mean = mean / sum(u.weight for u in updates)
        model = state["model"]
        return {"model": model.replace((model.flat + mean) / 2)}, {}

@fedsim.register("clients", "half")
class Client(fedsim.LocalSGD):
    """Local SGD under another name."""

if __name__ == "__main__":
    print(fedsim.components.lookup.names("strategies")["half"])
    engine = {"name": sys.argv[1], **({"workers": 1} if sys.argv[1] == "ray" else {})}
    run = fedsim.run({
        "name": "half", "rounds": 2, "dataset": {"name": "digits"},
        "partition": {"name": "iid", "clients": 4}, "model": {"name": "mlp", "hidden": [8]},
        "strategy": {"name": "half"}, "client": {"lr": 0.1}, "participation": 1.0,
        "engine": engine,
    })
    print(run.status, run.config.strategy.name, run.config.client.name)
'''


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    registered._entries.clear()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["serial", "ray"])
def test_a_script_names_its_own_rule(engine: str, tmp_path: Path) -> None:
    script = tmp_path / "rules.py"
    script.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, script, engine],
        cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    described, ended = done.stdout.strip().split("\n")[0], done.stdout.strip().split("\n")[-1]
    assert described == "Half of the mean update."
    assert ended == f"finished {script}:Half {script}:Client"
    again = cli("run", tmp_path / "runs/half/seed-0/config.yaml", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr  # without the program
    first = fedsim.load_run(tmp_path / "runs/half/seed-0")
    assert_same(fedsim.load_run(tmp_path / "again/half/seed-0"), first)


def test_a_file_that_registers_may_be_loaded_again(tmp_path: Path) -> None:
    path = tmp_path / "rules.py"
    path.write_text(PROGRAM)
    load_file(path)
    assert registered.entries("strategies")["half"].reference == f"{path}:Half"
    path.write_text(PROGRAM.replace("Half of", "A half of"))
    load_file(path)
    assert lookup.names("strategies")["half"] == "A half of the mean update."
    run = fedsim.run(tiny(strategy={"name": "half"}, rounds=1), out=tmp_path)
    assert run.config.strategy.name == f"{path}:Half"
    assert run.config.client.name == f"{path}:Client"


def module_level(samples: object, clients: int, rng: object) -> None:
    """A partition."""


def test_what_is_wrong_is_told(tmp_path: Path) -> None:
    class Local(fedsim.LocalSGD):
        pass

    for kind, name, component, told in [
        ("strategy", "x", module_level, "a kind must be one of strategies, clients"),
        ("partitions", "iid", module_level, "'iid' of partitions is already the built-in"),
        ("partitions", "a:b", module_level, "a name must be text without ':', got 'a:b'"),
        ("partitions", " ", module_level, "a name must be text without ':', got ' '"),
        ("clients", "mine", Local, "must be defined at the top of a module"),
        ("strategies", "mine", fedsim.LocalSGD, "register must be a strategy"),
        ("partitions", "mine", 3, "register must be a function"),
    ]:
        with pytest.raises(InputError, match=told):
            fedsim.register(kind, name)(component)
    fedsim.register("partitions", "mine")(module_level)
    fedsim.register("partitions", "mine")(module_level)
    other = load_file(_write(tmp_path / "other.py"))
    with pytest.raises(
        InputError, match=r"'mine' of partitions is already tests\.components\.test_registered:"
    ):
        fedsim.register("partitions", "mine")(other.other)


def _write(path: Path) -> Path:
    path.write_text("def other(samples, clients, rng): ...\n")
    return path


def test_a_notebook_is_told_to_write_a_file() -> None:
    code = (
        "import fedsim\n"
        "class Rule(fedsim.LocalSGD): pass\n"
        "try: fedsim.register('clients', 'rule')(Rule)\n"
        "except fedsim.InputError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "'rule' is defined in a notebook or at a prompt" in done.stdout, done.stderr
    assert "'./rule.py:Rule'" in done.stdout
