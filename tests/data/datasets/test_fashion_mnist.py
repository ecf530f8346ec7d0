import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.datasets.fashion_mnist import fashion_mnist
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

INSTALLED = Path("/usr/share/datasets/fashion-mnist")


def images(n: int, offset: int = 0) -> np.ndarray:
    """n images of 28x28; image i is full of the value offset + i."""
    return np.full((n, 28, 28), np.arange(n, dtype=np.uint8)[:, None, None] + offset)


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write(folder: Path, *, suffix: str = ".gz", **changes: bytes) -> Path:
    """Write a tiny Fashion-MNIST: 4 training and 2 test images."""
    files = {
        "train-images-idx3-ubyte": idx(images(4)),
        "train-labels-idx1-ubyte": idx(np.array([3, 9, 0, 3])),
        "t10k-images-idx3-ubyte": idx(images(2, 100)),
        "t10k-labels-idx1-ubyte": idx(np.array([1, 2])),
    }
    files |= {name.replace("_", "-"): data for name, data in changes.items()}
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / f"{name}{suffix}").write_bytes(gzip.compress(data) if suffix else data)
    return folder


@pytest.mark.parametrize("suffix", [".gz", ""])
def test_reads_the_idx_files_of_root(tmp_path: Path, suffix: str) -> None:
    dataset = fashion_mnist(root=str(write(tmp_path / "data", suffix=suffix)))
    assert dataset.train.x.shape == (4, 28, 28, 1)
    assert dataset.train.x[:, 27, 0, 0].tolist() == [0, 1, 2, 3]
    assert dataset.train.y.tolist() == [3, 9, 0, 3]
    assert dataset.test.x[:, 0, 27, 0].tolist() == [100, 101]
    assert dataset.test.y.tolist() == [1, 2]
    assert isinstance(dataset.train.x, np.memmap)
    assert (dataset.num_classes, dataset.card.input_shape) == (10, (1, 28, 28))


def test_limit_keeps_the_first_training_images(tmp_path: Path) -> None:
    root = str(write(tmp_path / "data"))
    dataset = fashion_mnist(root=root, limit=3)
    assert dataset.train.y.tolist() == [3, 9, 0]
    assert dataset.train.x[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert len(dataset.test) == 2
    for limit in (0, 5):
        with pytest.raises(InputError, match=rf"dataset\.limit must be in 1\.\.4, got {limit}"):
            fashion_mnist(root=root, limit=limit)


def test_folders_are_searched_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home" / ".fedsim" / "data" / "fashion-mnist"
    write(home, train_labels_idx1_ubyte=idx(np.array([5, 5, 5, 5])))
    assert fashion_mnist().train.y.tolist() == [5, 5, 5, 5]
    write(tmp_path / "own" / "fashion-mnist", train_labels_idx1_ubyte=idx(np.array([6, 6, 6, 6])))
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "own"))
    assert fashion_mnist().train.y.tolist() == [6, 6, 6, 6]
    root = write(tmp_path / "root", train_labels_idx1_ubyte=idx(np.array([7, 7, 7, 7])))
    assert fashion_mnist(root=str(root)).train.y.tolist() == [7, 7, 7, 7]


def test_replaced_files_are_read_again(tmp_path: Path) -> None:
    root = write(tmp_path / "data", suffix="")
    fashion_mnist(root=str(root))
    write(
        root,
        suffix="",
        train_images_idx3_ubyte=idx(images(1)),
        train_labels_idx1_ubyte=idx(np.array([8])),
    )
    assert fashion_mnist(root=str(root)).train.y.tolist() == [8]


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        fashion_mnist(root=str(tmp_path / "nowhere"))
    message = str(caught.value)
    assert f"not found in {tmp_path / 'nowhere'}" in message
    assert "apt-get install dataset-fashion-mnist" in message
    assert "train-images-idx3-ubyte" in message
    assert message.endswith(f"into {tmp_path / 'nowhere'}")


def test_missing_files_name_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "own"))
    monkeypatch.setattr("fedsim.data.datasets.fashion_mnist._SYSTEM", tmp_path / "system")
    with pytest.raises(InputError) as caught:
        fashion_mnist()
    for folder in ("own/fashion-mnist", "home/.fedsim/data/fashion-mnist", "system"):
        assert str(tmp_path / folder) in str(caught.value)
    assert str(caught.value).endswith(f"into {tmp_path / 'home/.fedsim/data/fashion-mnist'}")


def test_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    root = write(tmp_path / "data")
    (root / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(InputError, match=r"not complete: put t10k-labels-idx1-ubyte \(or"):
        fashion_mnist(root=str(root))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (idx(images(4))[:-1], r"must hold the 4 items .* got '3151 bytes'"),
        (idx(images(4)) + b"\0", r"must hold the 4 items .* got '3153 bytes'"),
        (idx(images(4))[:10], "is not an idx file of 3 dimensions"),
        (b"", "is not an idx file of 3 dimensions"),
        (b"\x00\x00\x0d\x03" + idx(images(4))[4:], "is not an idx file of 3 dimensions"),
        (idx(np.zeros(4)), "is not an idx file of 3 dimensions"),
        (idx(np.zeros((4, 8, 8))), r"items of the shape \(28, 28\).*got \(8, 8\)"),
        (idx(images(0)), r"\(at least 1\)"),
        (idx(images(3)), "got '3 images and 4 labels'"),
    ],
)
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_corrupt_images_name_the_file(
    tmp_path: Path, data: bytes, message: str, suffix: str
) -> None:
    root = write(tmp_path / "data", suffix=suffix, train_images_idx3_ubyte=data)
    with pytest.raises(InputError, match=message) as caught:
        fashion_mnist(root=str(root))
    assert f"{root / 'train-images-idx3-ubyte'}{suffix}" in str(caught.value)
    assert "replace" in str(caught.value)


@pytest.mark.parametrize("kind", ["cut", "flipped", "not gzip"])
def test_corrupt_gzip_names_the_file(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "data") / "train-images-idx3-ubyte.gz"
    data = bytearray(path.read_bytes())
    if kind == "cut":
        data = data[: len(data) // 2]
    elif kind == "flipped":
        data[-8] ^= 1  # the checksum of gzip
    else:
        data = bytearray(b"<html>not found</html>")
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"cannot be read \(.*\); replace it") as caught:
        fashion_mnist(root=str(path.parent))
    assert str(path) in str(caught.value)


def test_labels_outside_the_classes(tmp_path: Path) -> None:
    root = write(tmp_path / "data", t10k_labels_idx1_ubyte=idx(np.array([1, 10])))
    with pytest.raises(InputError, match=r"in 0\.\.9 in .*t10k-labels-idx1-ubyte\.gz.* got 10"):
        fashion_mnist(root=str(root))


@pytest.mark.skipif(not INSTALLED.exists(), reason="dataset-fashion-mnist is not installed")
def test_installed_files() -> None:
    dataset = fashion_mnist()
    assert np.bincount(dataset.train.y).tolist() == [6000] * 10
    assert np.bincount(dataset.test.y).tolist() == [1000] * 10
    # The mean and standard deviation of the 47,040,000 pixels from exact integer sums.
    counts = np.bincount(dataset.train.x.ravel(), minlength=256)
    values = np.arange(256)
    mean = float(counts @ values) / counts.sum()
    std = (float(counts @ values**2) / counts.sum() - mean**2) ** 0.5
    assert dataset.card.mean == (round(mean / 255, 4),)
    assert dataset.card.std == (round(std / 255, 4),)
