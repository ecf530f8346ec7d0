import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedsim.data.dataset import Split
from fedsim.data.datasets.hub import hub
from fedsim.errors import InputError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def picture(red: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    return Image.new("RGB", size, (red, 100, 200))


def table(count: int = 3, first: int = 0, **columns: list[Any]) -> Any:
    """Pictures of the reds first, first + 1, ... with the labels 1, 0, 1, ... of cat and dog."""
    data = {
        "image": [picture(first + i) for i in range(count)],
        "label": [(i + 1) % 2 for i in range(count)],
        **columns,
    }
    made = datasets.Dataset.from_dict(data).cast_column("image", datasets.Image())
    return made.cast_column("label", datasets.ClassLabel(names=["cat", "dog"]))


@pytest.fixture
def saved(tmp_path: Path) -> str:
    folder = tmp_path / "data"
    datasets.DatasetDict(train=table(3), test=table(2, 50)).save_to_disk(str(folder))
    return str(folder)


def reds(split: Split | None) -> list[int]:
    assert split is not None
    return [int(v) for v in split.x[:, 0, 0, 0]]


def test_saved_data_set(saved: str) -> None:
    dataset = hub(path=saved)
    assert dataset.train.x.shape == (3, 4, 6, 3)
    assert dataset.train.x[2].reshape(-1, 3).tolist() == [[2, 100, 200]] * 24
    assert (reds(dataset.train), dataset.train.y.tolist()) == ([0, 1, 2], [1, 0, 1])
    assert (reds(dataset.test), dataset.test.y.tolist()) == ([50, 51], [1, 0])
    assert dataset.card.classes == ("cat", "dog")
    assert dataset.card.input_shape == (3, 4, 6)
    assert dataset.card.mean == pytest.approx((1 / 255, 100 / 255, 200 / 255))
    assert dataset.card.kind == "image"
    assert dataset.validation is None
    assert isinstance(dataset.train.x, np.memmap)


def test_second_opening_needs_no_package(saved: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(path=saved)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert len(hub(path=saved).train) == 3
    with pytest.raises(InputError, match=r"pip install 'fedsim\[hub\]'"):
        hub(path=saved, size=8)


def test_parquet_files_with_domains_and_owners(tmp_path: Path) -> None:
    folder = tmp_path / "pq"
    folder.mkdir()
    train = table(4, camera=["b", "a", "b", "c"], writer=[70, 5, 70, 6])
    train.to_parquet(str(folder / "train-0.parquet"))
    table(1, 9, camera=["a"], writer=[8]).to_parquet(str(folder / "validation-0.parquet"))
    dataset = hub(
        path=str(folder),
        domain="camera",
        owner="writer",
        test="validation",
        validation="train[:2]",
        size=8,
        channels=1,
    )
    assert dataset.card.domains == ("a", "b", "c")
    assert dataset.train.extra["domain"].tolist() == [1, 0, 1, 2]
    # The writers of all splits, sorted: 5, 6, 8, 70.
    assert dataset.train.extra["owner"].tolist() == [3, 0, 3, 1]
    assert dataset.test.extra["owner"].tolist() == [2]
    assert dataset.train.x.shape == (4, 8, 8, 1)
    assert dataset.validation is not None
    assert len(dataset.validation) == 2


def test_folder_of_images(tmp_path: Path) -> None:
    for i, (part, name) in enumerate(
        (("train", "cat"), ("train", "dog"), ("test", "cat"), ("test", "dog"))
    ):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True)
        picture(i).save(folder / "1.png")
    dataset = hub(path=str(tmp_path / "images"))
    assert dataset.card.classes == ("cat", "dog")
    assert (reds(dataset.train), dataset.train.y.tolist()) == ([0, 1], [0, 1])
    assert reds(dataset.test) == [2, 3]


def test_texts_become_tokens(tmp_path: Path) -> None:
    lines = ["topic,body", "sport,A goal! A goal", "politics,a vote"]
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train.csv").write_text("\n".join(lines))
    (folder / "test.csv").write_text("topic,body\nsport,vote for a goal now")
    dataset = hub(path=str(folder), image=None, text="body", label="topic", length=4)
    # The words by number and letter: a 3, goal 2, ! 1, vote 1.
    assert dataset.vocabulary == ("", "<unk>", "a", "goal", "!", "vote")
    assert dataset.train.x.dtype == np.int32
    assert dataset.train.x.tolist() == [[2, 3, 4, 2], [2, 5, 0, 0]]
    assert dataset.test.x.tolist() == [[5, 1, 2, 3]]
    assert dataset.card.classes == ("politics", "sport")
    assert dataset.train.y.tolist() == [1, 0]
    assert (dataset.card.kind, dataset.card.input_shape) == ("text", (4, 6))
    assert dataset.card.mean == ()
    small = hub(path=str(folder), image=None, text="body", label="topic", length=4, vocabulary=3)
    assert small.train.x.tolist() == [[2, 1, 1, 2], [2, 1, 0, 0]]


def test_pairs_of_images_and_texts(tmp_path: Path) -> None:
    made = table(2, text=["a café", "a dog"])
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "data"))
    dataset = hub(path=str(tmp_path / "data"), text="text", length=3)
    assert dataset.card.kind == "image-text"
    assert dataset.card.text_shape == (3, 5)
    assert dataset.vocabulary == ("", "<unk>", "a", "café", "dog")
    assert dataset.train.extra["tokens"].tolist() == [[2, 3, 0], [2, 4, 0]]
    assert [t.decode() for t in dataset.train.extra["text"]] == ["a café", "a dog"]
    assert reds(dataset.train) == [0, 1]


