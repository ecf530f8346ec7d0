import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
import pytest
from scipy.io import savemat

from fedsim.data.dataset import Dataset
from fedsim.data.datasets.digit_files import SETS, digit_files
from fedsim.errors import InputError
from tests.support.digit_files import flat, mnist, mnist_m, svhn, synth, usps

pytestmark = pytest.mark.usefixtures("no_files")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def content(dataset: Dataset) -> tuple[Any, ...]:
    return (dataset.train.x.shape, dataset.train.y.tolist(), dataset.test.y.tolist())


def test_mnist(root: Path) -> None:
    dataset = digit_files(root=str(mnist(root)))
    assert content(dataset) == ((3, 28, 28, 1), [7, 0, 9], [4])
    assert dataset.train.x[:, 27, 0, 0].tolist() == [10, 11, 12]
    assert dataset.card.input_shape == (1, 28, 28)
    assert "domain" not in dataset.train.extra
    # Of the values 10, 11, 12: mean 11, variance 2/3.
    assert dataset.card.mean == pytest.approx((11 / 255,))
    assert dataset.card.std == pytest.approx(((2 / 3) ** 0.5 / 255,))
    assert isinstance(dataset.train.x, np.memmap)


def test_svhn_counts_10_as_0(root: Path) -> None:
    dataset = digit_files(sets="svhn", root=str(svhn(root)))
    assert content(dataset) == ((2, 32, 32, 3), [0, 1], [9, 0])
    assert dataset.train.x[0, 3, 5].tolist() == [200, 100, 50]
    assert dataset.train.x[0, 5, 3].tolist() == [20, 20, 20]


def test_usps_scales_to_bytes(root: Path) -> None:
    dataset = digit_files(sets="usps", root=str(usps(root, value=0.1)))
    assert content(dataset) == ((2, 16, 16, 1), [3, 6], [5])
    assert dataset.train.x[0, 1, 1, 0] == 255
    assert int(dataset.train.x[0].sum()) == 255
    assert set(dataset.train.x[1].ravel().tolist()) == {26}  # 25.5 to even


def test_mnist_m_and_synth_digits(root: Path) -> None:
    dataset = digit_files(sets="mnist-m", root=str(mnist_m(root)))
    assert content(dataset) == ((2, 32, 32, 3), [8, 2], [1])
    assert dataset.train.x[1, 9, 9].tolist() == [1, 50, 60]
    dataset = digit_files(sets="synth-digits", root=str(synth(root)))
    assert content(dataset) == ((1, 32, 32, 3), [0], [6])


def test_files_of_the_digits_five_collection(root: Path) -> None:
    one_hot = np.eye(10)[[3, 9]]
    savemat(
        root / "mnistm_with_label.mat",
        {
            "train": flat(2, 28, 3, 5),
            "test": flat(2, 28, 3, 6),
            "label_train": one_hot,
            "label_test": one_hot[::-1],
        },
    )
    savemat(
        root / "syn_number.mat",
        {
            "train_data": flat(2, 32, 3, 7),
            "test_data": flat(1, 32, 3, 8),
            "train_label": np.array([[0], [9]]),
            "test_label": np.array([[2]]),
        },
    )
    assert content(digit_files(sets="mnist-m", root=str(root))) == ((2, 28, 28, 3), [3, 9], [9, 3])
    dataset = digit_files(sets="synth-digits", root=str(root))
    assert content(dataset) == ((2, 32, 32, 3), [0, 9], [2])


def test_several_sets_are_domains_of_one_size(root: Path) -> None:
    makers = {
        "mnist": mnist,
        "svhn": svhn,
        "usps": usps,
        "mnist-m": mnist_m,
        "synth-digits": synth,
    }
    for name, make in makers.items():
        make(root / name)
    dataset = digit_files(sets=tuple(makers), root=str(root), size=8)
    assert dataset.card.domains == tuple(makers)
    assert dataset.card.input_shape == (3, 8, 8)
    assert dataset.train.extra["domain"].tolist() == [0] * 3 + [1] * 2 + [2] * 2 + [3] * 2 + [4]
    assert dataset.train.y.tolist() == [7, 0, 9, 0, 1, 3, 6, 8, 2, 0]
    assert dataset.test.extra["domain"].tolist() == [0, 1, 1, 2, 3, 4]
    # Images of one colour stay so.
    assert dataset.train.x[1].reshape(-1, 3).tolist() == [[11, 11, 11]] * 64
    assert dataset.train.x[8].reshape(-1, 3).tolist() == [[1, 50, 60]] * 64
    assert "SVHN, cropped digits: for non-commercial use" in dataset.card.licence
    again = digit_files(sets=("usps", "mnist"), root=str(root))
    assert again.card.input_shape == (3, 32, 32)
    assert again.train.y.tolist() == [3, 6, 7, 0, 9]


def test_one_set_in_another_shape(root: Path) -> None:
    dataset = digit_files(sets="svhn", root=str(svhn(root)), size=16, channels=1)
    assert dataset.train.x.shape == (2, 16, 16, 1)
    assert dataset.train.x[1].ravel().tolist() == [21] * 256
    assert dataset.card.input_shape == (1, 16, 16)


def test_cards_are_complete() -> None:
    for card in SETS.values():
        assert card.source
        assert card.licence
        assert card.description


