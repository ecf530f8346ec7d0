import hashlib
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fedsim.data.dataset import Dataset
from fedsim.data.datasets.digits import digits


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSIM_CACHE", str(tmp_path_factory.mktemp("cache")))
        return digits()


def test_split_is_stratified_by_fifths(dataset: Dataset) -> None:
    total = np.bincount(load_digits().target)
    test = np.bincount(dataset.test.y)
    assert test.tolist() == [int(n / 5 + 0.5) for n in total]
    assert (test + np.bincount(dataset.train.y)).tolist() == total.tolist()
    assert (len(dataset.train), len(dataset.test)) == (1438, 359)


def test_splits_hold_scikit_learns_images(dataset: Dataset) -> None:
    source = load_digits()
    # Rounded v * 255 / 16: 8 is 127.5 and goes up.
    scale = np.array(
        [0, 16, 32, 48, 64, 80, 96, 112, 128, 143, 159, 175, 191, 207, 223, 239, 255], np.uint8
    )
    wanted = sorted(
        (scale[image.astype(int)].tobytes(), int(label))
        for image, label in zip(source.images, source.target, strict=True)
    )
    found = sorted(
        (image.tobytes(), int(label))
        for split in (dataset.train, dataset.test)
        for image, label in zip(split.x, split.y, strict=True)
    )
    assert found == wanted


def test_split_never_changes(dataset: Dataset) -> None:
    assert (
        hashlib.sha256(dataset.test.x.tobytes()).hexdigest()
        == "bb1347cf5d7cb7dd3592d947970d5881f6c111f32caa310bc0abc325b5ac7961"
    )


def test_card(dataset: Dataset) -> None:
    x = dataset.train.x / 255
    assert dataset.card.mean == (round(float(x.mean()), 4),)
    assert dataset.card.std == (round(float(x.std()), 4),)
    assert dataset.card.input_shape == (1, 8, 8)
    assert dataset.num_classes == 10


def test_second_opening_reads_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path))
    digits()
    monkeypatch.setattr("sklearn.datasets.load_digits", None)
    assert isinstance(digits().train.x, np.memmap)
