from pathlib import Path

import numpy as np
import pytest

from fedsim.data.partition import Manifest, build_manifest
from fedsim.errors import InputError
from fedsim.rng import numpy_generator
from tests.support.partitions import divide, samples_of

SAMPLES = samples_of(np.arange(40) % 4)


def test_a_saved_manifest_comes_back_with_its_cuts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = divide(SAMPLES, "dirichlet", 4, alpha=0.5)
    manifest = build_manifest(own, 0.2, 0.2, numpy_generator(0, "holdout"))
    manifest.save(tmp_path / "mine.npz")
    again = divide(SAMPLES, "file", 4, seed=7, path=str(tmp_path / "mine.npz"))
    assert isinstance(again, Manifest)
    assert again.digest() == manifest.digest()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert isinstance(divide(SAMPLES, "file", 4, path="~/mine.npz"), Manifest)
    with pytest.raises(InputError, match=r"clients must be 4, the number of clients of .*, got 5"):
        divide(SAMPLES, "file", 5, path="~/mine.npz")


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no partition manifest .*gone\.npz"):
        divide(SAMPLES, "file", 4, path=str(tmp_path / "gone.npz"))
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(InputError, match=r"text\.npz is not a whole partition manifest"):
        divide(SAMPLES, "file", 4, path=str(tmp_path / "text.npz"))
