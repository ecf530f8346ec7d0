"""Weights of residual networks in the formats of torchvision and of transformers' ResNet.

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
"""Patterns in transformers' names and their replacements, in order, giving torchvision's."""

_SAME = {
    "model_type": "resnet",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "downsample_in_bottleneck": False,
}
"""Values of transformers' configuration under which its network equals torchvision's."""


def find_weights(weights: str) -> Path:
    """Return the file or folder: a path, or a name in a data folder's ``weights``.

    Raises:
        InputError: no such file or folder.
    """
    places = [Path(weights).expanduser(), *(f / weights for f in data_folders("weights"))]
    path = next((p for p in places if p.exists()), None)
    if path is None:
        beside = [p.name for f in data_folders("weights") if f.is_dir() for p in f.iterdir()]
        raise InputError(
            f"weights must be a file or folder, or the name of one in "
            f"{' or '.join(str(f) for f in data_folders('weights'))} (torchvision's are at "
            f"https://download.pytorch.org/models), got {weights!r}.{nearest(weights, beside)}"
        )
    return path


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file or folder by torchvision's names, without those of fc.

    A file with the suffix .safetensors is one, any other a state dict by ``torch.save``.

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
    """Copy `tensors` into a module (in place); `names` maps its names to those of `tensors`.

    BatchNorm's counters may be missing, as in files of older versions of torch. `what` names the
    network in messages.

    Raises:
        InputError: tensors that are missing, superfluous or of another shape.
    """
    state = module.state_dict()
    expected = {names[name] for name in state}
    missing = [n for n in sorted(expected - set(tensors)) if not n.endswith("num_batches_tracked")]
    others = sorted(set(tensors) - expected)
    counts = [
        f"{verb} {len(keys)} {which}, such as {keys[0]}"
        for verb, which, keys in (("lack", "of its tensors", missing), ("have", "others", others))
        if keys
    ]
    if counts:
        raise InputError(f"weights must be those of {what}, but they {' and '.join(counts)}")
    for name, tensor in state.items():
        if (values := tensors.get(names[name])) is not None:
            shape, actual = tuple(tensor.shape), tuple(values.shape)
            check(shape == actual, f"weights must have {names[name]} of the shape {shape}", actual)
            tensor.copy_(values)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:  # whose message advises trusting the file
        raise InputError(f"weights must be a file of tensors alone, {path} is none") from error
    except Exception as error:  # a damaged file can raise nearly any type
        text = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(f"weights cannot be read from {path}: {text}") from error
    if not isinstance(state, dict) or not state:
        raise InputError(f"weights must be a state dict, {path} holds a {type(state).__name__}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(
                f"weights must be a state dict, name to tensor; in {path} {name!r} is a "
                f"{type(value).__name__}"
            )
    return state


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
