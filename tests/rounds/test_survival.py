"""Runs that are killed, torn or stopped, and what `resume` makes of them."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.cli.commands import main
from fedsim.config.yaml import dump_yaml
from fedsim.errors import InputError, RunFailed
from fedsim.rounds.progress import Progress
from fedsim.runs import checkpoint
from tests.support.interruptions import StopAfter, StopAt, interrupted
from tests.support.runs import (
    DROPOUT_AND_BATCH_NORM,
    FAULTY,
    TESTS,
    assert_same,
    cli,
    environment,
    events,
    measured,
    model_bits,
    start,
    tiny,
)


def write(experiment: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "experiment.yaml"
    path.write_text(dump_yaml(experiment))
    return path


def begin_or_resume(file: Path, out: Path) -> subprocess.Popen[str]:
    folder = out / "tiny/seed-0"
    if (folder / "config.yaml").is_file():
        return start("resume", folder)
    return start("run", file, "--out", out)


def kill_again_and_again(
    file: Path, out: Path, kills: int, seed: int, longest_seconds: float, pids: set[str]
) -> fedsim.Run:
    """Kill the run at random moments, a third of them in its start-up, then let it end."""
    draw = random.Random(seed)
    for i in range(kills):
        process = begin_or_resume(file, out)
        if i % 3 == 0:
            time.sleep(draw.uniform(0.0, 3.0))
        else:
            assert process.stdout is not None
            process.stdout.readline()  # the headline, just before the first round
            time.sleep(draw.uniform(0.0, longest_seconds))
        assert process.poll() is None, (i, process.communicate())
        process.kill()
        process.communicate()
        pids.add(str(process.pid))
    process = begin_or_resume(file, out)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    return fedsim.load_run(out / "tiny/seed-0")


KILLED: dict[str, Any] = {
    "model": {"name": DROPOUT_AND_BATCH_NORM, "width": 16},
    "participation": 0.75,
    "evaluation": {"every": 5},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "kills", "rounds", "min_seconds", "longest"),
    [
        ("Stateful", 10, 100, 0.0, 0.6),
        ("Stateful", 4, 100, 0.3, 1.0),
    ],
)
def test_killed_at_random_moments(
    client: str, kills: int, rounds: int, min_seconds: float, longest: float, tmp_path: Path
) -> None:
    experiment = tiny(
        **KILLED,
        rounds=rounds,
        client={"name": f"{TESTS}/clients.py:{client}", "batch_size": 32},
        checkpoint={"min_seconds": min_seconds},
    )
    file = write(experiment, tmp_path)
    run = kill_again_and_again(file, tmp_path / "runs", kills, 7, longest, set())
    assert (run.status, run.rounds_done) == ("finished", rounds)
    assert_same(run, fedsim.run(experiment, out=tmp_path / "other"))


@pytest.mark.slow
@pytest.mark.ray
def test_killed_at_random_moments_on_ray(tmp_path: Path) -> None:
    experiment = tiny(**KILLED, rounds=60, engine={"name": "ray", "workers": 2})
    serial = {**experiment, "engine": {"name": "serial"}}
    file = write(experiment, tmp_path)
    killed: set[str] = set()
    run = kill_again_and_again(file, tmp_path / "runs", 3, 11, 1.0, killed)
    assert_same(run, fedsim.run(serial, out=tmp_path / "other"))
    # What the killed ones left in shared memory is cleared away.
    left = {p.name.split("-")[1] for p in Path("/dev/shm").glob("fedsim-*")}
    assert not left & killed


@pytest.mark.slow
@pytest.mark.parametrize(("min_seconds", "first"), [(0.0, 1), (2.0, 2)])
def test_killed_at_every_fourth_file_operation(
    min_seconds: float, first: int, tmp_path: Path
) -> None:
    experiment = tiny(
        rounds=2,
        client={"name": f"{TESTS}/clients.py:Stateful"},
        partition={"name": "iid", "clients": 2},
        checkpoint={"min_seconds": min_seconds},
    )
    file = write(experiment, tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.support.crash",
            str(file),
            str(tmp_path / "runs"),
            str(first),
            "4",
        ],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=280,
        check=False,
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert len(lines) > 8  # moments at which it was killed
    assert {line[3] for line in lines} == {"finished"}
    reference = fedsim.run(experiment, out=tmp_path / "other")
    assert {line[1] for line in lines} == {model_bits(reference)}
    assert len({line[2] for line in lines}) == 1


@pytest.mark.parametrize("stop", [StopAt, StopAfter])
@pytest.mark.parametrize("round", [1, 3, 4])
def test_interrupted_run_resumes_to_the_same_bits(
    stop: type[StopAt], round: int, tmp_path: Path
) -> None:
    experiment = tiny(
        rounds=4, model={"name": DROPOUT_AND_BATCH_NORM, "width": 8}, evaluation={"every": 2}
    )
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(experiment, out=tmp_path / "a", progress=stop(round))
    folder = tmp_path / "a/tiny/seed-0"
    assert fedsim.load_run(folder).status == "interrupted"
    resumed = fedsim.resume(folder)
    assert (resumed.status, resumed.rounds_done) == ("finished", 4)
    assert_same(resumed, fedsim.run(experiment, out=tmp_path / "b"))


def test_run_without_a_checkpoint_resumes_from_the_start(tmp_path: Path) -> None:
    experiment = tiny(checkpoint={"min_seconds": 1000.0})
    folder = interrupted(experiment, tmp_path / "a", 3)
    assert checkpoint.rounds(folder) == []
    assert fedsim.load_run(folder).rounds_done > 0
    assert_same(fedsim.resume(folder), fedsim.run(experiment, out=tmp_path / "b"))


def test_resume_says_where_it_began(tmp_path: Path) -> None:
    folder = interrupted(tiny(rounds=4), tmp_path, 4)
    run = fedsim.resume(folder)
    [event] = events(run, "resumed")
    assert event == (4, None, "resumed", "resumed after round 3")


def test_finished_run_is_not_run_again(tmp_path: Path) -> None:
    run = fedsim.run(tiny(), out=tmp_path)
    files = [p for p in run.path.rglob("*") if p.is_file() and p.name != "lock"]
    before = {p: p.stat().st_mtime_ns for p in files}
    again = fedsim.resume(run.path)
    assert measured(again) == measured(run)
    assert before == {p: p.stat().st_mtime_ns for p in files}
    assert "model.safetensors" in {p.name for p in files}


@pytest.mark.parametrize("damage", ["torn", "flipped", "empty"])
def test_damaged_checkpoint_is_passed_over(damage: str, tmp_path: Path) -> None:
    experiment = tiny(rounds=5, client={"name": f"{TESTS}/clients.py:Stateful"})
    folder = interrupted(experiment, tmp_path / "a", 5)
    assert checkpoint.rounds(folder) == [3, 4]
    newest = checkpoint.path_of(folder, 4)
    data: Any = bytearray(newest.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    newest.write_bytes({"torn": data[: len(data) // 3], "flipped": data, "empty": b""}[damage])
    run = fedsim.resume(folder)
    [event] = events(run, "checkpoint-damaged")
    assert event[:2] == (4, None)
    assert str(newest) in event[3]
    assert events(run, "resumed")[0][3] == "resumed after round 3"
    assert_same(run, fedsim.run(experiment, out=tmp_path / "b"))


def test_damaged_client_states_fall_back_with_their_checkpoint(tmp_path: Path) -> None:
    experiment = tiny(rounds=5, client={"name": f"{TESTS}/clients.py:Stateful"})
    folder = interrupted(experiment, tmp_path / "a", 5)
    newest = max((folder / "states").glob("round-4-*.states"))
    newest.write_bytes(newest.read_bytes()[:100])
    run = fedsim.resume(folder)
    assert "truncated" in events(run, "checkpoint-damaged")[0][3]
    assert_same(run, fedsim.run(experiment, out=tmp_path / "b"))


def test_no_usable_checkpoint_is_a_clear_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = interrupted(tiny(rounds=4), tmp_path, 4)
    for round in checkpoint.rounds(folder):
        checkpoint.path_of(folder, round).write_bytes(b"torn")
    with pytest.raises(RunFailed, match=f"no checkpoint in {folder} can be used"):
        fedsim.resume(folder)
    capsys.readouterr()
    assert main(["resume", str(folder)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: no checkpoint in {folder} can be used")
    assert "Traceback" not in error
    # Nothing that was recorded is lost.
    assert fedsim.load_run(folder).rounds_done == 3


def test_checkpoint_of_another_experiment_is_not_used(tmp_path: Path) -> None:
    folder = interrupted(tiny(rounds=4), tmp_path, 4)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("lr: 0.1", "lr: 0.2"))
    with pytest.raises(RunFailed, match=r"belongs to another experiment than config\.yaml"):
        fedsim.resume(folder)


def test_full_disk_at_a_checkpoint_keeps_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tiny(rounds=4)
    real = os.fsync

    def full(descriptor: int) -> None:
        if "round-3" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match=r"cannot write checkpoint .*No space left on device"):
            fedsim.run(experiment, out=tmp_path / "a")
    folder = tmp_path / "a/tiny/seed-0"
    run = fedsim.load_run(folder)
    assert run.status == "failed"
    assert checkpoint.rounds(folder) == [1, 2]
    assert_same(fedsim.resume(folder), fedsim.run(experiment, out=tmp_path / "b"))


def test_unexpected_error_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: Any) -> Any:
        raise ZeroDivisionError("round and round")

    monkeypatch.setattr("strategies.fedavg.FedAvg.aggregate", broken)
    file = write(tiny(), tmp_path)
    assert main(["run", str(file), "--out", str(tmp_path)]) == 1
    folder = tmp_path / "tiny/seed-0"
    assert (folder / "log.txt").read_text().count("ZeroDivisionError: round and round") == 1
    error = capsys.readouterr().err
    assert "error: ZeroDivisionError: round and round\n" in error
    assert error.count(f"the traceback is in {folder / 'log.txt'}") == 1
    assert f"fedsim resume {folder}" in error
    assert "Traceback" not in error
    assert fedsim.load_run(folder).status == "failed"
    monkeypatch.undo()
    assert fedsim.resume(folder).status == "finished"


# Signals and two processes at once.


SLEEPY = {"name": FAULTY, "fault": "sleep", "victim": 3, "since": 2}


def wait_for_round(process: subprocess.Popen[str], folder: Path, round: int) -> None:
    """Wait until the rows of a round are recorded."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[1]
        if (folder / "config.yaml").is_file() and fedsim.load_run(folder).rounds_done >= round:
            return
        time.sleep(0.05)
    raise AssertionError(f"round {round} was not recorded")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "number"),
    [
        ("serial", signal.SIGTERM),
        ("serial", signal.SIGINT),
        pytest.param("ray", signal.SIGTERM, marks=pytest.mark.ray),
    ],
)
def test_signal_leaves_an_interrupted_run(engine: str, number: int, tmp_path: Path) -> None:
    client = {**SLEEPY, "fault": "until-sleep", "marker": str(tmp_path / "marker")}
    experiment = tiny(client=client, engine={"name": engine, "workers": 1})
    file = write(experiment, tmp_path)
    folder = tmp_path / "tiny/seed-0"
    process = start("run", file, "--out", tmp_path)
    wait_for_round(process, folder, 1)
    time.sleep(0.3)  # well into round 2, where client 3 sleeps
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert f"interrupted; resume with: fedsim resume {folder}" in error
    assert "Traceback" not in error
    assert "SIGTERM received" not in error
    assert '"status": "interrupted"' in (folder / "status.json").read_text()
    (tmp_path / "marker").touch()
    assert_same(
        fedsim.resume(folder),
        fedsim.run({**experiment, "engine": {"name": "serial"}}, out=tmp_path / "other"),
    )


