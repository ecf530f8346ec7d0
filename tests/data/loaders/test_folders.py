import os
from pathlib import Path

import pytest

from fedsim.data.loaders.folders import (
    TEST,
    TRAIN,
    WHOLE,
    Lists,
    scan,
    scan_lists,
    tree_fingerprint,
)
from fedsim.data.loaders.lists import read_list
from fedsim.errors import InputError


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def test_scan_orders_by_path_and_skips_what_is_no_image(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/10.jpg", "a/x.tiff", "a/._x.tiff", "a/readme.md", "loose.png")
    (tmp_path / "empty").mkdir()
    found = scan(tmp_path)
    assert found.paths == ["a/x.tiff", "b/10.jpg", "b/2.JPG"]
    assert found.classes == ("a", "b")
    assert found.labels.tolist() == [0, 1, 1]
    assert found.splits.tolist() == [WHOLE] * 3
    assert found.domains == ()


def test_classes_below_a_lone_folder_images(tmp_path: Path) -> None:
    touch(tmp_path, "amazon/images/mug/1.jpg", "dslr/images/mug/1.jpg", "dslr/images/pen/1.jpg")
    found = scan(tmp_path)
    assert found.domains == ("amazon", "dslr")
    assert found.classes == ("mug", "pen")


def test_class_named_like_a_part_needs_train_beside_it(tmp_path: Path) -> None:
    touch(tmp_path, "test/1.jpg", "other/1.jpg")
    assert scan(tmp_path).classes == ("other", "test")


def test_name_that_is_not_utf8(tmp_path: Path) -> None:
    folder = bytes(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    (Path(os.fsdecode(folder)) / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"has a folder 'caf.*', which is not UTF-8 text"):
        scan(tmp_path)


def test_lists_name_classes_by_folder_if_they_agree(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x/cat/1 2.jpg 1\r\nx/dog/1.jpg 0\r\n")
    (tmp_path / "b.txt").write_text("\ufeffy/cat/2.jpg 1\n")
    lists: Lists = {(None, TRAIN): tmp_path / "a.txt", (None, TEST): tmp_path / "b.txt"}
    found = scan_lists(tmp_path, lists)
    assert found.paths == ["x/cat/1 2.jpg", "x/dog/1.jpg", "y/cat/2.jpg"]
    assert found.classes == ("dog", "cat")
    assert found.splits.tolist() == [TRAIN, TRAIN, TEST]
    (tmp_path / "b.txt").write_text("y/lion/2.jpg 1\n")
    assert scan_lists(tmp_path, lists).classes == ("0", "1")
    assert scan_lists(tmp_path, lists, num_classes=3).classes == ("0", "1", "2")


@pytest.mark.parametrize("line", ["a.jpg", "a.jpg one", "a.jpg -1", "a.jpg 1.0", "0", " 0"])
def test_list_with_a_wrong_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"b.jpg 0\n{line}\n")
    with pytest.raises(InputError, match=r"line 2 of .*a\.txt must be an image's path and"):
        read_list(tmp_path / "a.txt")


def test_list_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.txt cannot be read"):
        read_list(tmp_path / "a.txt")


def test_fingerprint_follows_names_and_lists(tmp_path: Path) -> None:
    root = tmp_path / "root"
    touch(root, "d/train/a/1.png", "train.txt")
    seen = [tree_fingerprint(root)]
    assert tree_fingerprint(root) == seen[0]
    touch(root, "d/train/a/2.png")
    seen.append(tree_fingerprint(root))
    (root / "train.txt").write_text("d/train/a/1.png 0")
    seen.append(tree_fingerprint(root))
    (root / "d/train/a").rename(root / "d/train/b")
    seen.append(tree_fingerprint(root))
    assert len(set(seen)) == 4
    with pytest.raises(InputError, match=r"nowhere cannot be read"):
        tree_fingerprint(tmp_path / "nowhere")
