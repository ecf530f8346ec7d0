import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.datasets.captions import captions
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

Json = dict[str, Any]


def picture(path: Path, red: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (red, 0, 0)).save(path.with_suffix(".png"))
    path.with_suffix(".png").rename(path)  # lossless, under the name of the annotations


def write_json(path: Path, data: Json) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))


def coco_json(numbers: list[int]) -> Json:
    """Annotations as in COCO: image n has the captions "n one" and "n two", not side by side."""
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": [
            {"id": n, "file_name": f"{n:012}.jpg", "height": 6, "width": 8, "license": 1}
            for n in numbers
        ],
        "annotations": [
            {"id": 10 * n + i, "image_id": n, "caption": f"{n}  {word}\n"}
            for i, word in enumerate(("one", "two"))
            for n in reversed(numbers)
        ],
    }


def coco(root: Path, year: int = 2017, train: tuple[int, ...] = (5, 3), below: str = "") -> str:
    for part, numbers in ((f"train{year}", list(train)), (f"val{year}", [9])):
        write_json(root / "annotations" / f"captions_{part}.json", coco_json(numbers))
        for n in numbers:
            picture(root / below / part / f"{n:012}.jpg", 10 * n)
    return str(root)


def karpathy_json(folders: bool) -> Json:
    """As in Karpathy's files: image i has i + 1 captions; only COCO's have folders."""
    images = []
    for i, split in enumerate(["test", "train", "restval", "val", "train"]):
        raw = [f"image {i} text {j}." for j in range(i + 1)]
        image = {
            "sentids": list(range(i + 1)),
            "imgid": i,
            "sentences": [{"raw": r, "tokens": r.split(), "imgid": i, "sentid": 0} for r in raw],
            "split": split,
            "filename": f"{i}.jpg",
        }
        if folders:
            image |= {"filepath": "val2014" if i % 2 else "train2014", "cocoid": 100 + i}
        images.append(image)
    return {"images": images, "dataset": "coco" if folders else "flickr30k"}


def flickr(root: Path) -> str:
    write_json(root / "dataset_flickr30k.json", karpathy_json(folders=False))
    for i in range(5):
        picture(root / "flickr30k-images" / f"{i}.jpg", i)
    return str(root)


@pytest.mark.parametrize(("year", "below"), [(2017, ""), (2014, "images")])
def test_coco_has_a_row_for_each_image(tmp_path: Path, year: int, below: str) -> None:
    dataset = captions(root=coco(tmp_path / "data", year, below=below), size=(4, 5), length=3)
    assert dataset.name == "coco"
    assert dataset.train.x.shape == (2, 4, 5, 3)
    assert dataset.train.x[:, 0, 0].tolist() == [[50, 0, 0], [30, 0, 0]]
    assert dataset.train.extra["text"].tolist() == [b"5 one", b"3 one"]
    assert dataset.train.extra["group"].tolist() == [5, 3]
    assert dataset.test.extra["text"].tolist() == [b"9 one"]
    assert dataset.test.x[0, 0, 0].tolist() == [90, 0, 0]
    assert dataset.vocabulary == ("", "<unk>", "one", "3", "5")
    assert dataset.train.extra["tokens"].tolist() == [[4, 2, 0], [3, 2, 0]]
    assert dataset.test.extra["tokens"].tolist() == [[1, 2, 0]]
    assert dataset.train.y.tolist() == [0, 0]
    assert (dataset.card.kind, dataset.card.classes) == ("image-text", ("image-text",))
    assert (dataset.card.input_shape, dataset.card.text_shape) == ((3, 4, 5), (3, 5))
    assert dataset.validation is None
    assert isinstance(dataset.train.x, np.memmap)


def test_coco_has_a_row_for_each_caption(tmp_path: Path) -> None:
    dataset = captions(root=coco(tmp_path / "data"), rows="caption", size=(2, 2))
    assert dataset.train.extra["text"].tolist() == [b"5 one", b"5 two", b"3 one", b"3 two"]
    assert dataset.train.extra["group"].tolist() == [5, 5, 3, 3]
    assert dataset.train.x[:, 0, 0, 0].tolist() == [50, 50, 30, 30]
    few = captions(root=str(tmp_path / "data"), rows="caption", size=(2, 2), limit=1)
    assert few.train.extra["text"].tolist() == [b"5 one", b"5 two"]


