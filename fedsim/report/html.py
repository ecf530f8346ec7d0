"""A comparison as one page: no other file, no network, no script.

The pictures are part of the page, and the browser's own dark or light scheme is followed.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fedsim.errors import InputError, os_errors_as
from fedsim.report.groups import Group, differences
from fedsim.report.plots import comparison_figures
from fedsim.report.text import header, notes, rows_of
from fedsim.runs.atomic import write_atomic

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.report.tables import Tables

EVENTS = 50
"""Events that are listed; the others are counted."""

BROAD = 8.0
"""Inches of a picture that a phone scrolls rather than shrinks."""

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --faint: #687078; --line: #d9dee3; --page: #fff;
  --card: #f6f8fa; --mark: #0a5ea8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --faint: #9aa4ad; --line: #363d44;
  --page: #15181b; --card: #1f2428; --mark: #7cc0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 75rem; background: var(--page);
  color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, li { color: var(--faint); } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { color: var(--faint); font-weight: 600; } th:first-child, td:first-child { text-align: left; }
tr.reference td:first-child::after { content: " (reference)"; color: var(--faint); }
.text td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
figure { margin: .5rem 0; background: #fff; border-radius: 8px; padding: .5rem; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: auto; }
figure img.broad { min-width: 42rem; }
details { margin: .5rem 0; } summary { cursor: pointer; color: var(--mark); }
"""


def write_page(comparison: Tables, path: Path) -> None:
    """Write the page.

    Raises:
        InputError: the name does not end in .html, or the file cannot be written.
    """
    check_page(path)
    with os_errors_as(InputError, f"cannot write {path}"):
        write_atomic(path, page(comparison).encode())


def check_page(path: Path) -> None:
    """Raise `InputError` if a page cannot be written to `path` at all."""
    if path.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a report's name must end in .html, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def page(comparison: Tables) -> str:
    """Return the page as text."""
    groups = comparison.groups
    first = groups[0].runs[0].config
    virtual = (
        " Virtual seconds are those of rounds whose clients train all at once: the slowest "
        "client's, and the server's own."
    )
    title = f"{len(groups)} strategies on {first.dataset.name}"
    clients = f"{first.partition.clients:,} clients ({first.partition.name})"
    seeds = sorted({seed for g in groups for seed in g.seeds})
    parts = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{_text(clients)}, {first.rounds} rounds, seeds {_text(', '.join(map(str, seeds)))}. "
        f"Values are those of the {_text(_choice(comparison.choice))}; intervals are 95 % "
        "(Student's t over seeds); differences are paired by seed, to "
        f"{_text(comparison.reference)}, p values of the paired t test corrected by Holm."
        f"{virtual}</p>",
    ]
    if told := notes(comparison):
        parts.append("<ul>" + "".join(f"<li>{_text(t)}</li>" for t in told) + "</ul>")
    for name, frame in comparison.tables.items():
        unit = comparison.unit(name)
        heads, rows = rows_of(frame, unit)
        parts.append(f"<h2>{_text(header(name, unit))}</h2>")
        parts.append(_table(heads, rows, reference=comparison.reference))
    for heading, figure in comparison_figures(comparison).items():
        parts.append(f"<h2>{_text(heading)}</h2>{_picture(figure, heading)}")
    parts.append(_partition(groups[0]))
    parts.append(_settings(groups))
    parts.append(_events(groups))
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def _choice(choice: str) -> str:
    count = choice.removeprefix("mean-of-last-")
    named = {"last": "last round", "best-on-validation": "best round on validation samples"}
    return named.get(choice, f"mean of the last {count} evaluations")


def _table(
    heads: list[str], rows: list[list[str]], reference: str | None = None, kind: str = ""
) -> str:
    top = "".join(f"<th>{_text(head)}</th>" for head in heads)
    lines = []
    for row in rows:
        mark = ' class="reference"' if reference is not None and row[0] == reference else ""
        lines.append(f"<tr{mark}>" + "".join(f"<td>{_text(c)}</td>" for c in row) + "</tr>")
    return (
        f'<div class="wide"><table class="{kind}"><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _picture(figure: Figure, heading: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    broad = ' class="broad"' if figure.get_figwidth() > BROAD else ""
    source = f"data:image/png;base64,{data}"
    return f'<figure><img{broad} alt="{_text(heading)}" src="{source}"></figure>'


def _partition(group: Group) -> str:
    """Return the picture of the first run's partition, if its data can be read here."""
    from fedsim.components.build import build_dataset
    from fedsim.data.partition import Manifest
    from fedsim.report.partition import partition_figure

    run = group.runs[0]
    heading = f"Partition of seed {run.config.seed}"
    try:
        dataset = build_dataset(run.config)
    except (InputError, OSError) as error:
        return f"<h2>{heading}</h2><p>no picture: {_text(str(error))}</p>"
    manifest = Manifest.load(run.path / "partition.npz")
    return f"<h2>{heading}</h2>{_picture(partition_figure(manifest, dataset, ''), heading)}"


def _settings(groups: list[Group]) -> str:
    differing = differences(groups)
    if not differing:
        return ""
    rows = [[key, *("" if v is None else str(v) for v in vs)] for key, vs in differing.items()]
    table = _table(["setting", *(g.label for g in groups)], rows, kind="text")
    fold = f"<details open><summary>{len(rows)} settings</summary>{table}</details>"
    return f"<h2>What the settings differ in</h2>{fold}"


def _events(groups: list[Group]) -> str:
    rows: list[list[str]] = []
    for group in groups:
        for run in group.runs:
            for event in run.events.to_dict("records"):
                client = "" if pd.isna(event["client"]) else str(event["client"])
                place = [f"{group.label}, seed {run.config.seed}", str(event["round"]), client]
                rows.append([*place, str(event["kind"]), str(event["text"]).split("\n")[0]])
    if not rows:
        return "<h2>Events</h2><p>none: no client failed and no update was screened</p>"
    more = f"<p>and {len(rows) - EVENTS} more</p>" if len(rows) > EVENTS else ""
    table = _table(["run", "round", "client", "kind", "text"], rows[:EVENTS], kind="text")
    return f"<h2>Events</h2>{table}{more}"


def _text(value: Any) -> str:
    return html.escape(str(value))
