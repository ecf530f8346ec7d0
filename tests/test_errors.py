"""How messages are worded."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from fedsim.errors import InputError, RunFailed, check_choice, describe, os_errors_as


def test_the_systems_reason_replaces_an_os_error() -> None:
    with (
        pytest.raises(RunFailed, match=r"^cannot write x: No space left on device$") as failed,
        os_errors_as(RunFailed, "cannot write x"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")
    assert isinstance(failed.value.__cause__, OSError)
    with (
        pytest.raises(InputError, match=r"^cannot read x: odd$"),
        os_errors_as(InputError, "cannot read x"),
    ):
        raise OSError("odd")
    with pytest.raises(ValueError, match="kept"), os_errors_as(RunFailed, "cannot write x"):
        raise ValueError("kept")


def test_a_choice_names_the_allowed_and_the_nearest() -> None:
    check_choice("a colour", "red", ["red", "green"])
    with pytest.raises(InputError) as refused:
        check_choice("a colour", "gren", ["red", "green"])
    assert str(refused.value) == (
        "a colour must be one of red, green, got 'gren'. Did you mean 'green'?"
    )


def test_an_error_is_described_by_its_innermost_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import json\n\ndef read():\n    return json.loads('{')\n")
    space: dict[str, object] = {}
    exec(compile(file.read_text(), str(file), "exec"), space)
    with pytest.raises(ValueError, match="Expecting") as failed:
        space["read"]()  # type: ignore[operator]
    assert describe(failed.value, file).startswith(f"{file}:4: JSONDecodeError: Expecting")
    assert "json/decoder.py:" in describe(failed.value)
    assert describe(ValueError()) == "ValueError"
    assert describe(ValueError("a\nb")) == "ValueError: a"
