"""What a sweep shows: a line for each run that ends, and on a terminal one line of what goes on."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

from fedsim.runs.summary import format_seconds
from fedsim.sweeps.plan import Cell, Plan
from fedsim.sweeps.pool import Outcome


class View:
    """Writes to `stream`; `finished` runs of the plan were there already."""

    def __init__(self, plan: Plan, finished: int, jobs: int, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._live = self._stream.isatty()
        self._total, self._done = len(plan.cells), finished
        self._begun = time.monotonic()
        self._left = self._total - finished
        self._shares: dict[str, float] = {}  # of the runs under way
        self._ended = 0
        line = f"{plan.name}: {self._total} runs in {plan.root}, {jobs} at a time"
        self._write(line + (f"; {finished} are finished already" if finished else ""))

    def __call__(self, kind: str, cell: Cell, value: Any) -> None:
        """Take in what the pool tells."""
        if kind == "start":
            self._shares[cell.label] = 0.0
        elif kind == "round":
            self._shares[cell.label] = value[0] / value[1]
        else:
            self._end(cell, value)
        if self._live:
            self._stream.write(f"\r\x1b[2K{self._status()}")
            self._stream.flush()

    def close(self) -> None:
        """Clear the line of what goes on."""
        if self._live:
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

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
        made = self._ended + sum(self._shares.values())
        if made <= 0 or self._ended >= self._left:
            return ""
        elapsed = time.monotonic() - self._begun
        return f"  ETA {format_seconds(elapsed / made * (self._left - made))}"

    def _status(self) -> str:
        runs = "  ".join(f"{name} {share:.0%}" for name, share in self._shares.items())
        return f"{self._done}/{self._total}  {runs}{self._eta()}"[:150]

    def _write(self, line: str) -> None:
        start = "\r\x1b[2K" if self._live else ""
        self._stream.write(f"{start}{line}\n")
        self._stream.flush()
