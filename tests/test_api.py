"""`fedsim.run` and `fedsim.resume` from Python."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.api import build_model, prepare
from fedsim.config.yaml import dump_yaml
from fedsim.errors import InputError
from fedsim.rounds.progress import Progress
from tests.support.runs import assert_same, measured, tiny


def test_every_public_name_is_listed_and_imported_on_first_use() -> None:
    code = (
        "import sys, fedsim\n"
        "names = dir(fedsim)\n"
        "print('torch' in sys.modules, {'run', 'Fit', 'Strategy'} <= set(names))\n"
        "print(sorted(fedsim._HOMES) == fedsim.__all__, all(hasattr(fedsim, n) for n in names))\n"
        "from fedsim.local_sgd import Fit, LocalSGD\n"
        "print(Fit is fedsim.Fit, LocalSGD is fedsim.LocalSGD)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False True", "True True", "True True"]


def test_file_mapping_and_overrides_are_one(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(tiny()))
    one = fedsim.run(file, set=["client.lr=0.05", "rounds=2"], out=tmp_path / "a")
    two = fedsim.run(tiny(), set={"client.lr": 0.05, "rounds": 2}, out=tmp_path / "b")
    three = fedsim.run(tiny(client={"lr": 0.05}, rounds=2), out=tmp_path / "c")
    assert_same(one, two)
    assert_same(one, three)


def test_seed_names_the_folder_and_wins_over_the_file(tmp_path: Path) -> None:
    run = fedsim.run(tiny(seed=1, rounds=1), seed=7, out=tmp_path)
    assert run.path == tmp_path / "tiny/seed-7"
    assert run.config.seed == 7
    assert prepare(tiny(), {"client.lr": 0.3}, seed=5).seed == 5
    assert prepare(tiny(), ["client.lr=0.3"], seed=5).client.options["lr"] == 0.3


def test_folder_of_a_finished_run_is_whole(tmp_path: Path) -> None:
    run = fedsim.run(tiny(), out=tmp_path)
    names = {p.name for p in run.path.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "partition.npz",
        "metrics.db",
        "checkpoint",
        "model.safetensors",
        "status.json",
    }
    assert (run.status, run.rounds_done) == ("finished", 3)
    # The config says all, and running it again gives the same.
    assert_same(fedsim.run(run.path / "config.yaml", out=tmp_path / "again"), run)


def test_model_scores_as_recorded(tmp_path: Path) -> None:
    run = fedsim.run(tiny(), out=tmp_path)
    from fedsim.components import build
    from fedsim.data.views import View

    dataset = build.build_dataset(run.config)
    view = View(dataset.test, range(len(dataset.test)), dataset.card)  # type: ignore[arg-type]
    with torch.no_grad():
        hits = run.model()(view.inputs()).argmax(1) == view.labels()
    assert run.final["test/generic/accuracy"] == pytest.approx(float(hits.float().mean()))


def test_initial_model_follows_from_the_seed() -> None:
    first, again = build_model(prepare(tiny())), build_model(prepare(tiny()))
    other = build_model(prepare(tiny(), seed=1))
    for (name, a), b in zip(first.state_dict().items(), again.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(next(first.parameters()), next(other.parameters()))


def test_evaluation_schedule_and_clients(tmp_path: Path) -> None:
    run = fedsim.run(tiny(rounds=5, evaluation={"every": 2, "clients": 3}), out=tmp_path)
    scored = run.metrics.query("name == 'generic/accuracy'")["round"].tolist()
    assert scored == [2, 4, 5]
    values = run.client_values("test", "generic/accuracy")
    [clients] = {tuple(group["client"]) for _, group in values.groupby("round")}
    assert len(clients) == 3
    mean = values[values["round"] == 5]["value"].mean()
    assert run.final["test/clients/generic/accuracy"] == pytest.approx(mean)


def test_evaluation_does_not_change_the_training(tmp_path: Path) -> None:
    often = fedsim.run(tiny(), out=tmp_path / "a")
    seldom = fedsim.run(tiny(evaluation={"every": 3, "personal": False}), out=tmp_path / "b")
    assert torch.equal(often.arrays()["head.weight"], seldom.arrays()["head.weight"])
    train = [row for row in measured(often) if row[1] == "train"]
    assert train == [row for row in measured(seldom) if row[1] == "train"]


class Recording(Progress):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, ...]] = []

    def start(self, experiment: Any, folder: Path, first_round: int) -> None:
        assert self.folder == folder  # known before the first round
        self.calls.append(("start", first_round))
        super().start(experiment, folder, first_round)

    def cohort(self, round: int, done: int, total: int) -> None:
        self.calls.append(("cohort", round, done, total))

    def round_end(self, round: int, metrics: Any, seconds: float) -> None:
        assert seconds > 0
        self.calls.append(("round_end", round, "generic/accuracy" in metrics))

    def end(self, folder: Path, table: Any, seconds: float) -> None:
        self.calls.append(("end", dict(table)["rounds"]))


def test_progress_is_told_everything_in_order(tmp_path: Path) -> None:
    progress = Recording()
    fedsim.run(tiny(rounds=2, evaluation={"every": 2}), out=tmp_path, progress=progress)
    kinds = [c for c in progress.calls if c[0] != "cohort"]
    assert kinds == [
        ("start", 1),
        ("round_end", 1, False),
        ("round_end", 2, True),
        ("end", "2"),
    ]
    last = [c for c in progress.calls if c[0] == "cohort"][-1]
    assert last == ("cohort", 2, 8, 8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"participation": 9}, "participation"),
        ({"client": {"lr": -1.0}}, "lr"),
        ({"model": {"name": "cnn", "kernel": 99}}, "too small"),
        ({"strategy": {"name": "fedavgg"}}, "Did you mean 'fedavg'?"),
    ],
)
def test_bad_input_writes_nothing(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words.replace("?", r"\?")):
        fedsim.run(tiny(**changes), out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_resume_of_no_run_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no run folder"):
        fedsim.resume(tmp_path / "none")
    with pytest.raises(InputError, match="is not a run"):
        fedsim.resume(tmp_path)
