"""Files of `fedsim new` run unchanged, in any folder, and pass their own tests and ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fedsim.cli.commands import main
from fedsim.cli.new import write_new
from fedsim.errors import InputError
from tests.support.runs import environment


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["strategy", "client"])
def test_what_is_new_passes_its_test(kind: str, tmp_path: Path) -> None:
    written = write_new(kind, "my-method", tmp_path)
    assert [path.name for path in written] == ["my_method.py", "test_my_method.py"]
    for command in (
        ["pytest", "-q", "-p", "no:cacheprovider", "test_my_method.py"],
        ["ruff", "check", "--isolated", "--line-length", "100", "."],
        ["mypy", "--ignore-missing-imports", "my_method.py"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        if command[0] == "pytest":
            assert "3 passed" in done.stdout


def test_the_class_is_named_after_the_method(tmp_path: Path) -> None:
    write_new("strategy", "trimmed-mean2", tmp_path)
    assert "class TrimmedMean2(Strategy):" in (tmp_path / "trimmed_mean2.py").read_text()


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("strategy", "fedavg", "'fedavg' is a strategy that fedsim has already"),
        ("client", "local-sgd", "'local-sgd' is a client that fedsim has already"),
        ("client", "torch", "torch.py would hide the module 'torch'"),
        ("strategy", "json", "json.py would hide the module 'json'"),
    ],
)
def test_names_that_are_taken(kind: str, name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        write_new(kind, name, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "name", "cls"),
    [
        ("strategy", "state", "State"),
        ("strategy", "server-context", "ServerContext"),
        ("strategy", "params", "Params"),
        ("strategy", "update", "Update"),
        ("strategy", "strategy", "Strategy"),
        ("strategy", "sequence", "Sequence"),
        ("strategy", "config", "Config"),
        ("strategy", "none", "None"),
        ("client", "fit", "Fit"),
        ("client", "tensor", "Tensor"),
        ("client", "true", "True"),
    ],
)
def test_names_that_the_code_uses(kind: str, name: str, cls: str, tmp_path: Path) -> None:
    said = f"the class of '{name}' would be named {cls}, a name that the {kind}'s code uses itself"
    with pytest.raises(InputError, match=said):
        write_new(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())
    other = "client" if kind == "strategy" else "strategy"
    if name in ("state", "fit"):
        assert len(write_new(other, name, tmp_path)) == 2


@pytest.mark.parametrize("name", ["2nd", "a b", "Über", "class", "../up", "", "-x", "a.b"])
def test_names_that_are_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="NAME must be lower-case letters"):
        write_new("strategy", name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_mine.py").write_text("mine")
    assert main(["new", "strategy", "mine"]) == 2
    assert "test_mine.py exists already" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["test_mine.py"]
    assert main(["new", "stratgy", "other"]) == 2
    assert "Did you mean 'strategy'" in capsys.readouterr().err
    assert main(["new", "client", "other"]) == 0
    assert capsys.readouterr().out == "other.py\ntest_other.py\n"
