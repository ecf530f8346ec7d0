import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedsim.data.images import read_image
from fedsim.data.loaders.decoding import decode_rows, image_rows, unreadable
from fedsim.errors import InputError


def test_rows_keep_their_order_and_come_in_blocks() -> None:
    def read(i: int) -> np.ndarray:
        return np.full((1, 1, 1), i % 251, np.uint8)

    blocks = list(decode_rows(range(600), read, str, (1, 1, 1), "reading"))
    assert [len(block) for block in blocks] == [256, 256, 88]
    assert np.concatenate(blocks).ravel().tolist() == [i % 251 for i in range(600)]


def test_blocks_are_smaller_where_images_are_large() -> None:
    shape = (2048, 2048, 3)  # 12 MiB, of which 64 MiB hold five
    image = np.zeros(shape, np.uint8)
    blocks = decode_rows(range(6), lambda _: image, str, shape, "reading")
    assert [len(block) for block in blocks] == [5, 1]


def test_image_of_another_shape_is_named() -> None:
    def read(i: int) -> np.ndarray:
        return np.zeros((1, 1 + (i == 2), 1), np.uint8)

    with pytest.raises(InputError, match=r"item 2 must have the shape \(1, 1, 1\).*dataset\.size"):
        list(decode_rows(range(3), read, lambda i: f"item {i}", (1, 1, 1), "reading"))


def test_no_thread_is_left_when_reading_stops() -> None:
    before = threading.active_count()
    rows = decode_rows(range(600), lambda _: np.zeros(1, np.uint8), str, (1,), "reading")
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_unreadable_files_are_found(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.new("L", (9, 9)).save(path)
    paths[1].write_bytes(paths[1].read_bytes()[:-30])
    paths[3].unlink()
    assert unreadable(paths, read_image) == [1, 3]
    assert unreadable([], read_image) == []
    assert next(iter(image_rows(paths[:1], (9, 9, 1), "reading"))).shape == (1, 9, 9, 1)
