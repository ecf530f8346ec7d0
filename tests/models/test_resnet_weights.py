"""Residual networks with weights: against transformers' ResNet, on what images, of what files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fedsim.data.dataset import Card
from fedsim.errors import InputError
from fedsim.models.resnet_imagenet import resnet_imagenet
from fedsim.params import FlatModel
from tests.support.resnets import torchvision_state

SHAPE = (3, 64, 64)
CARD = Card("t", "s", "l", ("a",), SHAPE, (0.2, 0.5, 0.7), (0.1, 0.2, 0.4), "d")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)


def build(weights: Any, *about: Any, shape: Any = SHAPE, classes: int = 5, **options: Any) -> Any:
    torch.manual_seed(0)
    options = {"stem": "large", "weights": None if weights is None else str(weights), **options}
    return resnet_imagenet(shape, classes, *about, **options).eval()


@pytest.fixture(scope="session")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18-f37072fd.pth"
    torch.save(torchvision_state(18), path)
    return path


def reference(depth: int, state: dict[str, Tensor]) -> Any:
    """Return transformers' network with the same weights, each put in its place here."""
    transformers = pytest.importorskip("transformers")
    sizes = (64, 128, 256, 512) if depth < 50 else (256, 512, 1024, 2048)
    config = transformers.ResNetConfig(
        depths={18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth],
        hidden_sizes=sizes,
        layer_type="basic" if depth < 50 else "bottleneck",
        num_labels=1000,
    )
    model = transformers.ResNetForImageClassification(config).eval()
    taken: set[str] = set()

    def put(module: torch.nn.Module, name: str) -> None:
        part = {k: v for k, v in state.items() if k.rpartition(".")[0] == name}
        module.load_state_dict({k.rpartition(".")[2]: v for k, v in part.items()})
        taken.update(part)

    put(model.resnet.embedder.embedder.convolution, "conv1")
    put(model.resnet.embedder.embedder.normalization, "bn1")
    put(model.classifier[1], "fc")
    for s, stage in enumerate(model.resnet.encoder.stages, start=1):
        for b, block in enumerate(stage.layers):
            for k, layer in enumerate(block.layer, start=1):
                put(layer.convolution, f"layer{s}.{b}.conv{k}")
                put(layer.normalization, f"layer{s}.{b}.bn{k}")
            if not isinstance(block.shortcut, torch.nn.Identity):
                put(block.shortcut.convolution, f"layer{s}.{b}.downsample.0")
                put(block.shortcut.normalization, f"layer{s}.{b}.downsample.1")
    assert taken == set(state)
    return model


@pytest.mark.parametrize("depth", [18, 50])
def test_it_computes_what_transformers_does(depth: int, tmp_path: Path) -> None:
    """In double precision, by the file of weights and by the library's own folder."""
    state = torchvision_state(depth)
    torch.save(state, tmp_path / "net.pth")
    theirs = reference(depth, state).double()
    theirs.save_pretrained(tmp_path / "folder")
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.resnet(x).pooler_output.flatten(1)
        assert float(expected.std()) > 0.1
        for weights in ("net.pth", "folder"):
            model = build(weights, classes=1000, depth=depth).double()
            torch.testing.assert_close(model.body(x), expected, rtol=1e-5, atol=1e-5)
            model.head.load_state_dict(theirs.classifier[1].state_dict())
            torch.testing.assert_close(model(x), theirs(x).logits, rtol=1e-5, atol=1e-5)
            assert int(model.body[1].num_batches_tracked) == 7


def test_safetensors_half_precision_and_no_counters(tmp_path: Path) -> None:
    state = torchvision_state(18)
    kept = {k: v.half().contiguous() for k, v in state.items() if "num_batches" not in k}
    safetensors.torch.save_file(kept, tmp_path / "net.safetensors")
    body = build("net.safetensors").body
    assert {p.dtype for p in body.parameters()} == {torch.float32}
    assert body[4].norm2.weight.equal(state["layer1.0.bn2.weight"].half().float())
    assert int(body[1].num_batches_tracked) == 0


