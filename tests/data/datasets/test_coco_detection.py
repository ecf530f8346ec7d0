import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.datasets import coco_detection as module
from fedsim.data.datasets.coco_detection import coco_detection
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}]  # classes: dog, cat


def entry(identity: int, width: int = 64, height: int = 64, **more: Any) -> dict[str, Any]:
    name = f"{identity:012}.png"
    return {"id": identity, "file_name": name, "width": width, "height": height, **more}


def box(image: int, category: int, *bbox: float, iscrowd: int = 0) -> dict[str, Any]:
    return {
        "id": 1000 * image + category,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "iscrowd": iscrowd,
    }


def tree(images: list[dict[str, Any]], annotations: list[dict[str, Any]]) -> dict[str, Any]:
    return {"images": images, "annotations": annotations, "categories": CATEGORIES}


TRAIN = tree(
    [entry(5), entry(2, 128, 64), entry(9, 32, 96)],
    [
        box(5, 3, 10, 20, 30, 8.5),
        box(2, 7, 16, 8, 40, 40),
        box(2, 3, 0, 0, 127, 60),
        box(2, 3, 0, 0, 20, 20, iscrowd=1),
    ],
)
TEST = tree([entry(1)], [box(1, 7, 0, 0, 64, 64)])


def write(root: Path, train: Any = TRAIN, test: Any = TEST) -> Path:
    """Write a tiny COCO: image i is full of the grey value i * 10."""
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    for part, content in (("train", train), ("val", test)):
        (root / "annotations" / f"instances_{part}2017.json").write_text(json.dumps(content))
        (root / f"{part}2017").mkdir(exist_ok=True)
        for image in content["images"] if isinstance(content, dict) else ():
            pixels = np.full((int(image["height"]), int(image["width"]), 3), image["id"] * 10)
            Image.fromarray(pixels.astype(np.uint8)).save(
                root / f"{part}2017" / image["file_name"], format="PNG"
            )
    return root


def test_images_and_boxes_are_letterboxed(tmp_path: Path) -> None:
    dataset = coco_detection(root=str(write(tmp_path / "data")), size=64)
    x, extra = dataset.train.x, dataset.train.extra
    assert isinstance(x, np.memmap)
    assert x.shape == (3, 64, 64, 3)
    assert (x[0] == 50).all()
    # 128 x 64 becomes 64 x 32, with 16 rows of grey above and below.
    assert (x[1, 16:48] == 20).all()
    assert (x[1, :16] == 114).all()
    assert (x[1, 48:] == 114).all()
    # 32 x 96 becomes 21 x 64: 21 columns of grey on the left, 22 on the right.
    assert (x[2, :, 21:42] == 90).all()
    assert (x[2, :, :21] == 114).all()
    assert (x[2, :, 42:] == 114).all()
    assert extra["boxes"].tolist() == [
        [[10, 20, 40, 28.5], [0, 0, 0, 0]],
        [[0, 16, 63.5, 46], [8, 20, 28, 40]],  # halved, 16 lower; the largest first
        [[0, 0, 0, 0], [0, 0, 0, 0]],
    ]
    assert extra["box_labels"].tolist() == [[0, -1], [0, 1], [-1, -1]]
    assert dataset.train.y.tolist() == [0, 0, -1]
    assert dataset.test.y.tolist() == [1]
    assert dataset.card.classes == ("dog", "cat")
    assert (dataset.card.kind, dataset.card.domains) == ("detection", ())
    assert "1 crowd regions, 0 boxes" in dataset.card.description
    pixels = x / 255
    assert np.allclose(dataset.card.mean, pixels.mean((0, 1, 2)))
    assert np.allclose(dataset.card.std, pixels.std((0, 1, 2)))


