"""The paper's protocol on small files in the formats of the four sets."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedsim
from fedsim.api import prepare
from fedsim.components.build import build_dataset, build_model, build_partition
from tests.support.bert import save_bert
from tests.support.resnets import torchvision_state
from tests.support.runs import events

FILE = Path(__file__).resolve().parents[2] / "experiments/creamfl/coco_flickr_cifar_agnews.yaml"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write 60 images of CIFAR-100, 60 articles, 40 pairs of Flickr30k and 40 of COCO, a BERT."""
    pytest.importorskip("transformers")
    root = tmp_path / "data"
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSIM_DATA", str(root))
    generator = np.random.default_rng(0)
    inside = root / "cifar100" / "cifar-100-python"
    inside.mkdir(parents=True)
    for part, n in (("train", 60), ("test", 10)):
        labels = (np.arange(n) % 100).tolist()
        batch = {
            b"data": generator.integers(0, 255, (n, 3072)).astype(np.uint8),
            b"fine_labels": labels,
            b"coarse_labels": [label // 5 for label in labels],
        }
        (inside / part).write_bytes(pickle.dumps(batch, protocol=2))
    (root / "ag-news").mkdir()
    for part, n in (("train", 60), ("test", 8)):
        with open(root / "ag-news" / f"{part}.csv", "w", newline="") as file:
            rows = [[1 + i % 4, f"Title {i}", f"Lead of the article {i}."] for i in range(n)]
            csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows)
    for name, folder, file, n in (
        ("flickr30k", "flickr30k-images", "dataset_flickr30k.json", 50),
        ("coco-karpathy", "train2014", "dataset_coco.json", 50),
    ):
        images = []
        (root / name / folder).mkdir(parents=True)
        for i in range(n):
            pixels = generator.integers(0, 255, (9, 12, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / folder / f"{i}.jpg")
            image: dict[str, Any] = {
                "filename": f"{i}.jpg",
                "imgid": i,
                "split": "train" if i < 40 else "val" if i == 49 else "test",
                "sentences": [{"raw": f"A {name} scene, number {i}."}, {"raw": "Another."}],
            }
            if name == "coco-karpathy":
                image |= {"filepath": folder, "cocoid": 100 + i}
            images.append(image)
        (root / name / file).write_text(json.dumps({"images": images, "dataset": name}))
    save_bert(root / "bert")
    return root


NAMES = {18: "resnet18-f37072fd.pth", 101: "resnet101-63fe2227.pth"}


@pytest.fixture
def weights(data: Path) -> dict[int, dict[str, torch.Tensor]]:
    """Write random weights in torchvision's format; small files, a tensor is one number."""
    (data / "weights").mkdir()
    states = {depth: torchvision_state(depth, flat=True) for depth in NAMES}
    for depth, state in states.items():
        torch.save(state, data / "weights" / NAMES[depth])
    return states


def small(data: Path) -> dict[str, Any]:
    """Return what is set otherwise than in the file, so that it runs in seconds on the `data`."""
    image = {"name": "cnn", "channels": [3], "hidden": 4}
    text = {"name": "text-gru", "width": 4, "hidden": 3}
    towers = {f"{part}{m}": t for part in ("", "server_", "pairs_")
              for m, t in (("image", image), ("text", text))}  # fmt: skip
    towers["server_text"] = {"name": "text-encoder", "weights": str(data / "bert")}
    return {
        "rounds": 1,
        "dataset.size": [16, 16],
        "dataset.augment": {"crop": 2, "flip": True},
        "dataset.sets.cifar100.verify": False,
        "dataset.sets.flickr30k.size": [16, 16],
        "dataset.sets.coco.size": [16, 16],
        "partition.clients": 7,
        "partition.size": 20,
        "partition.within.images": 2,
        "partition.within.texts": 2,
        "partition.within.pairs": 3,
        "partition.within.within.numbers": {"cifar100": 2, "ag-news": 2, "flickr30k": 3},
        "partition.within.within.within_of": {"flickr30k": {"name": "shards", "shards": 2}},
        "model": {"name": "image-text", "dim": 6, **towers},
        "client.epochs": 1,
        "participation": 7,
        "engine": {"name": "serial"},
    }


def test_who_has_what(data: Path) -> None:
    experiment = prepare(FILE, small(data))
    dataset = build_dataset(experiment)
    manifest = build_partition(experiment, dataset)
    names, domain = dataset.card.domains, dataset.train.extra["domain"]
    assert {names[d] for d in domain[manifest.public_rows]} == {"coco"}
    owned = [{names[d] for d in domain[manifest.client(c).train]} for c in range(7)]
    assert owned == [{"cifar100"}] * 2 + [{"ag-news"}] * 2 + [{"flickr30k"}] * 3
    assert len(dataset.test) == 9 * 2  # images and their captions
    assert len(set(dataset.test.extra["group"].tolist())) == 9
    assert {names[d] for d in dataset.test.extra["domain"]} == {"coco"}
    assert dataset.num_classes == 100 + 4 + 1 + 1
    texts = [dataset.vocabulary[t] for t in dataset.test.extra["tokens"][0] if t > 1]
    assert texts[0] == "a"
    assert "scene" in texts


def test_towers_begin_with_the_weights_that_the_file_names(
    data: Path, weights: dict[int, dict[str, torch.Tensor]]
) -> None:
    changes = small(data)
    changes["model.server_text"] = changes.pop("model")["server_text"]  # no hub is asked
    experiment = prepare(FILE, changes)
    module: Any = build_model(experiment, build_dataset(experiment).card)
    for tower, depth, last in (
        (module.server.image, 101, "conv3"),
        (module.image.image, 18, "conv2"),
        (module.pairs.image, 18, "conv2"),
    ):
        own = tower.body.state_dict()
        assert own["0.weight"].equal(weights[depth]["conv1.weight"])
        blocks = sum(name.endswith(".conv1.weight") for name in own)
        assert blocks == sum(name.endswith(".conv1.weight") for name in weights[depth])
        name = f"{3 + blocks}.{last}.weight"
        assert own[name].equal(weights[depth][f"layer4.{2 if depth == 101 else 1}.{last}.weight"])


def test_a_round(data: Path, weights: Any, tmp_path: Path) -> None:
    """Clients with images begin with weights, the other towers are small."""
    torch.save(torchvision_state(18), data / "weights" / NAMES[18])
    changes = small(data)
    net = {"name": "resnet-imagenet", "depth": 18, "stem": "large", "weights": NAMES[18]}
    changes["model"]["image"] = net
    run = fedsim.run(FILE, set=changes, out=tmp_path / "runs")
    assert events(run) == []
    matrix = 4 * 6 * 20
    assert run.final["train/bytes_up"] == (2 + 2 + 3 * 2) * matrix
    own = run.client_values("test", "personal/accuracy", last=True)["client"].tolist()
    assert own == [0, 1, 2, 3]
    pairs = run.client_values("test", "personal/recall@1/i2t", last=True)["client"].tolist()
    assert pairs == [4, 5, 6]
    assert 0 <= run.final["test/generic/recall@10/i2t"] <= 1
    assert any(name.startswith("server.text.body.model.encoder") for name in run.arrays())
