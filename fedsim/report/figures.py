"""Writing pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from fedsim.errors import InputError, os_errors_as
from fedsim.runs.atomic import replace_with

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


FORMATS = (".png", ".svg", ".pdf")


def check_target(path: Path) -> None:
    """Raise `InputError` if a picture cannot be written to `path` at all."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"a picture's name must end in {', '.join(FORMATS)}, got {str(path)!r}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.parent}")


def write_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; its format follows from the name.

    Raises:
        InputError: an unknown format, or a file that cannot be written.
    """
    check_target(path)
    # Without a date the same picture is the same file.
    undated = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
    metadata = undated.get(path.suffix.lower())
    with os_errors_as(InputError, f"cannot write {path}"):
        replace_with(path, lambda target: figure.savefig(target, metadata=metadata))


def matrix_figure(table: pd.DataFrame, rows: str, columns: str, value: str) -> Figure:
    """Return a table of shares (rows by columns, such as clients by domains) as a heat map.

    `rows`, `columns` and `value` are what the axes and the colours show. Cells hold percent.
    """
    from matplotlib.figure import Figure

    shares = 100 * table.to_numpy(np.float64)
    size = (2.2 + 0.75 * shares.shape[1], 1.6 + 0.4 * shares.shape[0])
    figure = Figure(figsize=size, layout="constrained", dpi=110)
    axes = figure.subplots()
    low, high = float(np.nanmin(shares)), float(np.nanmax(shares))
    image = axes.imshow(shares, cmap="cividis", vmin=low, vmax=high, aspect="auto")
    for (i, j), share in np.ndenumerate(shares):
        if not np.isnan(share):
            dark = high > low and (share - low) / (high - low) < 0.55
            colour = "white" if dark else "black"
            axes.text(j, i, f"{share:.0f}", ha="center", va="center", fontsize=8, color=colour)
    name_items(axes, [str(c) for c in table.columns])
    axes.set_yticks(range(len(table.index)), [str(r) for r in table.index], fontsize=8)
    axes.set_xlabel(columns, fontsize=9)
    axes.set_ylabel(rows, fontsize=9)
    figure.colorbar(image, ax=axes, label=f"{value} [%]")
    return figure


def name_items(axes: Axes, names: Sequence[str], size: int = 8) -> None:
    """Write a name under each item; many or long ones slanted, each ending at its item."""
    axes.set_xticks(range(len(names)), list(names), fontsize=size)
    if len(names) > 4 or max(map(len, names), default=0) > 12:
        for label in axes.get_xticklabels():
            label.set(rotation=40, ha="right", rotation_mode="anchor")
