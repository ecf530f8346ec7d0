"""Runs that stop where a test wants them to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.rounds.progress import Progress


class StopAt(Progress):
    """Raises an error when a client of the round is done, like Ctrl-C in its middle."""

    def __init__(self, round: int, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.round, self.error = round, error

    def cohort(self, round: int, done: int, total: int) -> None:
        if round == self.round:
            raise self.error


class StopAfter(StopAt):
    """Raises between two rounds."""

    def cohort(self, round: int, done: int, total: int) -> None:
        pass

    def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
        if round == self.round:
            raise self.error


def interrupted(experiment: dict[str, Any], out: Path, round: int) -> Path:
    """Interrupt a run in the middle of a round; return its folder."""
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(experiment, out=out, progress=StopAt(round))
    return out / f"{experiment['name']}/seed-0"
