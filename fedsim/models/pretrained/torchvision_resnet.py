"""Weights of residual networks in torchvision's format, or as transformers' ResNet saves them.

    conv1  bn1  layerS.B.{conv1, bn1, conv2, bn2[, conv3, bn3]}  layerS.B.downsample.{0, 1}  fc

S is a stage 1..4, B a block 0, 1, ...; the last linear layer, fc, is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.data.sources import data_folders
from fedsim.errors import InputError, check, nearest
from fedsim.models.pretrained.transformers import check_finite

_TRANSFORMERS = (
    (r"^resnet\.", ""),
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}."),
    (r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}."),
    (r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}."),
    (r"^classifier\.1\.", "fc."),
)
"""Of transformers' names, in this order, to torchvision's."""

_SAME = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
"""What transformers' configuration must say of a network that computes what torchvision's does."""


def find_weights(weights: str) -> Path:
    """Return the file or folder: a path, or a name in ``weights`` of the folders of data.

    Raises:
        InputError: there is none.
    """
    places = [Path(weights).expanduser(), *(f / weights for f in data_folders("weights"))]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        beside = [p.name for f in data_folders("weights") if f.is_dir() for p in f.iterdir()]
        raise InputError(
            f"weights must be a file or folder, or the name of one in "
            f"{' or '.join(str(f) for f in data_folders('weights'))} (torchvision's are at "
            f"https://download.pytorch.org/models), got {weights!r}.{nearest(weights, beside)}"
        )
    return found


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file or folder by torchvision's names, without those of fc.

    A file is safetensors by that suffix, else what ``torch.save`` makes of a state dict.

    Raises:
        InputError: what cannot be read, is no state dict, not finite, or of another kind of
            network.
    """
    tensors = _from_transformers(path) if path.is_dir() else _read_file(path)
    kept = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
    check_finite(f"weights in {path}", kept)
    return kept


def load_weights(
    module: nn.Module, names: Mapping[str, str], tensors: Mapping[str, Tensor], what: str
) -> None:
    """Copy `tensors` into the module, each of whose own is called ``names[own]`` there.

    BatchNorm's counters may be missing, as in files from before they were kept. `what` names the
    network in messages.

    Raises:
        InputError: tensors that are missing, superfluous or of another shape.
    """
    own = module.state_dict()
    wanted = {names[name] for name in own}
    missing = [n for n in sorted(wanted - set(tensors)) if not n.endswith("num_batches_tracked")]
    others = sorted(set(tensors) - wanted)
    counts = [
        f"{verb} {len(found)} {which}, such as {found[0]}"
        for verb, which, found in (("lack", "of its tensors", missing), ("have", "others", others))
        if found
    ]
    if counts:
        raise InputError(f"weights must be those of {what}, but they {' and '.join(counts)}")
    for name, tensor in own.items():
        if (given := tensors.get(names[name])) is not None:
            shape, theirs = tuple(tensor.shape), tuple(given.shape)
            check(shape == theirs, f"weights must have {names[name]} of the shape {shape}", theirs)
            tensor.copy_(given)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # its text advises to trust the file
        raise InputError(f"weights must be a file of tensors alone, {path} is none") from error
    except Exception as error:  # a damaged file: nearly any kind, by the format it looks like
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"weights cannot be read from {path}: {text}") from error
    if not isinstance(found, dict) or not found:
        raise InputError(f"weights must be a state dict, {path} holds a {type(found).__name__}")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights must be a state dict, name to tensor; in {path} {name!r} is a "
                f"{type(value).__name__}"
            )
    return found


def _from_transformers(folder: Path) -> dict[str, Tensor]:
    try:
        config = json.loads((folder / "config.json").read_text())
        differs = [(k, config.get(k, v)) for k, v in _SAME.items() if config.get(k, v) != v]
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f"weights must be a file, or a folder of transformers' ResNet; {folder / 'config.json'}"
            f" cannot be read: {error}"
        ) from error
    if differs:
        key, value = differs[0]
        raise InputError(
            f"weights in {folder} must be of a network with {key} {_SAME[key]!r}, got {value!r}"
        )
    files = [folder / name for name in ("model.safetensors", "pytorch_model.bin")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise InputError(f"weights must be in {files[0]} or {files[1].name}: there is neither")
    tensors = {}
    for name, tensor in _read_file(file).items():
        for pattern, replacement in _TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    return tensors
