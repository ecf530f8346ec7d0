"""Display of a sweep: a line for each finished run, and on a terminal a live status line."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from fedsim.runs.summary import format_seconds
from fedsim.sweeps.plan import Cell, Plan
from fedsim.sweeps.pool import Display, Outcome


class View(Display):
    """Writes to `stream`, standard output by default."""

    def __init__(self, plan: Plan, finished: int, jobs: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._total, self._done = len(plan.cells), finished
        self._begun = time.monotonic()
        self._left = self._total - finished
        self._shares: dict[str, float] = {}  # of the current runs
        self._ended = 0
        line = f"{plan.name}: {self._total} runs in {plan.root}, {jobs} at a time"
        self._write(line + (f"; {finished} are finished already" if finished else ""))

    def __call__(self, kind: str, cell: Cell, value: Any) -> None:
        if kind == "start":
            self._shares[cell.label] = 0.0
        elif kind == "round":
            self._shares[cell.label] = value[0] / value[1]
        else:
            self._end(cell, value)
        self._refresh(self._status())

    def close(self) -> None:
        self._refresh("")

    def _end(self, cell: Cell, outcome: Outcome) -> None:
        self._shares.pop(cell.label, None)
        self._ended += 1
        self._done += 1
        if outcome.error is None:
            text = f"finished in {format_seconds(outcome.seconds)}"
        else:
            text = f"FAILED: {outcome.error.splitlines()[0]}"
        self._write(f"[{self._done}/{self._total}] {cell.label}: {text}{self._eta()}")

    def _eta(self) -> str:
        done = self._ended + sum(self._shares.values())
        if done <= 0 or self._ended >= self._left:
            return ""
        elapsed = time.monotonic() - self._begun
        return f"  ETA {format_seconds(elapsed / done * (self._left - done))}"

    def _status(self) -> str:
        runs = "  ".join(f"{name} {share:.0%}" for name, share in self._shares.items())
        return f"{self._done}/{self._total}  {runs}{self._eta()}"[:150]

    def _refresh(self, status: str) -> None:
        """Replace the status line, if there is one."""
        if self._live:
            print(f"\r\x1b[2K{status}", end="", file=self._stream, flush=True)

    def _write(self, line: str) -> None:
        self._refresh("")
        print(line, file=self._stream, flush=True)