def test_test_part_is_held_out_where_there_is_none(tmp_path: Path) -> None:
    table(20).save_to_disk(str(tmp_path / "one"))
    one = hub(path=str(tmp_path / "one"), test=None, test_share=0.3)
    assert np.bincount(one.test.y).tolist() == [3, 3]
    assert sorted(reds(one.train) + reds(one.test)) == list(range(20))
    assert one.train.y.tolist() == [(red + 1) % 2 for red in reds(one.train)]
    other = hub(path=str(tmp_path / "one"), test=None, test_share=0.3, split_seed=1)
    assert reds(other.test) != reds(one.test)
    with pytest.raises(InputError, match=r"no split 'test': it is one table, called train"):
        hub(path=str(tmp_path / "one"))


def test_changed_files_are_read_again(tmp_path: Path) -> None:
    folder = tmp_path / "csv"
    folder.mkdir()
    (folder / "train.csv").write_text("label,text\n0,a")
    options: dict[str, Any] = {
        "path": str(folder),
        "image": None,
        "text": "text",
        "test": "train",
    }
    assert hub(**options).train.y.tolist() == [0]
    (folder / "train.csv").write_text("label,text\n0,a\n1,b")
    assert hub(**options).train.y.tolist() == [0, 1]


# --- errors ---


def test_hub_that_cannot_be_reached() -> None:
    with pytest.raises(InputError) as caught:
        hub(path="nobody/nothing-of-this-name")
    message = str(caught.value)
    assert message.startswith("train of nobody/nothing-of-this-name cannot be opened (Conn")
    assert "that the hub can be reached" in message


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no .*nowhere"):
        hub(path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "img"}, r"train of .* has no column 'img', only image, label.*mean 'image'"),
        ({"label": "labels"}, r"has no column 'labels', only image, label.*mean 'label'"),
        ({"domain": "camera"}, r"has no column 'camera'"),
        ({"image": "label"}, r"column 'label' of train of .* must hold images, got ClassLabel"),
        ({"label": "image"}, r"column 'image' of train of .* must hold whole numbers or texts"),
        ({"text": "label"}, r"column 'label' of train of .* must hold texts, got '1' in row 0"),
        ({"test": "val"}, r"no split 'val', only train, test.*name the splits in dataset\.train"),
        ({"image": None}, r"dataset\.image or dataset\.text must be set"),
        ({"size": 0}, r"dataset\.size must be at least 1"),
        ({"channels": 2}, r"dataset\.channels must be 1 or 3"),
        ({"length": 0}, r"dataset\.length must be at least 1"),
        ({"test": None, "test_share": 1.0}, r"dataset\.test_share must be in \(0, 1\)"),
    ],
)
def test_wrong_options(saved: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hub(path=saved, **options)


def save(tmp_path: Path, **columns: Any) -> str:
    made = datasets.Dataset.from_dict(columns)
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "bad"))
    return str(tmp_path / "bad")


def test_unlabelled_split_is_refused(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [-1, -1]}).cast_column(
        "label", datasets.ClassLabel(names=["x"])
    )
    datasets.DatasetDict(train=made, test=made).save_to_disk(str(tmp_path / "bad"))
    with pytest.raises(InputError, match=r"must be in 0\.\.0, got -1; choose a split with labels"):
        hub(path=str(tmp_path / "bad"), image=None, text="text")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": [0, None], "text": ["a", "b"]}, r"numbers or texts, got None in row 1"),
        ({"label": [0, 1], "text": ["a", None]}, r"must hold texts, got 'None' in row 1"),
        ({"label": [0.5, 1.0], "text": ["a", "b"]}, r"whole numbers or texts, got 0\.5 in row 0"),
    ],
)
def test_missing_values(tmp_path: Path, columns: dict[str, list[Any]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        hub(path=save(tmp_path, **columns), image=None, text="text")


def test_split_without_rows(tmp_path: Path) -> None:
    made = datasets.Dataset.from_dict({"label": [1], "text": ["a"]})
    (tmp_path / "pq").mkdir()
    made.select([]).to_parquet(str(tmp_path / "pq" / "train.parquet"))
    with pytest.raises(InputError, match=r"train of .* cannot be opened .* no data"):
        hub(path=str(tmp_path / "pq"), image=None, text="text")


def test_broken_and_unequal_images_name_the_row(tmp_path: Path) -> None:
    whole = (tmp_path / "1.png", tmp_path / "2.png")
    for path, size in zip(whole, ((6, 4), (4, 4)), strict=True):
        picture(9, size).save(path)
    good, other = (path.read_bytes() for path in whole)
    for second, message in (
        (good[:40], r"row 1 of train of .* is no image that can be read"),
        (None, r"row 1 of train of .* has no image"),
        (other, r"row 1 of train of .* must have the shape \(4, 6, 3\).*got \(4, 4, 3\)"),
    ):
        bad = save(tmp_path / str(second is None), image=[good, second], label=[0, 1])
        with pytest.raises(InputError, match=message):
            hub(path=bad)
    assert hub(path=bad, size=4).train.x.shape == (2, 4, 4, 3)


@pytest.mark.parametrize(
    ("name", "content"), [("train.parquet", b"PAR1xx"), ("train.csv", b"label,text\n0,\xff\xfe\n")]
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / name).write_bytes(content)
    with pytest.raises(InputError, match=r"train of .*data cannot be opened"):
        hub(path=str(tmp_path / "data"), image=None, text="text")
