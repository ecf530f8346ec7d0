"""Prompted transformers against the library's own forward pass, and what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

import fedsim  # noqa: E402
from fedsim.errors import InputError  # noqa: E402
from fedsim.models.vit import vit  # noqa: E402
from fedsim.params import FlatModel  # noqa: E402
from tests.runs import tiny  # noqa: E402

TINY: dict[str, Any] = {"width": 24, "heads": 2, "layers": 3}


def build(**options: Any) -> Any:
    torch.manual_seed(0)
    return vit((1, 8, 8), 10, **{**TINY, **options})


def test_without_prompts_it_is_the_librarys() -> None:
    model = build(prompts=0).eval()
    x = torch.randn(5, 1, 8, 8)
    expected = model.body.backbone.model(x).last_hidden_state[:, 0]
    assert model.body(x).equal(expected)
    assert model(x).shape == (5, 10)


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_stand_between_cls_and_patches(deep: bool) -> None:
    """The layers see 1 + K + m tokens; deep prompts are new before each layer."""
    model = build(prompts=3, deep=deep).eval()
    seen: list[torch.Tensor] = []
    for layer in model.body.backbone.layers:
        layer.register_forward_pre_hook(lambda m, args: seen.append(args[0].detach()))
    x = torch.randn(2, 1, 8, 8)
    model(x)
    tokens = model.body.backbone.embed(x)
    prompts = model.body.prompts.detach()
    assert [tuple(s.shape) for s in seen] == [(2, 1 + 3 + 4, 24)] * 3
    assert seen[0][:, 0].equal(tokens[:, 0])
    assert seen[0][:, 4:].equal(tokens[:, 1:])
    first = prompts[0] if deep else prompts
    assert seen[0][:, 1:4].equal(first.expand(2, -1, -1))
    for i in (1, 2):
        kept = seen[i][:, 1:4].equal(
            prompts[i].expand(2, -1, -1) if deep else first.expand(2, -1, -1)
        )
        assert kept == deep


def test_the_backbone_is_frozen() -> None:
    model = build(prompts=3)
    flat = FlatModel(model)
    assert set(flat.layout.names) == {"body.prompts", "head.weight", "head.bias"}
    assert not any(p.requires_grad for p in model.body.backbone.parameters())
    model.train()
    assert not model.body.backbone.training
    assert not model.body.backbone.model.training
    assert model.head.training
    digest = flat.frozen_digest()
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    assert all(p.grad is None for p in model.body.backbone.parameters())
    assert model.body.prompts.grad is not None
    assert flat.frozen_digest() == digest != ""
    with torch.no_grad():
        next(model.body.backbone.parameters()).add_(1e-3)
    assert flat.frozen_digest() != digest


def test_unfrozen_it_is_all_trained() -> None:
    model = build(prompts=0, frozen=False)
    flat = FlatModel(model)
    assert set(flat.layout.names) >= set(dict(model.named_parameters()))
    assert model.train().body.backbone.training
    assert flat.frozen_digest() == ""


def test_weights_from_a_folder(tmp_path: Path) -> None:
    """Saved by the library, loaded by name; positions are interpolated where sizes differ."""
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=8, patch_size=4, num_channels=1,
    )  # fmt: skip
    saved = transformers.ViTModel(config, add_pooling_layer=False).eval()
    saved.save_pretrained(tmp_path / "vit")
    model = vit((1, 8, 8), 10, weights=str(tmp_path / "vit"), prompts=0).eval()
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.body(x), saved(x).last_hidden_state[:, 0])
    larger = vit((1, 16, 16), 10, weights=str(tmp_path / "vit"), prompts=2).eval()
    assert larger(torch.randn(2, 1, 16, 16)).shape == (2, 10)
    with pytest.raises(InputError, match=r"need 1 channels, got 3"):
        vit((3, 8, 8), 10, weights=str(tmp_path / "vit"))
    with pytest.raises(InputError, match=r"multiple of the patch \(4\), got 10"):
        vit((1, 10, 10), 10, weights=str(tmp_path / "vit"))


def test_dinov2_weights(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4,
        num_channels=1,
    )  # fmt: skip
    saved = transformers.Dinov2Model(config).eval()
    saved.save_pretrained(tmp_path / "dino")
    model = vit((1, 8, 8), 10, weights=str(tmp_path / "dino"), prompts=0).eval()
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(model.body(x), saved(x).last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"weights": "/nowhere/vit"}, "there is no folder /nowhere/vit"),
        ({"weights": str(Path(__file__).parent)}, "it has no config.json"),
        ({"width": 25}, r"width must be a multiple of heads \(2\), got 25"),
        ({"prompts": -1}, "prompts must be >= 0"),
        ({"patch": 3}, r"multiple of the patch \(3\), got 8"),
        ({"layers": 0}, "layers must be >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        build(**options)


def test_a_run_neither_sends_nor_saves_the_backbone(tmp_path: Path) -> None:
    """FedAvg on it is prompt tuning with averaged prompts and heads (FedVPT)."""
    run = fedsim.run(tiny(model={"name": "vit", "prompts": 3, **TINY}), out=tmp_path)
    assert set(run.arrays()) == {"body.prompts", "head.weight", "head.bias"}
    up = run.clients[run.clients["name"] == "bytes_up"]["value"]
    assert set(up) == {4.0 * (3 * 24 + 10 * 24 + 10)}
    saved = sum(p.stat().st_size for p in (run.path / "checkpoint").rglob("*") if p.is_file())
    backbone = sum(p.numel() for p in build().body.backbone.parameters())
    assert saved < 4 * backbone
    model: Any = run.model()
    assert model.body.prompts.equal(run.arrays()["body.prompts"])