def test_boxes_that_leave_the_image(tmp_path: Path) -> None:
    train = tree(
        [entry(1)],
        [
            box(1, 3, -10, 50, 30, 40),  # clipped to 0..20 and 50..64
            box(1, 3, 63.5, 0, 20, 20),  # half a pixel is inside
            box(1, 3, 70, 0, 20, 20),
            box(1, 3, 5, 5, 0, 10),
            box(1, 3, 5, 5, -4, 10),
            box(1, 7, 5, 5, 1, 1),
        ],
    )
    dataset = coco_detection(root=str(write(tmp_path / "data", train)), size=64)
    assert dataset.train.extra["boxes"].tolist() == [[[0, 50, 20, 64], [5, 5, 6, 6]]]
    assert dataset.train.extra["box_labels"].tolist() == [[0, 1]]
    assert "0 crowd regions, 4 boxes outside" in dataset.card.description


def test_some_classes_some_boxes_some_images(tmp_path: Path) -> None:
    root = str(write(tmp_path / "data"))
    cats = coco_detection(root=root, size=64, classes=["cat"])
    assert cats.card.classes == ("cat",)
    assert cats.train.extra["boxes"].tolist() == [[[0] * 4], [[8, 20, 28, 40]], [[0] * 4]]
    assert cats.train.y.tolist() == [-1, 0, -1]
    one = coco_detection(root=root, size=64, max_boxes=1)
    assert one.train.extra["boxes"][1].tolist() == [[0, 16, 63.5, 46]]
    assert coco_detection(root=root, size=64, limit=2).train.y.tolist() == [0, 0]


def test_domains(tmp_path: Path) -> None:
    train = tree([entry(1, domain="snow", city="Rome"), entry(2, domain="fog", city="Bonn")], [])
    test = tree([entry(3, domain="rain", city="Rome")], [])
    root = str(write(tmp_path / "data", train, test))
    dataset = coco_detection(root=root, size=64)
    assert dataset.card.domains == ("fog", "rain", "snow")
    assert dataset.train.extra["domain"].tolist() == [2, 0]
    assert dataset.test.extra["domain"].tolist() == [1]
    assert dataset.train.y.tolist() == [-1, -1]
    by_city = coco_detection(root=root, size=64, domain="city")
    assert by_city.card.domains == ("Bonn", "Rome")
    assert by_city.train.extra["domain"].tolist() == [1, 0]


def test_some_domains_and_the_first_of_each(tmp_path: Path) -> None:
    weathers = ["snow", "fog", "snow", "rain", "snow", "fog"]
    train = tree([entry(i + 1, domain=w) for i, w in enumerate(weathers)], [])
    test = tree([entry(7 + i, domain=w) for i, w in enumerate(["snow", "rain", "fog", "fog"])], [])
    root = str(write(tmp_path / "data", train, test))
    some = coco_detection(root=root, size=64, domains=["snow", "fog"])
    assert some.card.domains == ("fog", "snow")
    assert (some.train.x[:, 0, 0, 0] // 10).tolist() == [1, 2, 3, 5, 6]
    assert some.test.extra["domain"].tolist() == [1, 0, 0]
    first = coco_detection(root=root, size=64, domains=["snow", "fog"], per_domain=1)
    assert (first.train.x[:, 0, 0, 0] // 10).tolist() == [1, 2]
    assert len(first.test) == 3
    with pytest.raises(InputError, match=r"domains must be domains of .* Did you mean 'snow'"):
        coco_detection(root=root, size=64, domains=["snwo"])
    with pytest.raises(InputError, match=r"dataset\.per_domain must be >= 1"):
        coco_detection(root=root, size=64, per_domain=0)
    plain = str(write(tmp_path / "plain"))
    with pytest.raises(InputError, match="need images with domains"):
        coco_detection(root=plain, size=64, per_domain=2)


def test_own_paths_and_the_usual_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "own" / "coco")
    (root / "mine.json").write_text(json.dumps(TEST))
    paths = {"train_annotations": "mine.json", "train_images": "val2017"}
    assert coco_detection(root=str(root), size=64, **paths).train.y.tolist() == [1]
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "own"))
    assert coco_detection(size=64).train.y.tolist() == [0, 0, -1]


