"""Exports hold every value in full."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pandas as pd
import pytest

from fedsim.errors import InputError
from fedsim.runs.export import export_run
from fedsim.runs.results import Run
from tests.support.folders import make


def test_csv(tmp_path: Path) -> None:
    folder = make(tmp_path)
    paths = export_run(folder.path, "csv")
    assert paths == [folder.path / "export" / f"{n}.csv" for n in ("metrics", "clients", "events")]
    assert paths[0].read_text().splitlines()[:6] == [
        "round,split,name,value",
        "1,test,generic/accuracy,0.1",
        "1,train,loss,1.0",
        "1,train,seconds,1.5",
        "2,test,generic/accuracy,0.2",
        "2,train,loss,nan",
    ]
    back = pd.read_csv(paths[1], converters={"value": float})
    assert back["value"].tolist()[:20] == Run(folder.path).clients["value"].tolist()[:20]
    assert paths[2].read_text() == "round,client,kind,text\n2,9,nan,dropped\n"
    assert sorted(p.name for p in paths[0].parent.iterdir()) == sorted(p.name for p in paths)


def test_to_another_folder(tmp_path: Path) -> None:
    folder = make(tmp_path)
    paths = export_run(folder.path, "csv", tmp_path / "new" / "place")
    assert paths[0] == tmp_path / "new" / "place" / "metrics.csv"
    assert not (folder.path / "export").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot create folder"):
        export_run(folder.path, "csv", tmp_path / "file")


def test_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    with pytest.raises(InputError, match="one of csv, parquet, weights, weights-fp16, got 'xlsx'"):
        export_run(folder.path, "xlsx")  # type: ignore[arg-type]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs pyarrow: pip install 'fedsim\[parquet\]'"):
        export_run(folder.path, "parquet")
    assert not (folder.path / "export").exists()


def test_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    folder = make(tmp_path)
    paths = export_run(folder.path, "parquet")
    run = Run(folder.path)
    for path, frame in zip(paths, (run.metrics, run.clients, run.events), strict=True):
        back = pd.read_parquet(path)
        assert list(back.columns) == list(frame.columns)
        for column in frame:
            for a, b in zip(back[column].tolist(), frame[column].tolist(), strict=True):
                assert a == b or (math.isnan(a) and math.isnan(b))