@pytest.mark.slow
def test_second_process_in_a_folder_is_refused(tmp_path: Path) -> None:
    file = write(tiny(client=SLEEPY), tmp_path)
    folder = tmp_path / "tiny/seed-0"
    first = start("run", file, "--out", tmp_path)
    try:
        wait_for_round(first, folder, 1)
        run = fedsim.load_run(folder)  # reading needs no lock
        assert run.status == "running"
        assert run.rounds_done == 1
        assert set(run.metrics["round"]) == {1}
        said = f"error: another run (pid {first.pid}) is at work in {folder}"
        run_again: list[str | Path] = ["run", file, "--out", tmp_path, "--force"]
        for arguments in (["resume", folder], run_again):
            done = cli(*arguments)
            assert done.returncode == 2
            assert said in done.stderr
            assert "Traceback" not in done.stderr
        assert first.poll() is None
        assert fedsim.load_run(folder).rounds_done == 1
    finally:
        first.kill()
        first.communicate()
    assert fedsim.load_run(folder).status == "interrupted"


def test_two_runs_of_one_process_in_one_folder(tmp_path: Path) -> None:
    class Second(Progress):
        refused = ""

        def round_end(self, round: int, metrics: Mapping[str, float], seconds: float) -> None:
            try:
                fedsim.run(tiny(), out=tmp_path, force=True)
            except InputError as error:
                self.refused = str(error)

    watch = Second()
    run = fedsim.run(tiny(rounds=1), out=tmp_path, progress=watch)
    assert watch.refused == f"another run (pid {os.getpid()}) is at work in {run.path}"
    assert run.status == "finished"


