"""Conversion of a DINOv2 backbone from an ONNX graph to the layout that transformers reads.

The exporter keeps the names of most tensors, but folds the transposed weights of linear layers into
unnamed constants and splits the position embedding in two. A weight is identified by the bias that
is added to its product, the position embedding by its shape.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.errors import InputError

_HEAD_WIDTH = 64  # of every DINOv2 (Oquab et al. 2023, arXiv:2304.07193, Table 16)


def read_dinov2(graph: bytes, prefix: str = "backbone.") -> tuple[dict[str, np.ndarray], Any]:
    """Return the tensors, by transformers' names of a ``Dinov2Model``, and its configuration.

    `graph` is an ONNX file; names of the backbone's tensors begin with `prefix`.

    Raises:
        InputError: the package onnx is not installed, or the graph holds no such backbone.
    """
    try:
        import onnx
        from google.protobuf.message import DecodeError
        from onnx import numpy_helper
    except ImportError as error:
        raise InputError(
            f"reading an ONNX file needs the package onnx: pip install 'fedsim[onnx]' ({error})"
        ) from None
    try:
        model = onnx.load_model_from_string(graph).graph
    except DecodeError as error:
        raise InputError(f"this is no ONNX file: {error}") from error
    constants = {t.name: numpy_helper.to_array(t) for t in model.initializer}
    tensors = {
        name.removeprefix(prefix): value
        for name, value in constants.items()
        if name.startswith(prefix)
    }
    for name, weight in _linear_weights(model.node, constants).items():
        if name.startswith(prefix):
            tensors[name.removeprefix(prefix)] = weight
    return tensors, _configured(tensors, constants)


def write_dinov2(folder: Path, tensors: Mapping[str, np.ndarray], config: Any) -> None:
    """Write a model's folder as ``save_pretrained`` does; it must exist."""
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in tensors.items()}
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _linear_weights(nodes: Any, constants: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the weights of linear layers in torch's layout, by the names of their biases."""
    products = {
        node.output[0]: constants[name]
        for node in nodes
        if node.op_type == "MatMul"
        for name in node.input
        if name in constants and constants[name].ndim == 2
    }
    weights = {}
    for node in nodes:
        if node.op_type != "Add":
            continue
        factors = [products[name] for name in node.input if name in products]
        biases = [name for name in node.input if name.endswith(".bias") and name in constants]
        if factors and biases:
            weights[biases[0].removesuffix("bias") + "weight"] = factors[0].T
    return weights


def _configured(tensors: dict[str, np.ndarray], constants: Mapping[str, np.ndarray]) -> Any:
    """Add the position embedding to the tensors (in place); return the configuration."""
    try:
        width, channels, patch, _ = tensors["embeddings.patch_embeddings.projection.weight"].shape
        hidden = len(tensors["encoder.layer.0.mlp.fc1.bias"])
    except (KeyError, ValueError) as error:
        raise InputError(f"the ONNX graph holds no DINOv2 backbone: {error}") from error
    unnamed = [v for k, v in constants.items() if k.startswith("onnx::") and v.ndim == 3]
    pieces = [v for v in unnamed if v.shape[0] == 1 and v.shape[2] == width]
    first = [v for v in pieces if v.shape[1] == 1]
    rest = [v for v in pieces if v.shape[1] > 1 and math.isqrt(v.shape[1]) ** 2 == v.shape[1]]
    if len(first) != 1 or len(rest) != 1:
        raise InputError("the ONNX graph holds no position embedding of a DINOv2 backbone")
    tensors["embeddings.position_embeddings"] = np.concatenate([first[0], rest[0]], axis=1)
    # Used in training only, and left out by the exporter.
    tensors["embeddings.mask_token"] = np.zeros((1, width), np.float32)
    layers = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("encoder.layer."))
    if width % _HEAD_WIDTH:
        raise InputError(f"a DINOv2 backbone's width must be a multiple of 64, got {width}")
    return {
        "architectures": ["Dinov2Model"],
        "model_type": "dinov2",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // _HEAD_WIDTH,
        "mlp_ratio": hidden // width,
        "image_size": patch * math.isqrt(rest[0].shape[1]),
        "patch_size": patch,
        "num_channels": channels,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
    }