def test_flickr30k_has_three_splits(tmp_path: Path) -> None:
    dataset = captions(set="flickr30k", root=flickr(tmp_path / "data"), size=(2, 2))
    assert dataset.name == "flickr30k"
    assert dataset.train.extra["group"].tolist() == [1, 2, 4]
    assert dataset.train.extra["text"].tolist() == [
        f"image {i} text 0.".encode() for i in (1, 2, 4)
    ]
    assert dataset.train.x[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert dataset.validation is not None
    assert dataset.validation.extra["group"].tolist() == [3]
    assert dataset.test.extra["text"].tolist() == [b"image 0 text 0."]
    every = captions(set="flickr30k", root=str(tmp_path / "data"), rows="caption", size=(2, 2))
    assert every.train.extra["group"].tolist() == [1, 1, 2, 2, 2, 4, 4, 4, 4, 4]
    assert every.validation is not None
    assert every.validation.extra["group"].tolist() == [3, 3, 3, 3]
    scored = captions(
        set="flickr30k", root=str(tmp_path / "data"), test_rows="caption", size=(2, 2)
    )
    assert scored.train.extra["group"].tolist() == [1, 2, 4]
    assert scored.validation is not None
    assert scored.validation.extra["group"].tolist() == [3, 3, 3, 3]
    assert scored.test.extra["text"].tolist() == [b"image 0 text 0."]


def test_what_is_scored_may_have_one_row_an_image(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    dataset = captions(root=root, rows="caption", test_rows="image", size=(2, 2))
    both = captions(root=root, rows="caption", size=(2, 2))
    assert len(both.test) == 2 * len(dataset.test)
    assert dataset.test.extra["group"].tolist() == both.test.extra["group"][::2].tolist()
    assert dataset.train.extra["group"].tolist() == [5, 5, 3, 3]


def test_coco_in_karpathys_splits(tmp_path: Path) -> None:
    root = tmp_path / "home/.fedsim/data/coco-karpathy"
    write_json(root / "dataset_coco.json", karpathy_json(folders=True))
    for i in range(5):
        picture(root / ("val2014" if i % 2 else "train2014") / f"{i}.jpg", i)
    dataset = captions(set="coco-karpathy", size=(2, 2))
    assert dataset.train.extra["group"].tolist() == [101, 102, 104]
    assert dataset.train.x[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert dataset.validation is not None
    assert dataset.validation.extra["group"].tolist() == [103]
    # A picture that is replaced by another file is read anew.
    (root / "val2014/1.jpg").unlink()
    picture(root / "val2014/1.jpg", 9)
    assert captions(set="coco-karpathy", size=(2, 2)).train.x[:, 0, 0, 0].tolist() == [9, 2, 4]


def test_images_without_captions_are_counted(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    data = coco_json([5, 3])
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] != 3]
    write_json(tmp_path / "data/annotations/captions_train2017.json", data)
    dataset = captions(root=root, size=(2, 2))
    assert dataset.train.extra["group"].tolist() == [5]
    assert dataset.card.description.endswith(" 1 images without captions were left out.")


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        captions()
    folder = tmp_path / "home/.fedsim/data/coco"
    assert f"COCO captions was not found in {folder}: get the images" in str(caught.value)
    assert "annotations/captions_train2017.json" in str(caught.value)
    with pytest.raises(InputError, match=r"Flickr30k was not found .*dataset_flickr30k\.json"):
        captions(set="flickr30k")
    root = coco(tmp_path / "data")
    (tmp_path / "data/annotations/captions_val2017.json").unlink()
    with pytest.raises(InputError, match=r"not complete: put annotations/captions_val2017\.json"):
        captions(root=root)


def test_missing_images_are_told(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    image = tmp_path / "data/train2017/000000000003.jpg"
    image.unlink()
    with pytest.raises(InputError, match=rf"1 of 2 images are missing, the first is {image}"):
        captions(root=root)
    image.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"no folder .*train2017 or .*images/train2017: get"):
        captions(root=root)


def test_an_unreadable_image_is_told(tmp_path: Path) -> None:
    root = coco(tmp_path / "data")
    image = tmp_path / "data/train2017/000000000003.jpg"
    image.write_bytes(b"<html>")
    with pytest.raises(InputError, match=rf"{image} is no image"):
        captions(root=root)


def _change(key: str, number: int, field: str, value: object) -> Callable[[Json], None]:
    return lambda data: data[key][number].update({field: value})


def _twice(data: Json) -> None:
    data["images"].append(data["images"][0])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change("annotations", 1, "image_id", 77), r"annotations\[1\] of .* of the image 77"),
        (_change("annotations", 1, "caption", 5), r"annotations\[1\] of .* 'caption' of type str"),
        (_change("images", 1, "id", "5"), r"images\[1\] of .* 'id' of type int, got '5'"),
        (lambda data: data.pop("annotations"), r"must have a list 'annotations'"),
        (_twice, r"lists an image twice"),
    ],
)
def test_damaged_coco_files(tmp_path: Path, damage: Callable[[Json], None], message: str) -> None:
    root = coco(tmp_path / "data")
    data = coco_json([5, 3])
    damage(data)
    path = tmp_path / "data/annotations/captions_train2017.json"
    write_json(path, data)
    with pytest.raises(InputError, match=message) as caught:
        captions(root=root)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_change("images", 2, "split", "dev"), r"split of .*images\[2\] must be one of .*'dev'"),
        (_change("images", 2, "sentences", [{}]), r"sentences\[0\] of .*images\[2\] must have"),
        (_change("images", 2, "imgid", "x"), r"'imgid' of .*images\[2\] must be a whole number"),
        (_change("images", 3, "split", "test"), r"has no validation images"),
    ],
)
def test_damaged_karpathy_files(
    tmp_path: Path, damage: Callable[[Json], None], message: str
) -> None:
    root = flickr(tmp_path / "data")
    data = karpathy_json(folders=False)
    damage(data)
    write_json(tmp_path / "data/dataset_flickr30k.json", data)
    with pytest.raises(InputError, match=message):
        captions(set="flickr30k", root=root)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"set": "flickr8k"}, r"dataset\.set must be one of coco, coco-karpathy, flickr30k"),
        ({"rows": "images"}, r"dataset\.rows must be one of"),
        ({"test_rows": "images"}, r"dataset\.test_rows must be one of"),
        ({"limit": 0}, r"dataset\.limit must be >= 1"),
        ({"size": (0, 4)}, r"dataset\.size must be >= 1"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        captions(**options)
