import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.datasets.coco_detection import coco_detection
from fedsim.data.loaders.detection_converters import main
from fedsim.errors import InputError


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))


def picture(path: Path, width: int, height: int, grey: int = 60) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (grey,) * 3).save(path)


def converted(out: Path, part: str = "train") -> dict[str, Any]:
    return json.loads((out / "annotations" / f"instances_{part}.json").read_text())


def bdd_label(category: str, *corners: float, **attributes: Any) -> dict[str, Any]:
    box = dict(zip(("x1", "y1", "x2", "y2"), corners, strict=True))
    return {"category": category, "attributes": attributes, "box2d": box, "id": 1}


def frame(name: str, weather: str, labels: Any = None) -> dict[str, Any]:
    attributes = {"weather": weather, "scene": "highway", "timeofday": "night"}
    made = {"name": name, "attributes": attributes, "timestamp": 10000}
    return made if labels is None else made | {"labels": labels}


def write_bdd(root: Path, train: Any, *, old: bool = False) -> Path:
    name = "labels/bdd100k_labels_images_{}.json" if old else "labels/det_20/det_{}.json"
    test = [frame("v.jpg", "clear", [bdd_label("car", 0, 0, 1280, 720)])]
    for part, frames in (("train", train), ("val", test)):
        path = root / name.format(part)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(frames))
        for one in frames if isinstance(frames, list) else ():
            if "name" in one:
                picture(root / "images" / "100k" / part / one["name"], 1280, 720)
    return root


def test_bdd100k(tmp_path: Path) -> None:
    source, out = tmp_path / "bdd", tmp_path / "out" / "bdd100k"
    train = [
        frame(
            "a.jpg",
            "partly cloudy",
            [
                bdd_label("car", 100, 200, 300, 400),
                bdd_label("pedestrian", 10, 20, 30, 60, crowd=True),
                bdd_label("other vehicle", 0, 0, 50, 50),
                {"category": "lane", "poly2d": []},
            ],
        ),
        frame("b.jpg", "rainy"),
    ]
    write_bdd(source, train)
    assert main(["bdd100k", str(source), str(out)]) == 0
    tree = converted(out)
    assert [c["name"] for c in tree["categories"]][:3] == ["pedestrian", "rider", "car"]
    assert len(tree["categories"]) == 10
    assert [image["domain"] for image in tree["images"]] == ["partly cloudy", "rainy"]
    assert tree["images"][0]["timeofday"] == "night"
    assert tree["images"][0]["file_name"] == "../../bdd/images/100k/train/a.jpg"
    assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in tree["annotations"]] == [
        (3, [100, 200, 200, 200], 0),
        (1, [10, 20, 20, 40], 1),
    ]
    dataset = coco_detection(set="bdd100k", root=str(out), size=128)
    assert dataset.card.title == "BDD100K detection"
    assert dataset.card.domains == ("clear", "partly cloudy", "rainy")
    assert dataset.train.extra["domain"].tolist() == [1, 2]
    # A tenth of the size, below 28 rows of grey.
    assert dataset.train.extra["boxes"][0].tolist() == [[10, 48, 30, 68]]
    assert dataset.train.y.tolist() == [2, -1]
    by_time = coco_detection(set="bdd100k", root=str(out), size=128, domain="timeofday")
    assert by_time.card.domains == ("night",)


