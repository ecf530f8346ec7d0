import os
from pathlib import Path

import numpy as np
import pytest

from fedsim.data.sources import data_folders, fingerprint, track
from fedsim.data.subsets import share_rows
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