def test_read_once_until_the_annotations_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = write(tmp_path / "data")
    coco_detection(root=str(root), size=64)
    read = module.read_coco
    monkeypatch.setattr(module, "read_coco", None)
    assert len(coco_detection(root=str(root), size=64).train) == 3
    monkeypatch.setattr(module, "read_coco", read)
    write(root, TEST | {"images": [*TEST["images"], entry(4)]})
    assert len(coco_detection(root=str(root), size=64).train) == 2


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        (None, "cocodataset.org"),
        ("bdd100k", "detection_converters bdd100k SRC"),
        ("cityscapes", "detection_converters cityscapes SRC"),
        ("soda10m", "detection_converters soda10m SRC"),
    ],
)
def test_missing_files(tmp_path: Path, name: Any, advice: str) -> None:
    with pytest.raises(InputError) as caught:
        coco_detection(set=name)
    folder = tmp_path / "home/.fedsim/data" / (name or "coco")
    year = "" if name else "2017"
    assert f"not found in {folder}" in str(caught.value)
    assert f"{folder}/annotations/instances_train{year}.json" in str(caught.value)
    assert advice in str(caught.value)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ([], "must hold a JSON object, got list"),
        ({"images": [], "annotations": []}, "must have a list 'categories'"),
        (TRAIN | {"images": {}}, "must have a list 'images'"),
        (TRAIN | {"annotations": None}, "must have a list 'annotations'"),
        (tree([], []), "must list images, got 0"),
        (TRAIN | {"categories": []}, "must list categories, got 0"),
        (
            TRAIN | {"categories": [{"id": 1}]},
            r"categories\[0\] of .* must have 'name' of type str",
        ),
        (TRAIN | {"categories": CATEGORIES * 2}, r"categories\[2\]: ids of categories must differ"),
        (
            TRAIN | {"categories": [*CATEGORIES, {"id": 1, "name": "cat"}]},
            "names of categories must differ, got 'cat'",
        ),
        (tree([entry(1), entry(1)], []), r"images\[1\]: ids of images must differ, got 1"),
        (
            tree([entry(1) | {"width": None}], []),
            r"images\[0\] of .* must have 'width' of type int or float",
        ),
        (tree([entry(1) | {"height": -1}], []), r"images\[0\]: sizes must be >= 1"),
        (
            tree([{"id": 1, "width": 4, "height": 4}], []),
            r"images\[0\] of .* must have 'file_name'",
        ),
        (tree([entry(1)], [box(2, 3, 0, 0, 5, 5)]), r"annotations\[0\]: image_id must be.*got 2"),
        (
            tree([entry(1)], [box(1, 8, 0, 0, 5, 5)]),
            r"category_id must be one of \[3, 7\], got 8",
        ),
        (tree([entry(1)], [box(1, 3, 0, 0, 5)]), "four finite numbers"),
        (tree([entry(1)], [box(1, 3, 0, 0, float("nan"), 5)]), "bbox must be four finite numbers"),
        (tree([entry(1)], [box(1, 3, 0, 0, 5, 5) | {"bbox": ["a"] * 4}]), "four finite numbers"),
        (tree([entry(1)], [box(1, 3, 0, 0, 10**400, 5)]), r"annotations\[0\]: bbox must be four"),
        (tree([entry(1) | {"width": 10**400}], []), r"images\[0\]: sizes must be >= 1 and finite"),
        (tree([entry(1) | {"height": math.inf}], []), r"images\[0\]: sizes must be >= 1 and fin"),
        (
            tree([entry(1, domain="fog"), entry(2)], []),
            r"every image or none must have the key 'domain'.*got \['000000000002.png'\]",
        ),
        (
            tree([entry(1, domain="fog")], []),
            "must both have domains or neither",
        ),
        (
            TRAIN | {"categories": [*CATEGORIES, {"id": 9, "name": "bird"}]},
            r"must have the same categories \['dog', 'cat', 'bird'\].*got \['dog', 'cat'\]",
        ),
    ],
)
def test_annotations_of_another_format(tmp_path: Path, train: Any, message: str) -> None:
    root = write(tmp_path / "data", TRAIN)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(train))
    with pytest.raises(InputError, match=message) as caught:
        coco_detection(root=str(root), size=64)
    assert "instances_train2017.json" in str(caught.value)


