"""The recorded description of machine and source."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path

import pytest
import torch

from fedsim.runs.environment import describe, git_revision


def test_describe_is_complete_and_json() -> None:
    found = json.loads(json.dumps(describe()))
    assert found["python"] == platform.python_version()
    assert found["packages"]["torch"] == torch.__version__
    assert found["packages"]["flwr"].startswith("1.")
    assert found["cores"] == os.cpu_count()
    assert found["torch_threads"] == torch.get_num_threads()
    assert found["cpu"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "a.py").write_text("a = 1\n")
    return tmp_path


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *who, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_revision_and_dirty_flag(checkout: Path) -> None:
    package = checkout / "package"
    assert git_revision(package) is None
    git(checkout, "init", "-q")
    assert git_revision(package) is None  # not tracked, such as an installed copy
    git(checkout, "add", ".")
    assert git_revision(package) == {"revision": None, "dirty": True}
    git(checkout, "commit", "-qm", "first")
    revision = git(checkout, "rev-parse", "HEAD").strip()
    assert git_revision(package) == {"revision": revision, "dirty": False}
    (package / "a.py").write_text("a = 2\n")
    assert git_revision(package) == {"revision": revision, "dirty": True}


def test_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert git_revision(checkout) is None
