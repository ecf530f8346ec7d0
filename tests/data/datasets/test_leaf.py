import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.datasets.leaf import SETS, leaf
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")


def image(ink: float) -> list[float]:
    """White but for row 1, column 2."""
    pixels = [1.0] * 784
    pixels[30] = ink
    return pixels


def content(**users: tuple[list[Any], list[Any]]) -> dict[str, Any]:
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }


def write(root: Path, **files: Any) -> Path:
    """Write train_0=... into train/train_0.json; text as it is."""
    for name, value in files.items():
        path = root / name.partition("_")[0] / f"all_data_{name}_keep_0.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value if isinstance(value, str) else json.dumps(value))
    return root


def femnist(root: Path) -> Path:
    return write(
        root,
        train_0=content(f1=([image(0.0), image(0.2)], [0, 61]), f0=([image(0.1)], [10])),
        train_1=content(f9=([image(0.5)], [36])),
        test_0=content(f0=([image(0.3)], [10]), f7=([image(1.0)], [5])),
    )


def test_femnist(tmp_path: Path) -> None:
    dataset = leaf(root=str(femnist(tmp_path / "data")))
    assert dataset.train.x.shape == (4, 28, 28, 1)
    # 0.2 is 51, 0.1 is 25.5 in floating point and goes to even, 0.5 is 127.5 likewise.
    assert dataset.train.x[:, 1, 2, 0].tolist() == [0, 51, 26, 128]
    assert set(dataset.train.x[:, 2, 1, 0].tolist()) == {255}
    assert dataset.train.y.tolist() == [0, 61, 10, 36]
    assert [dataset.card.classes[i] for i in (0, 61, 10, 36)] == ["0", "z", "A", "a"]
    # The users of both parts, sorted: f0, f1, f7, f9.
    assert dataset.train.extra["owner"].tolist() == [1, 1, 0, 3]
    assert dataset.test.extra["owner"].tolist() == [0, 2]
    mean = (255 * 784 * 4 - (255 * 4 - (0 + 51 + 26 + 128))) / (784 * 4 * 255)
    assert dataset.card.mean == pytest.approx((mean,))
    assert isinstance(dataset.train.x, np.memmap)


def test_root_may_be_the_folder_above(tmp_path: Path) -> None:
    femnist(tmp_path / "home/.fedsim/data/femnist/data")
    assert len(leaf().train) == 4


def test_shakespeare(tmp_path: Path) -> None:
    text = "\n !" + "z" * 75 + "é}"
    root = write(
        tmp_path / "data",
        train_0=content(HAMLET=([text, "a" * 80, "b" * 80], ["}", "é", " "])),
        test_0=content(HAMLET=(["c" * 80], ["\n"])),
    )
    dataset = leaf(set="shakespeare", root=str(root))
    assert dataset.train.x.shape == (2, 80)
    # Characters are counted from 2: newline 2, space 3, ! 4, z 80, } 81; é is unknown.
    assert dataset.train.x[0].tolist() == [2, 3, 4, *[80] * 75, 1, 81]
    assert dataset.vocabulary[80:] == ("z", "}")
    assert dataset.train.y.tolist() == [79, 1]  # the sample before an é is left out
    assert dataset.card.classes[:2] == ("newline", "space")
    assert dataset.card.input_shape == (80, len(dataset.vocabulary))
    assert dataset.test.y.tolist() == [0]


def test_cards_have_the_classes() -> None:
    assert len(SETS["femnist"].classes) == 62
    assert len(SETS["shakespeare"].classes) == len(set(SETS["shakespeare"].classes)) == 80


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('{"users": ["f0"', "cannot be read as JSON"),
        ("", "cannot be read as JSON"),
        ({"users": ["f0"]}, "lacks 'user_data'"),
        ({"users": ["f0"], "user_data": {}}, "lacks 'f0'"),
        ([1], "it is no file of LEAF"),
        (content(f0=([image(0)], [])), "as many x as y, got '1 and 0'"),
        (content(f0=([image(0)], [62])), r"labels must be in 0\.\.61 of user 'f0' .*\(62, 62\)"),
        (content(f0=([image(0)], [-1])), r"labels must be in 0\.\.61"),
        (content(f0=([image(0)], [0.5])), "labels must be whole numbers"),
        (content(f0=([image(0)], ["a"])), "labels must be whole numbers"),
        (content(f0=([image(1.1)], [1])), r"pixels must be in \[0, 1\] .*\(1\.0, 1\.1\)"),
        (content(f0=([image(float("nan"))], [1])), r"pixels must be in \[0, 1\]"),
        (content(f0=([[0.0] * 783], [1])), r"784 numbers an image, got \(783,\)"),
        (content(f0=([[0.0] * 784, [0.0]], [1, 2])), "784 numbers an image"),
        (content(f0=(["text"], [1])), "784 numbers an image"),
        (content(f0=("text", [1, 2, 3, 4])), "must be lists"),  # type: ignore[arg-type]
        (content(f0=([], [])), "must hold samples"),
        (content(), "must hold samples"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, value: Any, message: str) -> None:
    root = write(femnist(tmp_path / "data"), test_0=value)
    with pytest.raises(InputError, match=message) as caught:
        leaf(root=str(root))
    assert str(root / "test") in str(caught.value)


def test_file_that_is_not_utf8(tmp_path: Path) -> None:
    root = femnist(tmp_path / "data")
    (root / "train" / "x.json").write_bytes(b'{"users": ["\xff"]}')
    with pytest.raises(InputError, match=r"x\.json cannot be read as JSON"):
        leaf(root=str(root))


def test_shakespeare_of_another_length(tmp_path: Path) -> None:
    root = write(tmp_path / "data", train_0=content(A=(["abc"], ["d"])), test_0=content())
    with pytest.raises(InputError, match=r"user 'A' of .* must have texts of 80 characters"):
        leaf(set="shakespeare", root=str(root))


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        leaf()
    message = str(caught.value)
    expected = tmp_path / "home/.fedsim/data/femnist"
    assert f"FEMNIST was not found in {expected}: run data/femnist/preprocess.sh" in message
    assert message.endswith(f"into {expected}")
    root = femnist(tmp_path / "data")
    (root / "test" / "all_data_test_0_keep_0.json").unlink()
    with pytest.raises(InputError, match=r"data/test holds no JSON file: run .* -t sample"):
        leaf(root=str(root))
    with pytest.raises(InputError, match=r"dataset\.set must be one of femnist, shakespeare"):
        leaf(set="celeba")  # type: ignore[arg-type]
