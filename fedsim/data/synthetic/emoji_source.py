"""Emoji drawn by four vendors, from the npm packages that hold the drawings.

The drawings come from Iconify's collections, names and keywords from emojibase-data. Only emoji
that all four vendors draw are taken, without flags, components and skin tones.
"""

from __future__ import annotations

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.loaders.npm import TARBALL_ERRORS, tarball_name
from fedsim.data.sources import refusing, track
from fedsim.errors import InputError

VENDORS = ("noto", "twemoji", "openmoji", "fluent")

PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "fluent": "@iconify-json/fluent-emoji-flat@1.2.6",
    "names": "emojibase-data@17.0.0",
}

GROUPS = {
    "smileys-emotion": "smileys",
    "people-body": "people",
    "animals-nature": "animals",
    "food-drink": "food",
    "travel-places": "travel",
    "activities": "activities",
    "objects": "objects",
    "symbols": "symbols",
}
"""emojibase's name of a group -> ours, in emojibase's order."""


@dataclass(frozen=True)
class Emoji:
    """One emoji: `hexcode` as in 1F600, its name, keywords, group and subgroup."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


class Drawings:
    """The opened packages of a folder.

    Raises:
        InputError: a package that is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._icons = {v: _read(folder, v, "icons.json") for v in VENDORS}
        self._names = {
            v: {_plain(code): name for code, name in _read(folder, v, "chars.json").items()}
            for v in VENDORS
        }
        data = _read(folder, "names", "en/data.json")
        messages = _read(folder, "names", "en/messages.json")
        self.emoji = self._common(data, messages)

    def _common(self, data: list[dict[str, Any]], messages: dict[str, Any]) -> list[Emoji]:
        groups = {g["order"]: g["key"] for g in messages["groups"]}
        subgroups = {g["order"]: g["key"] for g in messages["subgroups"]}
        common = []
        for entry in data:
            group = GROUPS.get(groups.get(entry.get("group"), ""))
            if group is None or any(not self._has(v, entry["hexcode"]) for v in VENDORS):
                continue
            tags = tuple(entry.get("tags", ()))
            subgroup = subgroups[entry["subgroup"]]
            common.append(Emoji(entry["hexcode"], entry["label"], tags, group, subgroup))
        return sorted(common, key=lambda e: [int(c, 16) for c in e.hexcode.split("-")])

    def _has(self, vendor: str, hexcode: str) -> bool:
        name = self._names[vendor].get(_plain(hexcode))
        return name is not None and name in self._icons[vendor]["icons"]

    def render(self, vendor: str, size: int) -> np.ndarray:
        """Return the drawings of one vendor, uint8 (len(emoji), size, size, 4), RGBA.

        Raises:
            InputError: the package resvg-py is not installed.
        """
        package = "drawing emoji needs the package resvg-py: pip install 'fedsim[data]'"
        with refusing(package, ImportError):
            from resvg_py import svg_to_bytes
        from PIL import Image

        collection = self._icons[vendor]
        pictures = np.zeros((len(self.emoji), size, size, 4), np.uint8)
        for picture, emoji in zip(
            pictures, track(self.emoji, f"drawing {vendor}", len(self.emoji)), strict=True
        ):
            icon = collection["icons"][self._names[vendor][_plain(emoji.hexcode)]]
            left, top, width, height = (
                icon.get(key, collection.get(key, default))
                for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
            )
            svg = (
                f'<svg xmlns="http://www.w3.org/2000/svg" width="{size}" height="{size}" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
            )
            png = svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True)
            with Image.open(io.BytesIO(png)) as image:
                picture[:] = np.asarray(image.convert("RGBA").resize((size, size)))
        return pictures


def package_files(folder: Path) -> dict[str, Path]:
    """Return the tarball of each package in a folder, as ``npm pack`` names them.

    Raises:
        InputError: one is missing; the message has the command that fetches it.
    """
    files = {key: folder / tarball_name(package) for key, package in PACKAGES.items()}
    missing = [PACKAGES[key] for key, path in files.items() if not path.is_file()]
    if missing:
        raise InputError(
            f"emoji drawings are missing in {folder}; fetch them there with: "
            f"npm pack {' '.join(missing)}"
        )
    return files


def _plain(hexcode: str) -> str:
    """Return a code without the selector that asks for a picture, which vendors write or not."""
    return "-".join(c for c in hexcode.lower().split("-") if c != "fe0f")


def _read(folder: Path, key: str, name: str) -> Any:
    path = package_files(folder)[key]
    damaged = (
        f"{path} is no whole package with {name} ({{error}}); fetch it again with: "
        f"npm pack {PACKAGES[key]}"
    )
    with refusing(damaged, KeyError, ValueError, *TARBALL_ERRORS), tarfile.open(path) as archive:
        member = archive.extractfile(f"package/{name}")
        if member is None:
            raise KeyError(name)
        return json.load(member)