def test_boxes_as_large_as_a_float_holds_are_clipped(tmp_path: Path) -> None:
    """The right side, 10^308 + 10^308, is more than a float holds; the image ends at 64."""
    far = [box(1, 3, 4, 6, 10**308, 1e308), box(1, 7, 10**308, 0, 10**308, 9)]
    root = write(tmp_path / "data", tree([entry(1)], far))
    dataset = coco_detection(root=str(root), size=64)
    assert dataset.train.extra["boxes"][0].tolist()[0] == [4, 6, 64, 64]
    assert dataset.train.extra["box_labels"][0].max() == 0
    assert "1 boxes outside" in dataset.card.description


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe{}", b"<html></html>"])
def test_annotations_that_are_not_json(tmp_path: Path, content: bytes) -> None:
    root = write(tmp_path / "data")
    (root / "annotations" / "instances_val2017.json").write_bytes(content)
    with pytest.raises(
        InputError, match=r"instances_val2017\.json (cannot be read as JSON|is not UTF-8)"
    ):
        coco_detection(root=str(root), size=64)


@pytest.mark.parametrize("damage", ["missing", "cut", "html", "size"])
def test_a_broken_image_is_refused_or_left_out(tmp_path: Path, damage: str) -> None:
    root = write(tmp_path / "data")
    path = root / "train2017" / "000000000002.png"
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:60])
    elif damage == "html":
        path.write_bytes(b"<html>not found</html>")
    else:
        Image.new("RGB", (64, 128)).save(path)
    message = r"width and height.* 128 x 64; .*got \(64, 128\)" if damage == "size" else "no image"
    with pytest.raises(InputError, match=message) as caught:
        coco_detection(root=str(root), size=64)
    assert str(path) in str(caught.value)
    assert not list((tmp_path / "cache").glob("coco*"))  # nothing half built
    dataset = coco_detection(root=str(root), size=64, broken="skip")
    assert dataset.train.x[:, 32, 32, 0].tolist() == [50, 90]
    assert dataset.train.y.tolist() == [0, -1]
    assert "1 unreadable images" in dataset.card.description


def test_no_image_can_be_read(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    (root / "val2017" / "000000000001.png").unlink()
    with pytest.raises(InputError, match=r"an image of .*instances_val2017\.json must be readable"):
        coco_detection(root=str(root), size=64, broken="skip")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 16}, r"dataset\.size must be in 32\.\.2048, got 16"),
        ({"max_boxes": 0}, r"dataset\.max_boxes must be >= 1"),
        ({"limit": 0}, r"dataset\.limit must be >= 1"),
        ({"classes": ["dogs"]}, r"dataset\.classes must be .*Did you mean 'dog'\?, got 'dogs'"),
        ({"classes": []}, r"dataset\.classes must name at least one"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    root = str(write(tmp_path / "data"))
    with pytest.raises(InputError, match=message):
        coco_detection(**{"root": root, "size": 64, **options})


def test_more_images_than_are_read_at_once(tmp_path: Path) -> None:
    count = 150
    train = tree([entry(i % 25 + 100 * i, 32, 32) for i in range(count)], [])
    root = write(tmp_path / "data", train)
    for i, image in enumerate(train["images"]):
        path = root / "train2017" / image["file_name"]
        Image.new("RGB", (32, 32), (i, 0, 0)).save(path)
    dataset = coco_detection(root=str(root), size=32)
    assert dataset.train.x[:, 0, 0, 0].tolist() == list(range(count))
