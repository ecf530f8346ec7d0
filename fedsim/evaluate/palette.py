"""Colours of all figures, told apart by colour-blind readers too."""

from __future__ import annotations

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8c8c00", "#777777")
