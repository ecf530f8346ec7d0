"""The small backbone that comes with the package, and what it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedsim.api import prepare
from fedsim.components import build
from fedsim.config.reading import read_mapping
from fedsim.data.synthetic.build import build_emoji_vit
from fedsim.data.synthetic.sheets import CHECKSUMS, FOLDER, write_checksums
from fedsim.errors import InputError

EXPERIMENTS = Path(__file__).resolve().parents[3] / "experiments" / "pfedpg"
FILES = sorted(EXPERIMENTS.glob("*.yaml"))


def bases(path: Path) -> set[int]:
    """Return the emoji that an experiment trains or tests on, by whatever vendor."""
    dataset = build.build_dataset(prepare(path))
    splits = dataset.train, dataset.test
    return {int(base) for split in splits for base in split.extra["group"]}


def uses_it(path: Path) -> bool:
    model: Any = read_mapping(path).get("model", {})
    return bool(model.get("weights") == "emoji-vit")


def test_no_client_has_an_emoji_that_it_was_trained_on() -> None:
    trained = bases(EXPERIMENTS / "pretrain.yaml")
    federated = [path for path in FILES if uses_it(path)]
    assert {path.stem for path in federated} == {"emoji_domains", "emoji_dirichlet"}
    for path in federated:
        assert not bases(path) & trained, path.name
    assert len(trained) > 900


def test_taking_over_exported_weights(tmp_path: Path) -> None:
    build_emoji_vit(FOLDER / "emoji-vit", tmp_path)
    write_checksums(tmp_path)
    recorded = json.loads((FOLDER / CHECKSUMS).read_text())
    made = json.loads((tmp_path / CHECKSUMS).read_text())
    assert made == {n: s for n, s in recorded.items() if n.startswith("emoji-vit/")}
    assert len(made) == 3
    with pytest.raises(InputError, match="holds no exported weights"):
        build_emoji_vit(tmp_path, tmp_path)
