"""Every file under experiments/ is a valid experiment or sweep of today's components."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedsim.api import prepare
from fedsim.config.reading import read_mapping
from fedsim.sweeps.plan import make_plan

FOLDER = Path(__file__).resolve().parents[1] / "experiments"
FILES = sorted(FOLDER.rglob("*.yaml"))


def test_there_are_files() -> None:
    assert {"quickstart.yaml", "fashion_lt.yaml", "digits_domains.yaml"} <= {f.name for f in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(FOLDER)))
def test_a_file_is_valid(path: Path, tmp_path: Path) -> None:
    if "base" not in read_mapping(path):
        experiment = prepare(path)
        assert experiment.name
        return
    plan = make_plan(path, out=tmp_path)
    names = [cell.experiment.name for cell in plan.cells]
    assert len(names) == len(plan.cells) > 1
    assert not list(tmp_path.iterdir())