def normed(pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@pytest.mark.parametrize(
    ("weighted", "normalise", "mean", "std"),
    [
        (True, "auto", MEAN, STD),
        (True, "imagenet", MEAN, STD),
        (True, "data", CARD.mean, CARD.std),
        (False, "auto", CARD.mean, CARD.std),
        (False, "imagenet", MEAN, STD),
        (False, "data", CARD.mean, CARD.std),
    ],
)
def test_images_are_normalised_as_the_weights_expect(
    weighted: bool, normalise: str, mean: Any, std: Any, file: Path
) -> None:
    """From pixels: as the data set normalises them here, as expected in a model without a card."""
    weights = file if weighted else None
    model = build(weights, CARD, normalise=normalise)
    plain = build(weights, normalise="data")
    pixels = torch.rand(2, *SHAPE)
    expected = plain(normed(pixels, mean, std))
    found = model(normed(pixels, CARD.mean, CARD.std))
    if mean == CARD.mean:
        assert found.equal(expected)
    else:
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert not found.equal(plain(normed(pixels, CARD.mean, CARD.std)))
    # Nothing of it is learnt, sent or averaged.
    assert FlatModel(model).layout == FlatModel(build(None)).layout
    assert set(model.state_dict()) == set(build(None).state_dict())


def test_a_folder_says_what_it_expects(tmp_path: Path) -> None:
    reference(18, torchvision_state(18)).save_pretrained(tmp_path / "net")
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "net" / "preprocessor_config.json").write_text(json.dumps(values))
    pixels = torch.rand(2, *SHAPE)
    found = build("net", CARD)(normed(pixels, CARD.mean, CARD.std))
    expected = build("net")(normed(pixels, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_the_head_is_that_of_the_experiments_seed(file: Path) -> None:
    assert build(file).head.weight.equal(build(None).head.weight)


def test_where_a_name_is_looked_for(file: Path, tmp_path: Path) -> None:
    state = torchvision_state(18)
    for number, place in enumerate(("home/.fedsim/data/weights", "data/weights", ".")):
        (tmp_path / place).mkdir(parents=True, exist_ok=True)
        torch.save(
            {**state, "bn1.bias": torch.full((64,), float(number))}, tmp_path / place / "net.pth"
        )
        assert build("net.pth").body[1].bias[0].item() == number


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"stem": "small"}, "stem must be 'large' with weights, got 'small'"),
        ({"width": 32}, "width must be 64 with weights, got 32"),
        ({"shape": (1, 64, 64)}, "weights need images with 3 channels, got 1"),
        (
            {"depth": 34},
            # 8 blocks of two convolutions and two norms of four tensors.
            r"weights must be those of a network of depth 34, but they lack 80 of its tensors, "
            r"such as layer1\.2\.bn1\.bias$",
        ),
        (
            {"depth": 50},
            # 53 convolutions with a norm instead of 20.
            r"of depth 50, but they lack 165 of its tensors, such as layer1\.0\.bn3\.bias$",
        ),
        (
            {"normalise": "imagenet", "weights": None, "shape": (1, 64, 64)},
            "is of images with 3 channels, got 1",
        ),
    ],
)
def test_what_does_not_fit_the_weights(options: Any, text: str, file: Path) -> None:
    options = {"weights": file, **options}
    with pytest.raises(InputError, match=text):
        build(options.pop("weights"), **options)


def test_weights_of_other_networks(tmp_path: Path) -> None:
    state = torchvision_state(50, flat=True)
    torch.save(state, "net.pth")
    with pytest.raises(
        InputError, match=r"but they have 198 others, such as layer1\.0\.bn3\.bias$"
    ):
        build("net.pth")
    bias = state.pop("bn1.bias")
    torch.save({**state, "x": bias, "bn1": bias}, "net.pth")
    with pytest.raises(
        InputError,
        match=r"lack 1 of its tensors, such as bn1\.bias and have 2 others, such as bn1$",
    ):
        build("net.pth", depth=50)


def test_files_that_are_no_weights(file: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / "weights").mkdir(parents=True)
    (tmp_path / "data" / "weights" / "resnet18.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"weights cannot be read from .*resnet18\.pth: "):
        build("resnet18.pth")
    with pytest.raises(
        InputError, match=r"one in .*data/weights or .*, got 'resnet81\.pth'\. Did you mean 'resne"
    ):
        build("resnet81.pth")
    Path("cut.pth").write_bytes(file.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"weights cannot be read from cut\.pth"):
        build("cut.pth")
    Path("cut.safetensors").write_bytes(b"no header")
    with pytest.raises(InputError, match=r"weights cannot be read from cut\.safetensors"):
        build("cut.safetensors")
    for name, value, text in (
        (
            "module",
            torch.nn.Linear(1, 1),
            "weights must be a file of tensors alone, module is none",
        ),
        ("list", [torch.zeros(1)], "weights must be a state dict, list holds a list"),
        ("nested", {"net": {"a": torch.zeros(1)}}, "name to tensor; in nested 'net' is a dict"),
        ("number", {1: torch.zeros(1)}, "name to tensor; in number 1 is a Tensor"),
    ):
        torch.save(value, name)
        with pytest.raises(InputError, match=text):
            build(name)
    state = torchvision_state(18, flat=True)
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, "gray.pth")
    with pytest.raises(
        InputError,
        match=r"weights must have conv1\.weight of the shape \(64, 3, 7, 7\), got \(64, 1, 7, 7\)",
    ):
        build("gray.pth")
    state["layer2.0.bn1.running_var"][5] = float("nan")
    torch.save(state, "nan.pth")
    with pytest.raises(
        InputError, match=r"in nan\.pth must be finite, got nan in layer2\.0\.bn1\.running_var"
    ):
        build("nan.pth")


def test_folders_that_are_no_weights(tmp_path: Path) -> None:
    folder = tmp_path / "net"
    folder.mkdir()
    with pytest.raises(
        InputError, match=r"a folder of transformers' ResNet; .*config\.json cannot"
    ):
        build("net")
    for config, text in (
        ({"model_type": "vit"}, "with model_type 'resnet', got 'vit'"),
        ({"model_type": "resnet", "downsample_in_bottleneck": True}, "bottleneck False, got True"),
        ({"model_type": "resnet"}, r"model\.safetensors or pytorch_model\.bin: there is neither"),
    ):
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(InputError, match=text):
            build("net")
