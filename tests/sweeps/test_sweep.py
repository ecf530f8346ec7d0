"""Sweeps: their plan, interruptions, and the equality of their runs with single runs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.cli.commands import main
from fedsim.config.experiment import Engine
from fedsim.config.yaml import dump_yaml
from fedsim.errors import InputError, RunFailed
from fedsim.sweeps.plan import make_plan, merged
from fedsim.sweeps.pool import default_jobs, gpu_shares, visible_gpus, with_core_share
from fedsim.sweeps.sweep import table, table_text
from tests.support.runs import FAULTY, NOTES_GPUS, assert_same, prepared, tiny


def write(path: Path, tree: dict[str, Any]) -> str:
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return str(path)


@pytest.fixture
def base(tmp_path: Path) -> str:
    return write(tmp_path / "tiny.yaml", tiny())


def sweep_file(tmp_path: Path, **changes: Any) -> str:
    write(tmp_path / "tiny.yaml", tiny())
    tree = {"base": "tiny.yaml", "seeds": [0, 1], "variants": {"fedavg": {}}, **changes}
    return write(tmp_path / "many.yaml", tree)


def test_a_sweep_is_every_combination_in_order(tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path,
        variants={
            "fedavg": {},
            "fedper": {"strategy": {"name": "fedper"}, "client.lr": 0.3, "client": {"epochs": 2}},
        },
        grid={"rounds": [1, 2]},
    )
    plan = make_plan(file, out=tmp_path / "runs")
    places = [str(cell.folder.relative_to(tmp_path / "runs/many")) for cell in plan.cells]
    assert places == [
        "fedavg,rounds=1/seed-0",
        "fedavg,rounds=1/seed-1",
        "fedavg,rounds=2/seed-0",
        "fedavg,rounds=2/seed-1",
        "fedper,rounds=1/seed-0",
        "fedper,rounds=1/seed-1",
        "fedper,rounds=2/seed-0",
        "fedper,rounds=2/seed-1",
    ]
    last = plan.cells[-1].experiment
    assert (last.strategy.name, last.rounds, last.seed) == ("fedper", 2, 1)
    assert last.client.options["lr"] == 0.3
    assert last.client.options["epochs"] == 2
    assert last.client.options["batch_size"] == 32  # the base's


def test_a_variant_replaces_a_component_and_merges_its_options() -> None:
    tree = {"strategy": {"name": "a", "x": 1}, "client": {"lr": 0.1, "epochs": 2}}
    assert merged(tree, {"strategy": {"name": "b", "y": 2}})["strategy"] == {"name": "b", "y": 2}
    assert merged(tree, {"strategy": {"name": "a", "y": 2}})["strategy"] == {
        "name": "a",
        "x": 1,
        "y": 2,
    }
    assert merged(tree, {"client.lr": 0.5})["client"] == {"lr": 0.5, "epochs": 2}
    assert tree["client"] == {"lr": 0.1, "epochs": 2}


def test_values_on_the_command_line_are_axes(base: str, tmp_path: Path) -> None:
    sets = ["client.lr=0.1,0.2", "model={name: mlp, hidden: [8, 4]},{name: mlp}", "rounds=1"]
    plan = make_plan(base, sets, [3], tmp_path)
    names = [cell.experiment.name for cell in plan.cells]
    assert names == [
        "client.lr=0.1,model=mlp+hidden=-8-4-",
        "client.lr=0.1,model=mlp",
        "client.lr=0.2,model=mlp+hidden=-8-4-",
        "client.lr=0.2,model=mlp",
    ]
    assert {cell.experiment.rounds for cell in plan.cells} == {1}
    assert {cell.experiment.seed for cell in plan.cells} == {3}
    assert plan.cells[0].experiment.model.options["hidden"] == [8, 4]
    assert plan.root == tmp_path / "tiny"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"variants": {"fedpr": {"strategy": {"name": "fedpr"}}}}, "fedpr.*Did you mean 'fedper'"),
        ({"grid": {"client.lr": [0.1, -1]}}, r"fedavg,client\.lr=-1: client\.lr must be > 0"),
        ({"grid": {"client.lr": 0.1}}, "grid must be a mapping of keys to lists"),
        ({"grid": {"client.lr": []}}, "nothing to run"),
        ({"seeds": [-1]}, r"seeds must be a list of whole numbers >= 0, got \[-1\]"),
        ({"seed": [1]}, "seed is not a key of a sweep.*Did you mean 'seeds'"),
        ({"base": "nowhere.yaml"}, "there is no experiment file"),
        ({"variants": ["fedavg"]}, "variants must be a mapping"),
        ({"variants": {"a/b": {}}}, "'a/b' is not a valid folder name"),
        ({"grid": {"model.hidden": [[1], [1]]}}, "two runs would share the folder"),
    ],
)
def test_one_bad_combination_stops_all(changes: dict[str, Any], text: str, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, **changes)
    with pytest.raises(InputError, match=text):
        fedsim.sweep(file, out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["seed=1,2", "name=a,b", "client.lr"])
def test_bad_overrides(text: str, base: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"use --seeds|must be KEY=VALUE"):
        fedsim.sweep(base, set=[text], out=tmp_path / "runs")


def test_runs_of_a_sweep_are_those_of_run(base: str, tmp_path: Path) -> None:
    """Two at a time in other processes, and the same bits; a second call runs nothing."""
    sets = {"strategy": [{"name": "fedavg"}, {"name": "fedper"}]}
    runs = fedsim.sweep(base, set=sets, seeds=[0, 1], out=tmp_path / "many", jobs=2)
    assert [run.config.name for run in runs] == ["strategy=fedavg"] * 2 + ["strategy=fedper"] * 2
    for i, seed in ((1, 1), (2, 0)):
        alone = fedsim.run(
            base, set={"strategy": runs[i].config.strategy.model_dump()}, seed=seed, out=tmp_path
        )
        assert_same(runs[i], alone)
    stamps = [(run.path / "metrics.db").stat().st_mtime_ns for run in runs]
    again = fedsim.sweep(base, set=sets, seeds=[0, 1], out=tmp_path / "many")
    assert [(run.path / "metrics.db").stat().st_mtime_ns for run in again] == stamps
    frame = table(again)
    for row, pair in zip(frame.to_dict("records"), (runs[:2], runs[2:]), strict=True):
        name = "generic" if row["run"] == "strategy=fedavg" else "personal"
        metric = {"generic": "generic/accuracy", "personal": "clients/personal/accuracy"}[name]
        values = [run.final[f"test/{metric}"] for run in pair]
        assert row[name] == pytest.approx(np.mean(values))
        assert row[f"{name}_std"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    text = table_text(frame)
    assert re.search(r"strategy=fedper +2 +- +- +\d\d\.\d\d % \+- ", text)


def test_other_settings_in_the_folder_are_refused(base: str, tmp_path: Path) -> None:
    out = tmp_path / "many"
    fedsim.sweep(base, set={"client.lr": [0.1, 0.2], "rounds": 1}, out=out)
    with pytest.raises(InputError, match=r"seed-0 holds a run with other settings \(rounds differ"):
        fedsim.sweep(base, set={"client.lr": [0.1, 0.2], "rounds": 2}, out=out)
    changed = {"client.lr": [0.1, 0.2], "rounds": 1, "engine": {"name": "serial"}}
    fedsim.sweep(base, set=changed, out=out)  # the engine does not change results
    # A run is the same experiment when an option was added since, at its default.
    config = out / "tiny/client.lr=0.1/seed-0/config.yaml"
    stored = config.read_text()
    config.write_text(stored.replace("clip_norm: null, ", ""))
    assert config.read_text() != stored
    fedsim.sweep(base, set=changed, out=out)
    runs = fedsim.sweep(
        base, set={"client.lr": [0.1, 0.2], "rounds": 2}, out=out, force=True, jobs=1
    )
    assert [run.rounds_done for run in runs] == [2, 2]


def test_a_failing_run_does_not_stop_the_others(tmp_path: Path) -> None:
    file = sweep_file(
        tmp_path,
        seeds=[0],
        variants={
            "bad": {
                "client": {"name": FAULTY, "fault": "raise"},
                "screening": {"min_survivors": 8},
            },
            "good": {},
        },
    )
    with pytest.raises(
        RunFailed, match=r"(?s)1 of 2 runs failed:\n  bad, seed 0: round 1: only 7 of.*resume"
    ):
        fedsim.sweep(file, out=tmp_path / "runs")
    good = fedsim.load_run(tmp_path / "runs/many/good/seed-0")
    assert (good.status, good.rounds_done) == ("finished", 3)


@pytest.mark.parametrize(
    ("runs", "cores", "engine"),
    [
        (4, 4, {"name": "serial", "workers": None}),
        (2, 8, {"name": "ray", "workers": 4}),
        (3, 8, {"name": "ray", "workers": 2}),
        (1, 8, {"name": "ray", "workers": 7}),  # one by one: the file's own engine
    ],
)
def test_cores_are_shared(runs: int, cores: int, engine: dict[str, Any]) -> None:
    experiment = prepared(engine={"name": "ray", "workers": 7})
    engine_options = with_core_share(experiment, runs, cores).engine.model_dump()
    assert {key: engine_options[key] for key in engine} == engine
    on_gpus = experiment.model_copy(update={"engine": Engine(gpus=0.5)})
    assert with_core_share(on_gpus, runs, cores) == on_gpus


@pytest.mark.parametrize(
    ("gpus", "jobs", "shares"),
    [
        ("0,1,2,3", 4, ["0", "1", "2", "3"]),
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("0,1,2,3,4", 2, ["0,1", "2,3"]),
        ("7,GPU-1f", 3, ["7", "GPU-1f", "7"]),  # asked for more than there are: some share
    ],
)
def test_gpus_are_shared(gpus: str, jobs: int, shares: list[str]) -> None:
    assert gpu_shares(gpus.split(","), jobs) == shares


@pytest.mark.parametrize(
    ("engine", "gpus", "jobs"),
    [
        ({}, 0, 4),
        ({"gpus": 1.0}, 8, 4),  # a core each
        ({"gpus": 1.0}, 3, 3),
        ({"gpus": 0.5, "workers": 4}, 4, 2),
        ({"gpus": 0.25, "workers": 4}, 1, 1),
        ({"gpus": 1.0}, 0, 1),
        ({"address": "127.0.0.1:6379"}, 4, 1),
    ],
)
def test_as_many_runs_at_once_as_there_are_gpus_for(
    tmp_path: Path, engine: dict[str, Any], gpus: int, jobs: int
) -> None:
    tree = tiny(engine={"name": "ray", **engine})
    plan = make_plan(tree, seeds=range(6), out=tmp_path)
    assert default_jobs([(cell, False) for cell in plan.cells], 4, gpus) == jobs


@pytest.mark.parametrize(
    ("given", "gpus"), [("", []), ("-1", []), ("1", ["1"]), ("2, GPU-8a", ["2", "GPU-8a"])]
)
def test_visible_gpus(monkeypatch: pytest.MonkeyPatch, given: str, gpus: list[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus() == gpus


def test_each_run_of_a_sweep_sees_its_own_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    notes = tmp_path / "notes"
    notes.mkdir()
    tree = tiny(
        rounds=1,
        client={"name": NOTES_GPUS, "folder": str(notes)},
        engine={"name": "serial", "gpus": 1.0},
    )
    fedsim.sweep(tree, seeds=[0, 1, 2, 3], out=tmp_path / "runs", jobs=2)
    seen = {path.name: path.read_text() for path in notes.iterdir()}
    assert len(seen) == 2  # a note a process
    assert sorted(seen.values()) == ["3", "5"]


def start(arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fedsim.cli", "sweep", *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def descendants(pid: int) -> list[int]:
    text = subprocess.run(["ps", "-eo", "pid,ppid"], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in text.splitlines()[1:]]
    found, level = [], [pid]
    while level:
        level = [p for p, parent in pairs if parent in level]
        found += level
    return found


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # a zombie that nobody has waited for yet
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_sweep_goes_on_to_the_same_bits(how: signal.Signals, tmp_path: Path) -> None:
    """Stopped in the middle of its runs; its processes end, and a second call ends the work."""
    base = write(tmp_path / "long.yaml", tiny(name="long", rounds=150))
    out = tmp_path / "runs"
    arguments = [base, "--seeds", "0,1,2", "--jobs", "2", "--out", str(out)]
    process = start(arguments)
    deadline = time.monotonic() + 60
    folder = out / "long/long/seed-1"
    while time.monotonic() < deadline:
        try:
            if fedsim.load_run(folder).rounds_done >= 10:
                break
        except InputError:
            pass
        time.sleep(0.05)
    children = descendants(process.pid)
    assert len(children) >= 2
    process.send_signal(how)
    text = process.communicate(timeout=60)[0]
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert "the same command resumes the sweep" in text
        assert fedsim.load_run(folder).status == "interrupted"
    deadline = time.monotonic() + 30
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))
    before = fedsim.load_run(folder).rounds_done
    assert 10 <= before < 150
    assert main(["sweep", *arguments]) == 0
    for seed in (0, 1, 2):
        whole = fedsim.run(base, seed=seed, out=tmp_path / "whole")
        assert_same(fedsim.load_run(out / f"long/long/seed-{seed}"), whole)


def test_the_command_shows_runs_and_a_table(
    base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sweep", base, "--set", "rounds=1,2", "--out", str(tmp_path / "many")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert re.search(r"tiny: 2 runs in .*many/tiny, \d at a time", text)
    assert re.search(r"\[2/2\] rounds=\d, seed 0: finished in ", text)
    assert re.search(r"^rounds=2 +1 +\d\d\.\d\d %", text, re.MULTILINE)
    assert main(arguments) == 0
    assert "2 are finished already" in capsys.readouterr().out
    assert main(["sweep", base, "--set", "client.lr=1,x", "--out", str(tmp_path / "other")]) == 2
    assert "client.lr=x" in capsys.readouterr().err
