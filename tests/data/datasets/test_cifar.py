import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim.data.datasets import cifar as module
from fedsim.data.datasets.cifar import COARSE, SETS, cifar
from fedsim.errors import InputError

pytestmark = pytest.mark.usefixtures("no_files")

PARTS = {
    "cifar10": ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"],
    "cifar100": ["train"],
}


def planes(*colours: tuple[int, int, int]) -> np.ndarray:
    """Images of one colour each, as the files have them: (n, 3072), plane after plane."""
    return np.array([np.repeat(colour, 1024) for colour in colours], np.uint8)


def batch(data: np.ndarray, **labels: list[Any]) -> dict[bytes, Any]:
    return {b"data": data, b"filenames": [b"a.png"] * len(data), b"batch_label": b"x"} | {
        name.encode(): values for name, values in labels.items()
    }


def write10(folder: Path, **changes: Any) -> Path:
    """CIFAR-10 of one image a batch: batch i is of red i and label i, the test image blue 9."""
    inside = folder / "cifar-10-batches-py"
    inside.mkdir(parents=True, exist_ok=True)
    files: dict[str, Any] = {
        f"data_batch_{i}": batch(planes((i, 10, 20)), labels=[i]) for i in range(1, 6)
    }
    files["test_batch"] = batch(planes((0, 0, 9)), labels=[9])
    for name, value in (files | changes).items():
        data = value if isinstance(value, bytes) else pickle.dumps(value, protocol=2)
        (inside / name).write_bytes(data)
    return folder


def write100(folder: Path) -> Path:
    inside = folder / "cifar-100-python"
    inside.mkdir(parents=True)
    train = batch(planes((1, 2, 3), (4, 5, 6)), fine_labels=[99, 0], coarse_labels=[13, 4])
    test = batch(planes((7, 8, 9)), fine_labels=[50], coarse_labels=[19])
    (inside / "train").write_bytes(pickle.dumps(train, protocol=2))
    (inside / "test").write_bytes(pickle.dumps(test, protocol=2))
    return folder


def test_reads_the_batches_in_order(tmp_path: Path) -> None:
    data = np.arange(3072).astype(np.uint8)[None]  # values 0..255, 0..255, ...
    root = write10(tmp_path / "data", data_batch_1=batch(data, labels=[7]))
    dataset = cifar(root=str(root), verify=False)
    assert dataset.train.x.shape == (5, 32, 32, 3)
    assert dataset.train.y.tolist() == [7, 2, 3, 4, 5]
    assert dataset.train.x[1:, 31, 0].tolist() == [[i, 10, 20] for i in range(2, 6)]
    # Row 1, column 2 is the value 34 of each plane of 1,024; row 8, column 1 the value 257.
    assert dataset.train.x[0, 1, 2].tolist() == [34, 34, 34]
    assert dataset.train.x[0, 8, 1].tolist() == [1, 1, 1]
    assert dataset.test.x[0, 5, 5].tolist() == [0, 0, 9]
    assert dataset.test.y.tolist() == [9]
    assert isinstance(dataset.train.x, np.memmap)
    assert dataset.card.classes[9] == "truck"


def test_cifar100_has_the_superclasses(tmp_path: Path) -> None:
    dataset = cifar(set="cifar100", root=str(write100(tmp_path / "data")), verify=False)
    assert dataset.train.y.tolist() == [99, 0]
    assert dataset.train.extra["coarse"].tolist() == [13, 4]
    assert (dataset.card.classes[99], COARSE[13]) == ("worm", "non-insect_invertebrates")
    assert (dataset.card.classes[0], COARSE[4]) == ("apple", "fruit_and_vegetables")
    assert dataset.test.extra["coarse"].tolist() == [19]
    assert dataset.train.x[1, 3, 3].tolist() == [4, 5, 6]


def test_names_are_sorted_and_complete() -> None:
    for names, count in ((SETS["cifar100"].classes, 100), (COARSE, 20)):
        assert list(names) == sorted(set(names))
        assert len(names) == count


def test_reads_the_archive(tmp_path: Path) -> None:
    write10(tmp_path / "made")
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "made" / "cifar-10-batches-py", "cifar-10-batches-py")
    dataset = cifar(root=str(tmp_path / "data"), verify=False)
    assert dataset.train.y.tolist() == [1, 2, 3, 4, 5]
    assert dataset.train.x[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]


def test_root_may_be_the_unpacked_folder(tmp_path: Path) -> None:
    root = write10(tmp_path / "data") / "cifar-10-batches-py"
    assert cifar(root=str(root), verify=False).train.y.tolist() == [1, 2, 3, 4, 5]


