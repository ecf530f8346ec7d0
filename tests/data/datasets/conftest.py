"""Surroundings of a data set's test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the user's own files: an empty cache, another home, and no folder of data sets."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
