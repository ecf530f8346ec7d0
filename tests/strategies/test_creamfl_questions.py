"""From towers to answers: the experiment files on VQA v2's format, through a union of both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.components.build import build_dataset
from fedsim.errors import InputError
from tests.support.runs import events
from tests.support.vqa import write

FILES = Path(__file__).resolve().parents[2] / "experiments/creamfl"
COLOURS = ("red", "green", "blue")


@pytest.fixture
def sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return a union's sets: emoji, and questions in VQA v2's files, 30 to train and 7 to test."""
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    root = tmp_path / "vqa"
    train = [(i % 9, 100 + i, f"Is it {COLOURS[i % 3]}?", ("yes", "no")[i % 2]) for i in range(30)]
    test = [(i, 200 + i, "Is it green?", ("yes", "no", "maybe")[i % 3]) for i in range(10)]
    write(root, "train2014", train)
    write(root, "val2014", test)
    return {
        "emoji": {"name": "emoji", "vendors": ["noto"]},
        "questions": {"name": "vqa", "root": str(root), "size": [8, 8], "length": 6},
    }


@pytest.fixture
def towers(sets: dict[str, Any], tmp_path: Path) -> Path:
    tower = {"image": {"name": "cnn", "channels": [3], "hidden": 4},
             "text": {"name": "text", "width": 3, "hidden": 4}}  # fmt: skip
    model = {"name": "image-text", "dim": 6, **{f"{part}{m}": t for m, t in tower.items()
                                               for part in ("", "server_", "pairs_")}}  # fmt: skip
    changes = {"dataset.sets": sets, "model": model, "rounds": 1, "client.epochs": 1,
               "partition.size": 60, "evaluation.every": 1}  # fmt: skip
    run = fedsim.run(FILES / "questions_towers.yaml", set=changes, out=tmp_path / "towers")
    assert events(run) == []
    return run.path


def test_answers_are_learnt_on_the_towers_of_a_union(
    sets: dict[str, Any], towers: Path, tmp_path: Path
) -> None:
    changes = {"dataset.sets": sets, "model.towers": str(towers), "rounds": 2,
               "evaluation.every": 2}  # fmt: skip
    run = fedsim.run(FILES / "questions.yaml", set=changes, out=tmp_path / "runs")
    assert events(run) == []
    dataset = build_dataset(run.config)
    assert dataset.card.classes[-2:] == ("questions/no", "questions/yes")
    # 'maybe' is no answer of training: 0, 1, 3, 4, 6, 7 and 9 are left, 4 of them 'yes'.
    assert [dataset.card.classes[y].partition("/")[2] for y in dataset.test.y] == [
        "yes", "no", "yes", "no", "yes", "no", "yes"
    ]  # fmt: skip
    words = [dataset.vocabulary[t] for t in dataset.test.extra["tokens"][0] if t]
    assert words == ["is", "it", "green", "?"]
    # The recorded score against the towers and the trained layers, put together by hand.
    server: Any = fedsim.load_run(towers).model()
    trained = run.arrays()
    x = torch.from_numpy(dataset.test.x[:]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (dataset.card.mean, dataset.card.std))
    tokens = torch.from_numpy(dataset.test.extra["tokens"][:]).long()
    with torch.no_grad():
        product = server.server.images((x - mean) / std) * server.server.texts(tokens) * 6
        hidden = product @ trained["body.hidden.weight"].T + trained["body.hidden.bias"]
        logits = hidden.relu() @ trained["head.weight"].T + trained["head.bias"]
    right = logits.argmax(1) == torch.from_numpy(dataset.test.y[:])
    assert run.final["test/generic/accuracy"] == float(right.double().mean())


def test_towers_that_know_other_words_are_refused(
    sets: dict[str, Any], towers: Path, tmp_path: Path
) -> None:
    """As many words, but others: the same shape."""
    root = tmp_path / "other"
    write(root, "train2014", [(1, 1, "Is it red?", "yes"), (1, 2, "Is it grey?", "no")])
    write(root, "val2014", [(2, 3, "Is it blue?", "no")])
    vocabulary = len(build_dataset(fedsim.load_run(towers).config).vocabulary)
    other = {**sets, "questions": {**sets["questions"], "root": str(root)}}
    changes = {"dataset.sets": other, "dataset.vocabulary": vocabulary, "partition.clients": 1,
               "partition.numbers": {"questions": 1}, "model.towers": str(towers)}  # fmt: skip
    with pytest.raises(InputError, match="must be a run on texts of the same vocabulary"):
        fedsim.run(FILES / "questions.yaml", set=changes, out=tmp_path / "runs")
    assert not list((tmp_path / "runs").glob("*"))