def test_is_found_in_the_usual_folder(tmp_path: Path) -> None:
    write10(tmp_path / "home" / ".fedsim" / "data" / "cifar10")
    assert cifar(verify=False).test.y.tolist() == [9]


def test_published_checksums_are_demanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write10(tmp_path / "data")
    with pytest.raises(
        InputError, match=r"data_batch_1 has the md5 checksum [0-9a-f]{32}, not c99"
    ):
        cifar(root=str(root))
    layout = module._LAYOUTS["cifar10"]
    for files in layout.files.values():
        for name in files:
            data = (root / "cifar-10-batches-py" / name).read_bytes()
            monkeypatch.setitem(files, name, hashlib.md5(data).hexdigest())
    assert cifar(root=str(root)).train.y.tolist() == [1, 2, 3, 4, 5]


def test_missing_files_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        cifar(set="cifar100", root=str(tmp_path / "nowhere"))
    message = str(caught.value)
    assert f"CIFAR-100 was not found in {tmp_path / 'nowhere'}" in message
    assert "download cifar-100-python.tar.gz" in message
    assert "www.cs.toronto.edu/~kriz/cifar.html" in message
    assert message.endswith(f"into {tmp_path / 'nowhere'}")


def test_incomplete_folder_names_what_is_missing(tmp_path: Path) -> None:
    root = write10(tmp_path / "data")
    (root / "cifar-10-batches-py" / "data_batch_3").unlink()
    with pytest.raises(InputError, match=r"not complete: put cifar-10-batches-py/data_batch_3 \("):
        cifar(root=str(root), verify=False)


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch evil",)


def object_array() -> np.ndarray:
    array = np.empty((1, 3072), object)
    array[:] = 0
    return array


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Evil(), r"it asks for (posix|nt)\.system"),
        (batch(planes((1, 1, 1))) | {b"labels": Evil()}, "is not a pickle of arrays"),
        (b"", "is not a pickle of arrays"),
        (pickle.dumps(batch(planes((1, 1, 1)), labels=[1]))[:-100], "is not a pickle of arrays"),
        (b"<html>not found</html>", "is not a pickle of arrays"),
        ([1, 2], "must hold a dictionary, got 'list'"),
        (batch(planes((1, 1, 1))), "must hold a list labels of whole numbers"),
        (batch(planes((1, 1, 1)), labels=["cat"]), "must hold a list labels"),
        (batch(planes((1, 1, 1)), labels=[1, 2]), "got '2 labels and 1 images'"),
        (batch(planes((1, 1, 1)), labels=[10]), r"must be in 0\.\.9; replace the file, got 10"),
        (batch(planes((1, 1, 1)), labels=[-1]), r"must be in 0\.\.9; replace the file, got -1"),
        ({b"labels": [1]}, r"must hold data, unsigned bytes \(n, 3072\), got NoneType"),
        (batch(np.zeros((1, 1024), np.uint8), labels=[1]), r"got \(1, 1024\)"),
        (batch(np.zeros((1, 3072)), labels=[1]), r"got \(1, 3072\)"),
        (batch(object_array(), labels=[1]), r"got \(1, 3072\)"),
        (pickle.dumps(batch(np.zeros((0, 3072), np.uint8), labels=[])), r"got \(0, 3072\)"),
    ],
)
def test_damaged_batches_name_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    root = write10(tmp_path / "data", data_batch_2=value)
    with pytest.raises(InputError, match=message) as caught:
        cifar(root=str(root), verify=False)
    assert str(root / "cifar-10-batches-py" / "data_batch_2") in str(caught.value)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize("kind", ["cut", "other content", "not an archive"])
def test_damaged_archive_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "cifar-10-python.tar.gz"
    if kind == "not an archive":
        path.write_bytes(b"<html>not found</html>")
    else:
        noise = np.random.default_rng(0).bytes(100_000)
        with tarfile.open(path, "w:gz") as archive:
            info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1" if kind == "cut" else "else")
            info.size = len(noise)
            archive.addfile(info, io.BytesIO(noise))
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:50_000])
    message = "holds no cifar-10-batches-py/data_batch_1" if kind == "other content" else "unpacked"
    with pytest.raises(InputError, match=message) as caught:
        cifar(root=str(tmp_path), verify=False)
    assert str(path) in str(caught.value)


def test_unknown_set() -> None:
    with pytest.raises(InputError, match=r"dataset\.set must be one of cifar10, cifar100"):
        cifar(set="cifar20")  # type: ignore[arg-type]