@pytest.mark.parametrize("name", list(SETS))
def test_missing_files_say_how_to_get_them(name: str, root: Path) -> None:
    with pytest.raises(InputError) as caught:
        digit_files(sets=name, root=str(root))
    message = str(caught.value)
    assert f"{SETS[name].title} was not found in {root / name}, {root}: get it from" in message
    assert SETS[name].source.split("; ")[-1] in message
    assert message.endswith(f"into {root / name}")


def test_missing_files_name_the_usual_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_DATA", str(tmp_path / "own"))
    with pytest.raises(InputError) as caught:
        digit_files(sets="usps")
    assert f"{tmp_path / 'own/usps'}, {tmp_path / 'home/.fedsim/data/usps'}:" in str(caught.value)
    assert digit_files(sets="usps", root=str(usps(tmp_path / "own/usps"))).num_classes == 10
    assert digit_files(sets="usps").num_classes == 10


def test_half_a_set_is_named(root: Path) -> None:
    (svhn(root) / "test_32x32.mat").unlink()
    with pytest.raises(InputError, match=r"not complete: put test_32x32\.mat \(or svhn_test"):
        digit_files(sets="svhn", root=str(root))


def damage(make: Callable[[Path], Path], file: str, change: Callable[[bytes], bytes]) -> Any:
    def apply(root: Path) -> None:
        path = make(root) / file
        path.write_bytes(change(path.read_bytes()))

    return apply


def half(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("svhn", damage(svhn, "train_32x32.mat", half), "is not a MATLAB file that can be read"),
        ("svhn", damage(svhn, "train_32x32.mat", lambda _: b""), "is not a MATLAB file"),
        (
            "svhn",
            damage(svhn, "train_32x32.mat", lambda d: d[:124] + b"\x00\x02IM" + bytes(600)),
            "is a MATLAB file of version 7.3; save it again with -v7",
        ),
        ("usps", damage(usps, "usps.h5", half), "is not an HDF5 file that can be read"),
        ("usps", damage(usps, "usps.h5", lambda _: b"<html>"), "is not an HDF5 file"),
        ("usps", lambda r: usps(r, value=1.5), r"must be in \[0, 1\], got \(0\.0, 1\.5\)"),
        ("usps", lambda r: usps(r, value=float("nan")), r"must be in \[0, 1\], got \(nan, nan\)"),
        ("usps", lambda r: usps(r, label=10), r"labels of usps must be digits in .*, got 10"),
        ("mnist", damage(mnist, "train-images-idx3-ubyte.gz", half), "cannot be read"),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train/00000001.png", half),
            r"mnist_m_train/00000001\.png is no image that can be read",
        ),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train_labels.txt", lambda d: d + b"00000009.png 1\n"),
            r"mnist_m_train/00000009\.png is no image",
        ),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train_labels.txt", lambda d: d.replace(b" 2", b" two")),
            r"line 2 of .*mnist_m_train_labels\.txt must be an image's path and the number",
        ),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train_labels.txt", lambda d: d + b"\xff.png 1\n"),
            r"mnist_m_train_labels\.txt is not UTF-8 text \(byte 30\)",
        ),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train_labels.txt", lambda _: b"\n"),
            "lists no image",
        ),
        (
            "mnist-m",
            damage(mnist_m, "mnist_m_train_labels.txt", lambda d: d.replace(b" 2", b" 12")),
            "must be digits in .*, got 12",
        ),
    ],
)
def test_damaged_files_are_named(root: Path, name: str, spoil: Any, message: str) -> None:
    spoil(root)
    with pytest.raises(InputError, match=message) as caught:
        digit_files(sets=name, root=str(root))
    assert str(root) in str(caught.value)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "must hold an array 'y' of numbers"),
        ({"X": "text", "y": [[1]]}, "must hold an array 'X' of numbers"),
        ({"X": np.zeros((2, 32, 32), np.uint8), "y": [[1]]}, r"\(H, W, 3, n\), got 'uint8"),
        ({"X": np.zeros((32, 32, 3, 2)), "y": [[1]]}, r"unsigned bytes .*, got 'float64"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "got '2 images and 1 labels'"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [11]]}, "digits in .*, got 11"),
        ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1], [0.5]]}, "must be whole numbers"),
    ],
)
def test_wrong_arrays_are_named(root: Path, arrays: dict[str, Any], message: str) -> None:
    svhn(root)
    savemat(root / "train_32x32.mat", arrays)
    with pytest.raises(InputError, match=message) as caught:
        digit_files(sets="svhn", root=str(root))
    assert str(root / "train_32x32.mat") in str(caught.value)


def test_h5_without_the_arrays(root: Path) -> None:
    with h5py.File(root / "usps.h5", "w") as file:
        file.create_group("train/data")
    with pytest.raises(InputError, match="must hold an array 'train/data' of numbers"):
        digit_files(sets="usps", root=str(root))


@pytest.mark.parametrize(("package", "name"), [("scipy.io", "svhn"), ("h5py", "usps")])
def test_missing_package_names_the_extra(
    root: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    {"svhn": svhn, "usps": usps}[name](root)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'fedsim\[data\]'"):
        digit_files(sets=name, root=str(root))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sets": "emnist"}, r"dataset\.sets must be of mnist, svhn.*, got 'emnist'"),
        ({"sets": ()}, "at least one set, none twice"),
        ({"sets": ("usps", "usps")}, "at least one set, none twice"),
        ({"size": 0}, r"dataset\.size must be at least 1 pixel, got 0"),
        ({"channels": 2}, r"dataset\.channels must be 1 or 3, got 2"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        digit_files(**options)
