"""A comparison as text for a terminal."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from fedsim.evaluate.metric_names import Unit

if TYPE_CHECKING:
    import pandas as pd

    from fedsim.report.tables import Tables


def number(value: float, unit: Unit, signed: bool = False) -> str:
    """Return a value as it is shown: a share in percent with two places, all else in 4 digits."""
    if value is None or math.isnan(value):
        return "-"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.2f}" if unit.is_share else f"{value:{sign}.4g}"


def header(name: str, unit: Unit) -> str:
    """Return a metric's name with its unit."""
    return f"{name} [%]" if unit.is_share else name


def size(value: float) -> str:
    """Return a number of bytes in a unit that suits it."""
    if math.isnan(value):
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def rows_of(frame: pd.DataFrame, unit: Unit) -> tuple[list[str], list[list[str]]]:
    """Return heads and cells of a metric's table as text, for the runs that recorded it."""
    heads = ["run", "seeds", "mean", "95 % interval", "difference", "95 % interval", "p (Holm)"]
    fair, costs = "worst_10" in frame, "reached" in frame
    heads += ["worst 10 %", "spread"] * fair
    heads += ["reached", "rounds", "bytes", "seconds", "virtual seconds"] * costs
    rows = []
    for r in frame[frame["seeds"] > 0].to_dict("records"):
        cells = [
            str(r["run"]),
            str(r["seeds"]),
            number(r["mean"], unit),
            _span(r["low"], r["high"], unit),
            number(r["difference"], unit, signed=True),
            _span(r["difference_low"], r["difference_high"], unit, signed=True),
            _p(r["p_holm"]),
        ]
        if fair:
            cells += [number(r["worst_10"], unit), number(r["spread"], unit)]
        if costs:
            cells += [
                f"{r['reached']}/{r['seeds']}",
                _tenths(r["rounds_to_target"]),
                size(r["bytes_to_target"]),
                _seconds(r["seconds_to_target"]),
                _seconds(r["virtual_seconds_to_target"]),
            ]
        rows.append(cells)
    return heads, rows


def comparison_text(comparison: Tables) -> str:
    """Return all tables, what was left out and which seeds are missing."""
    lines: list[str] = []
    for name, frame in comparison.tables.items():
        unit = comparison.unit(name)
        heads, rows = rows_of(frame, unit)
        target = ""
        if "reached" in frame:
            target = f"; target {number(comparison.target or 0.0, unit)}"
        about = f"{comparison.choice}; differences to {comparison.reference}{target}"
        lines += [f"{header(name, unit)} ({about})"]
        lines += [*aligned([heads, *rows]), ""]
    lines += notes(comparison)
    return "\n".join(lines).rstrip()


def notes(comparison: Tables) -> list[str]:
    """Return a sentence for each thing a reader must know."""
    sentences = [
        f"{label} has no run of seed {', '.join(map(str, seeds))}; differences use the common seeds"
        for label, seeds in comparison.missing.items()
    ]
    if len(lengths := {g.runs[0].config.rounds for g in comparison.groups}) > 1:
        rounds = ", ".join(map(str, sorted(lengths)))
        sentences.append(f"runs of different lengths: {rounds} rounds")
    if max(len(g.runs) for g in comparison.groups) < 2:
        sentences.append("one seed: no interval and no test; run more seeds")
    return sentences + comparison.remarks + comparison.left_out


def aligned(table: list[list[Any]]) -> list[str]:
    """Return lines with the columns aligned: the first to the left, numbers to the right."""
    widths = [max(len(str(row[i])) for row in table) for i in range(len(table[0]))]
    lines = []
    for row in table:
        first, *rest = (str(cell) for cell in row)
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return lines


def _span(low: float, high: float, unit: Unit, signed: bool = False) -> str:
    if math.isnan(low):
        return "-"
    return f"{number(low, unit, signed)} .. {number(high, unit, signed)}"


def _tenths(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"


def _seconds(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _p(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
