"""The paper's protocol on small files in the formats of the three sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fedsim
from fedsim.api import prepare
from fedsim.components.build import build_dataset, build_partition
from fedsim.data.loaders.detection_converters import main
from tests.support.runs import events

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "fedsto"
WEATHERS = ("partly cloudy", "overcast", "rainy", "snowy", "clear")


def image(path: Path, width: int, height: int, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(number).integers(0, 255, (height // 20, width // 20, 3))
    Image.fromarray(noise.astype(np.uint8)).resize((width, height)).save(path)


def write_bdd100k(source: Path) -> None:
    """Write six training images a weather, one of them without a box."""
    for part, each in (("train", 6), ("val", 2)):
        frames = []
        for number in range(each * len(WEATHERS)):
            name = f"{part}{number}.jpg"
            image(source / "images" / "100k" / part / name, 1280, 720, number)
            corners = {"x1": 200, "y1": 100, "x2": 700, "y2": 500}
            labels = [{"id": "1", "category": "car", "box2d": corners}] if number % 6 else []
            weather = {"weather": WEATHERS[number % 5], "scene": "street", "timeofday": "night"}
            frames.append({"name": name, "attributes": weather, "labels": labels})
        path = source / "labels" / "det_20" / f"det_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(frames))


def write_cityscapes(source: Path) -> None:
    numbers = np.zeros((200, 400), np.uint16)
    numbers[50:150, 20:120] = 26001
    for part, n in (("train", 5), ("val", 2)):
        for number in range(n):
            stem = f"ulm_{number:06}_000019"
            path = source / "gtFine" / part / "ulm" / f"{stem}_gtFine_instanceIds.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(numbers).save(path)
            clear = source / "leftImg8bit" / part / "ulm" / f"{stem}_leftImg8bit.png"
            image(clear, 400, 200, number)
            name = f"{stem}_leftImg8bit_foggy_beta_0.02.png"
            image(source / "leftImg8bit_foggy" / part / "ulm" / name, 400, 200, number)


def write_soda10m(source: Path) -> None:
    names = ("Pedestrian", "Cyclist", "Car", "Truck", "Tram", "Tricycle")
    categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
    for part, n in (("train", 12), ("val", 3)):
        images: list[dict[str, Any]] = []
        boxes: list[dict[str, Any]] = []
        for number in range(n):
            name = f"HT_{number}.jpg"
            image(source / "labeled" / part / name, 1920, 1080, number)
            place = {"city": "Shanghai", "location": "Citystreet", "period": "Night"}
            size = {"width": 1920, "height": 1080}
            named = {"id": number, "file_name": name, "weather": "Rainy"}
            images.append({**named, **size, **place})
            box = [300, 200, 800, 500]
            boxes.append({"id": number, "image_id": number, "category_id": 3, "bbox": box})
        path = source / "labeled" / "annotations" / f"instance_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = {"images": images, "annotations": boxes, "categories": categories}
        path.write_text(json.dumps(tree))


WRITERS = {"bdd100k": write_bdd100k, "cityscapes": write_cityscapes, "soda10m": write_soda10m}
SMALL = {
    "rounds": 3, "dataset.size": 64, "dataset.augment": {"flip": True, "scale": 0.5, "cutout": 8},
    "model.width": 8, "strategy.warm_up_rounds": 1, "strategy.stage1_rounds": 1,
    "strategy.batch_size": 4, "client.batch_size": 4, "client.tau_low": 0.01,
    "client.tau_high": 0.03, "evaluation.every": 3, "engine": {"name": "serial"},
}  # fmt: skip


@pytest.fixture(params=sorted(WRITERS))
def name(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write and convert a set where experiments look for it."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "data"))
    WRITERS[request.param](tmp_path / "source")
    into = tmp_path / "data" / request.param
    assert main([request.param, str(tmp_path / "source"), str(into)]) == 0
    return str(request.param)


def test_who_has_which_images(name: str) -> None:
    experiment = prepare(FOLDER / f"{name}.yaml", {"dataset.size": 64})
    dataset = build_dataset(experiment)
    manifest = build_partition(experiment, dataset)
    domains = dataset.train.extra["domain"]
    assert not manifest.labelled.any()
    owned = [set(domains[manifest.client(c).train]) for c in range(3)]
    named = [{dataset.card.domains[d] for d in some} for some in owned]
    server = {dataset.card.domains[d] for d in domains[manifest.server]}
    sizes = [len(manifest.server), *manifest.num_train.tolist()]
    if name == "bdd100k":
        assert server == {"partly cloudy"}
        assert named == [{"overcast"}, {"rainy"}, {"snowy"}]
        assert sizes == [6, 6, 6, 6]
    elif name == "cityscapes":
        assert (server, named) == ({"clear"}, [{"foggy"}] * 3)
        assert sizes == [5, 2, 2, 1]
    else:
        assert sizes == [3, 3, 3, 3]


def test_it_runs_through_all_stages(name: str, tmp_path: Path) -> None:
    run = fedsim.run(FOLDER / f"{name}.yaml", set=SMALL, out=tmp_path / "runs")
    assert events(run) == []
    assert run.final["train/clients"] == 3
    assert "test/generic/mAP50_total" in run.final
    stages = run.client_values("train", "bytes_up").groupby("round")["value"].max()
    assert list(stages.index) == [2, 3]
    assert stages[2] < stages[3]