def test_bdd100k_labels_of_2018(tmp_path: Path) -> None:
    labels = [
        bdd_label(name, 0, 0, 10.5, 20) for name in ("person", "bike", "motor", "traffic light")
    ]
    labels.append({"category": "drivable area", "poly2d": []})
    source = write_bdd(tmp_path / "bdd", [frame("a.jpg", "snowy", labels)], old=True)
    assert main(["bdd100k", str(source), str(tmp_path / "out")]) == 0
    tree = converted(tmp_path / "out")
    names = {c["id"]: c["name"] for c in tree["categories"]}
    wanted = ["pedestrian", "bicycle", "motorcycle", "traffic light"]
    assert [names[a["category_id"]] for a in tree["annotations"]] == wanted
    assert tree["annotations"][0]["bbox"] == [0, 0, 10.5, 20]


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({}, "must hold a list of frames"),
        ([{"attributes": {"weather": "clear"}}], "must have 'name' of type"),
        ([{"name": "a.jpg"}], "must have 'attributes' of type"),
        ([{"name": "a.jpg", "attributes": {}}], "must have 'weather' of type"),
        ([frame("a.jpg", "clear", [{"box2d": {}}])], "must have 'category' of type"),
        (
            [frame("a.jpg", "clear", [{"category": "car", "box2d": {"x1": 0}}])],
            "must have 'y1' of type int or float",
        ),
        (
            [frame("a.jpg", "clear", [bdd_label("car", 0, 0, "b", 1)])],
            "must have 'x2' of type int or float, got 'b'",
        ),
    ],
)
def test_bdd100k_of_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], train: Any, message: str
) -> None:
    source = write_bdd(tmp_path / "bdd", train)
    assert main(["bdd100k", str(source), str(tmp_path / "out")]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert str(source / "labels" / "det_20" / "det_train.json") in shown
    assert not (tmp_path / "out" / "annotations" / "instances_train.json").exists()


def write_cityscapes(root: Path, *, foggy: bool = True) -> Path:
    """Two instances of cars, a group of persons, road and a rider, in 40 x 20 pixels."""
    numbers = np.full((20, 40), 7, np.int32)
    numbers[5:15, 2:12] = 26000
    numbers[8:10, 6:30] = 26001  # before the first car, which stays visible above and below
    numbers[0:4, 30:40] = 24
    numbers[16:20, 20:22] = 25003
    numbers[19, 0] = 29000  # a caravan is not evaluated
    for part, city in (("train", "aachen"), ("val", "ulm")):
        stem = f"{city}_000000_000019"
        folder = root / "gtFine" / part / city
        folder.mkdir(parents=True)
        Image.fromarray(numbers.astype(np.uint16)).save(folder / f"{stem}_gtFine_instanceIds.png")
        picture(root / "leftImg8bit" / part / city / f"{stem}_leftImg8bit.png", 40, 20)
        for beta in ("0.005", "0.02") if foggy else ():
            name = f"{stem}_leftImg8bit_foggy_beta_{beta}.png"
            picture(root / "leftImg8bit_foggy" / part / city / name, 40, 20, 200)
    return root


CITY_BOXES = [
    (1, [30, 0, 10, 4], 1),
    (2, [20, 16, 2, 4], 0),
    (3, [2, 5, 10, 10], 0),
    (3, [6, 8, 24, 2], 0),
]


def test_cityscapes(tmp_path: Path) -> None:
    source, out = write_cityscapes(tmp_path / "city"), tmp_path / "out"
    assert main(["cityscapes", str(source), str(out)]) == 0
    tree = converted(out)
    assert [(i["domain"], i["city"]) for i in tree["images"]] == [
        ("clear", "aachen"),
        ("foggy", "aachen"),
    ]
    assert tree["images"][1]["file_name"].endswith("foggy_beta_0.02.png")
    for identity in (1, 2):
        own = [a for a in tree["annotations"] if a["image_id"] == identity]
        assert [(a["category_id"], a["bbox"], a["iscrowd"]) for a in own] == CITY_BOXES
    dataset = coco_detection(set="cityscapes", root=str(out), size=40)
    assert dataset.card.domains == ("clear", "foggy")
    assert dataset.train.x[:, 20, 0, 0].tolist() == [60, 200]
    boxes = dataset.train.extra["boxes"]
    assert boxes[0].tolist() == [[2, 15, 12, 25], [6, 18, 30, 20], [20, 26, 22, 30]]
    assert (boxes[0] == boxes[1]).all()
    assert dataset.card.classes[:3] == ("person", "rider", "car")


def test_cityscapes_without_fog_and_with_another(tmp_path: Path) -> None:
    source = write_cityscapes(tmp_path / "plain", foggy=False)
    assert main(["cityscapes", str(source), str(tmp_path / "a")]) == 0
    assert [i["domain"] for i in converted(tmp_path / "a")["images"]] == ["clear"]
    source = write_cityscapes(tmp_path / "city")
    assert main(["cityscapes", str(source), str(tmp_path / "b"), "--beta", "0.005"]) == 0
    assert converted(tmp_path / "b", "test")["images"][1]["file_name"].endswith("beta_0.005.png")


def test_cityscapes_with_files_missing_or_broken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["cityscapes", str(tmp_path / "city"), str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "put gtFine and leftImg8bit from cityscapes-dataset.com into" in capsys.readouterr().err
    source = write_cityscapes(tmp_path / "city")
    assert main([*arguments, "--beta", "0.01"]) == 2
    assert "leftImg8bit_foggy_beta_0.01.png is missing" in capsys.readouterr().err
    (path,) = (source / "gtFine" / "val").glob("*/*")
    path.write_bytes(path.read_bytes()[:50])
    assert main(arguments) == 2
    assert f"{path} is no image that can be read" in capsys.readouterr().err


def write_soda(root: Path, weather: str | None = "Rainy") -> Path:
    for part in ("train", "val"):
        picture(root / part / "HT_1.jpg", 1920, 1080)
        image = {"id": 1, "file_name": "HT_1.jpg", "width": 1920, "height": 1080}
        if weather:
            image |= {"city": "Shanghai", "location": "Citystreet", "period": "Night"}
            image |= {"weather": weather}
        box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [192, 96, 960, 480], "iscrowd": 0}
        categories = [
            {"id": i + 1, "name": name}
            for i, name in enumerate(("Pedestrian", "Cyclist", "Car", "Truck", "Tram", "Tricycle"))
        ]
        path = root / "annotations" / f"instance_{part}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        tree = {"images": [image], "annotations": [box], "categories": categories}
        path.write_text(json.dumps(tree))
    return root


@pytest.mark.parametrize("below", ["", "labeled"])
def test_soda10m(tmp_path: Path, below: str) -> None:
    write_soda(tmp_path / "SSLAD-2D" / below)
    assert main(["soda10m", str(tmp_path / "SSLAD-2D"), str(tmp_path / "out")]) == 0
    dataset = coco_detection(set="soda10m", root=str(tmp_path / "out"), size=192)
    assert dataset.card.domains == ("rainy",)
    assert dataset.card.classes[2] == "Car"
    # A tenth, below 42 rows of grey.
    assert np.allclose(dataset.test.extra["boxes"], [[[19.2, 51.6, 115.2, 99.6]]])
    by_city = coco_detection(set="soda10m", root=str(tmp_path / "out"), size=192, domain="city")
    assert by_city.card.domains == ("Shanghai",)


def test_soda10m_of_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_soda(tmp_path / "soda", weather=None)
    arguments = ["soda10m", str(tmp_path / "soda"), str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "instance_train.json must have 'weather' of type str" in capsys.readouterr().err
    (tmp_path / "soda/annotations/instance_train.json").write_text("[]")
    assert main(arguments) == 2
    assert "instance_train.json must hold a JSON object, got list" in capsys.readouterr().err
    (tmp_path / "soda/annotations/instance_train.json").write_text("[")
    assert main(arguments) == 2
    assert "instance_train.json cannot be read as JSON" in capsys.readouterr().err
    (tmp_path / "soda/annotations/instance_train.json").unlink()
    assert main(arguments) == 2
    assert "put an undamaged copy there" in capsys.readouterr().err


def test_an_output_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_soda(tmp_path / "soda")
    (tmp_path / "file").write_text("")
    assert main(["soda10m", str(source), str(tmp_path / "file")]) == 2
    assert f"cannot write {tmp_path / 'file'}" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_command(tmp_path: Path) -> None:
    source = write_soda(tmp_path / "soda")
    command = [sys.executable, "-m", "fedsim.data.loaders.detection_converters"]
    done = subprocess.run(
        [*command, "soda10m", str(source), str(tmp_path / "out")], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"1 images in {tmp_path / 'out' / 'annotations' / f'instances_{part}.json'}"
        for part in ("train", "test")
    ]
    assert subprocess.run([*command, "coco", "a", "b"], capture_output=True).returncode == 2


def test_errors_are_input_errors(tmp_path: Path) -> None:
    from fedsim.data.loaders.detection_converters import convert_bdd100k

    with pytest.raises(InputError, match=r"labels were not found: put .*det_train\.json or "):
        convert_bdd100k(tmp_path, tmp_path / "out")
