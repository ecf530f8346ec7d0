"""Every notebook runs from its first cell to its last, and is committed with its outputs."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "notebooks").glob("*.ipynb"))


def test_all_are_there() -> None:
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"quickstart", "compare_strategies", "partitions", "your_own_strategy"}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs_and_shows_what_it_showed(path: Path, tmp_path: Path) -> None:
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient").NotebookClient
    committed = nbformat.read(path, 4)
    nbformat.validate(committed)
    fresh = nbformat.from_dict(committed.copy())
    client(
        fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    text = path.read_text(encoding="utf-8")
    assert len(text) < 400_000
    assert "/tmp/" not in text
    kinds = []
    for notebook in (committed, fresh):
        outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
        shown = [o for o in outputs if o.get("name") != "stderr"]
        assert all(o.output_type != "error" for o in shown)
        kinds.append([sorted(o.get("data", {"text": ""})) for o in shown])
    assert kinds[0] == kinds[1] != []
