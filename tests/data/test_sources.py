import os
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.sources import data_folders, digest, find_files, fingerprint, refusing, track
from fedsim.data.subsets import share_rows
from fedsim.errors import InputError
from fedsim.rng import numpy_generator


def test_folders_in_their_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("FEDSIM_DATA", raising=False)
    own = tmp_path / ".fedsim" / "data" / "pacs"
    assert data_folders("pacs") == [own]
    monkeypatch.setenv("FEDSIM_DATA", "/data")
    assert data_folders("pacs") == [Path("/data/pacs"), own]
    assert data_folders("pacs", "~/x") == [tmp_path / "x"]


def test_a_fingerprint_changes_with_any_file(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for file in files:
        file.write_text("x")
    first = fingerprint(files)
    assert first == fingerprint(reversed(files))
    assert len(first) == 16
    os.utime(files[0], ns=(1, 1))
    assert fingerprint(files) != first


def test_a_digest_is_of_all_parts_in_turn() -> None:
    # The start of sha256("abc"), a published test vector.
    assert digest("abc") == digest("a", b"bc") == "ba7816bf8f01cfea"
    assert digest("\udcff") == digest(b"\xff")  # a path that is not UTF-8


def test_files_are_all_of_the_first_folder_that_has_any(tmp_path: Path) -> None:
    names = {"x": ("x.csv", "old/x.csv"), "y": ("y.csv",)}
    folders = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(InputError) as caught:
        find_files("Set", folders, names, "get it")
    assert str(caught.value) == (
        f"Set was not found in {folders[0]}, {folders[1]}: get it (x.csv (or old/x.csv), y.csv) "
        f"into {folders[1]}"
    )
    (folders[1] / "old").mkdir(parents=True)
    (folders[1] / "old" / "x.csv").touch()
    with pytest.raises(InputError, match=r"Set in .*b is not complete: put y\.csv there too"):
        find_files("Set", folders, names, "get it")
    (folders[1] / "y.csv").touch()
    paths = {"x": folders[1] / "old" / "x.csv", "y": folders[1] / "y.csv"}
    assert find_files("Set", folders, names, "get it") == paths


def test_errors_are_refused_with_a_message() -> None:
    with (
        pytest.raises(InputError, match=r"^{x} is wrong \(no y\); replace it$") as caught,
        refusing("{x} is wrong ({error}); replace it", KeyError, OSError),
    ):
        raise OSError("no y")
    assert isinstance(caught.value.__cause__, OSError)
    inner = InputError("said already")  # which is a ValueError
    with pytest.raises(InputError) as caught, refusing("outer", ValueError):
        raise inner
    assert caught.value is inner
    with pytest.raises(TypeError), refusing("outer", ValueError):
        raise TypeError


def test_tracking_yields_the_items() -> None:
    assert list(track(range(3), "counting")) == [0, 1, 2]


def test_a_share_is_taken_of_every_domain() -> None:
    domains = np.array([0] * 100 + [1] * 10 + [2])
    rows = share_rows(111, domains, 0.25, numpy_generator(0, "share"))
    # round(25), round(2.5) half up, and at least one
    assert np.bincount(domains[rows]).tolist() == [25, 3, 1]
    assert rows.tolist() == sorted(set(rows.tolist()))
    alone = share_rows(1000, None, 0.145, numpy_generator(0, "share"))
    assert len(alone) == 145
    assert not np.array_equal(alone, share_rows(1000, None, 0.145, numpy_generator(1, "share")))
