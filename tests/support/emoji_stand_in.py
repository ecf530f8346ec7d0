"""Emoji drawn by hand in place of the packaged ones: what each shows can be read off its colour."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

GROUPS = ("smileys", "people", "animals", "food", "travel")
VENDORS = ("one", "two")
COLOURS = {"red": (220, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 220)}


def emoji() -> dict[str, Any]:
    """Per vendor, group and colour 20 discs: 14 to train on, 6 to test on.

    The last two bits of the channels tell them apart: red's the vendor, green's the part, and the
    opaque part of each disc is 28 pixels wide and high, from 2 to 30.
    """
    across = np.arange(32) - 15.5
    disc = (across**2 + across[:, None] ** 2 <= 14**2) * np.uint8(255)
    pictures, columns = [], []
    for vendor in range(len(VENDORS)):
        for group in range(len(GROUPS)):
            for c, colour in enumerate(COLOURS.values()):
                for i in range(20):
                    picture = np.zeros((32, 32, 4), np.uint8)
                    picture[..., :3] = colour
                    picture[..., 0] += vendor
                    picture[..., 1] += i >= 14
                    picture[..., 3] = disc
                    pictures.append(picture)
                    columns.append((vendor, (group * 3 + c) * 20 + i, group, i >= 14))
    vendor_, base, group_, is_test = (np.array(column) for column in zip(*columns, strict=True))
    return {
        "rgba": np.stack(pictures),
        "vendor": vendor_,
        "base": base,
        "group": group_,
        "is_test": is_test,
        "groups": GROUPS,
        "vendors": VENDORS,
    }


def use_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let scenes be made of `emoji`."""
    made = emoji()
    monkeypatch.setattr("fedsim.data.synthetic.emoji_pool.load_rgba", lambda: made)