def test_reading_while_writing_never_sees_half_a_round(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    stop = threading.Event()
    folder = tmp_path / "tiny/seed-0"

    def read() -> None:
        while not stop.is_set():
            if (folder / "config.yaml").is_file():
                frame = fedsim.load_run(folder).clients
                weights = frame[(frame["split"] == "train") & (frame["name"] == "weight")]
                for round, count in weights.groupby("round").size().items():
                    seen.append((int(str(round)), int(count)))
            time.sleep(0.002)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        fedsim.run(tiny(rounds=30), out=tmp_path)
    finally:
        stop.set()
        reader.join()
    assert len({round for round, _ in seen}) > 3
    assert {count for _, count in seen} == {8}


def test_existing_run_is_kept_unless_forced(tmp_path: Path) -> None:
    first = fedsim.run(tiny(), out=tmp_path)
    bits = model_bits(first)
    with pytest.raises(InputError, match=r"already holds a run \(round 3 of 3\).*--force"):
        fedsim.run(tiny(), out=tmp_path)
    assert model_bits(first) == bits
    second = fedsim.run(tiny(rounds=2, client={"lr": 0.05}), out=tmp_path, force=True)
    assert (second.rounds_done, second.config.client.options["lr"]) == (2, 0.05)
    assert set(second.metrics["round"]) == {1, 2}
    assert checkpoint.rounds(second.path) == [1, 2]


@pytest.mark.ray
@pytest.mark.slow
def test_address_without_a_cluster_is_bad_input(tmp_path: Path) -> None:
    engine = {"name": "ray", "address": "127.0.0.1:1"}
    file = write(tiny(engine=engine), tmp_path / "in")
    done = cli("run", file, "--out", tmp_path / "out")
    assert done.returncode == 2, done.stderr
    assert "engine.address = '127.0.0.1:1': no Ray cluster answers there" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# Workers that are killed.


@pytest.mark.ray
@pytest.mark.slow
def test_worker_killed_three_times_in_a_round(ray8: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    model = {"name": "mlp", "hidden": [256]}
    client = {"name": FAULTY, "fault": "kill", "marker": str(marker), "since": 2}
    engine = {"name": "ray", "workers": 2}
    killed = tiny(model=model, client={**client, "victims": [3, 5, 6]}, engine=engine)
    run = fedsim.run(killed, out=tmp_path / "a")
    assert sorted(p.name for p in tmp_path.glob("marker*")) == ["marker-3", "marker-5", "marker-6"]
    calm = {**client, "fault": "none"}
    assert_same(run, fedsim.run(tiny(model=model, client=calm), out=tmp_path / "b"))
    died = events(run, "worker-died")
    assert [e[:2] for e in died] == [(2, None)] * 3
    for event in died:
        assert "died in round 2 with block" in event[3]
        assert "died in round" in event[3]
    assert any("clients 3)" in e[3] for e in died)


@pytest.mark.ray
@pytest.mark.slow
def test_client_that_always_kills_its_worker_is_given_up(ray8: Any, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    client = {
        "name": FAULTY,
        "fault": "kill",
        "times": 1000,
        "marker": str(marker),
        "since": 2,
        "batch_size": 32,
    }
    run = fedsim.run(
        tiny(rounds=2, client=client, engine={"name": "ray", "workers": 2}), out=tmp_path / "a"
    )
    named = [e for e in events(run, "worker-died") if e[1] is not None]
    assert [e[:2] for e in named] == [(2, 3)]
    assert "client 3, round 2: its worker died or hung" in named[0][3]
    # As if the client had raised: a block that fell apart is put together again in order.
    raised = {**client, "fault": "raise"}
    assert_same(run, fedsim.run(tiny(rounds=2, client=raised), out=tmp_path / "b"))


@pytest.mark.ray
@pytest.mark.slow
def test_too_many_dead_workers_fail_the_run_which_stays_resumable(
    ray8: Any, tmp_path: Path
) -> None:
    client = {
        "name": FAULTY,
        "fault": "kill",
        "times": 2,
        "marker": str(tmp_path / "marker"),
        "since": 2,
    }
    engine = {"name": "ray", "workers": 2, "max_restarts": 1}
    experiment = tiny(client=client, engine=engine)
    with pytest.raises(RunFailed, match=r"workers died 2 times, more than engine.max_restarts = 1"):
        fedsim.run(experiment, out=tmp_path / "a")
    folder = tmp_path / "a/tiny/seed-0"
    run = fedsim.load_run(folder)
    assert (run.status, run.rounds_done) == ("failed", 1)
    assert len(events(run, "worker-died")) == 2
    resumed = fedsim.resume(folder)
    calm = tiny(client={**client, "fault": "none"})
    assert_same(resumed, fedsim.run(calm, out=tmp_path / "b"))
