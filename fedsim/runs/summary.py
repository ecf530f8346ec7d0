"""The final table of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Table = list[tuple[str, str]]


def summary_table(
    value: float | None,
    client_values: Mapping[str, Sequence[float]],
    rounds: int,
    seconds: float,
    headline: str = "accuracy",
) -> Table:
    """Return the final table.

    `value` is the generic model's `headline` metric, a share, on the global test set;
    `client_values` map ``generic`` and ``personal`` to one a client, on its own test data. The
    spread is the standard deviation over clients; "worst 10 %" is the mean of the lowest tenth of
    them (rounded up).
    """
    table = [(f"generic {headline}", _percent(value))]
    for model, values in client_values.items():
        ordered = sorted(v for v in values if not math.isnan(v))
        if not ordered:
            continue
        mean = math.fsum(ordered) / len(ordered)
        variance = math.fsum((v - mean) ** 2 for v in ordered) / len(ordered)
        tenth = ordered[: math.ceil(len(ordered) / 10)]
        prefix = "" if model == "generic" else f"{model} "
        table += [
            (f"{prefix}client mean", _percent(mean)),
            (f"{prefix}client spread", _percent(math.sqrt(variance))),
            (f"{prefix}worst client", _percent(ordered[0])),
            (f"{prefix}worst 10 %", _percent(math.fsum(tenth) / len(tenth))),
        ]
    return [*table, ("rounds", str(rounds)), ("time", format_seconds(seconds))]


def format_table(table: Table) -> str:
    """Return the rows as aligned lines: labels to the left, values to the right."""
    labels = max((len(label) for label, _ in table), default=0)
    values = max((len(value) for _, value in table), default=0)
    return "\n".join(f"{label:<{labels}}  {value:>{values}}" for label, value in table)


def format_seconds(seconds: float) -> str:
    """Return a duration in two figures' worth of units: ``45 ms``, ``1.2 s``, ``3 m 05 s``."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} m {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} m"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.2%}".replace("%", " %")
