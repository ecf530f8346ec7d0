"""The command line: verbs, exit status and output."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fedsim
from fedsim.cli.commands import main
from fedsim.config.reading import load_experiment
from fedsim.config.yaml import parse_yaml
from fedsim.errors import InputError, RunFailed
from fedsim.runs.folder import RunFolder

EXPERIMENT = """\
name: small
rounds: 3
dataset: {name: digits}
partition: {name: iid, clients: 4}
model: {name: cnn}
strategy: {name: fedavg}
participation: 1.0
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Replaces `fedsim.run` and `fedsim.resume` by something that only notes its arguments."""
    made: list[dict[str, Any]] = []

    def note(source: Any, **kwargs: Any) -> None:
        made.append({"source": source, **kwargs})
        kwargs["progress"].folder = Path("made")

    monkeypatch.setitem(vars(fedsim), "run", note)
    monkeypatch.setitem(vars(fedsim), "resume", note)
    return made


def failing(error: BaseException, folder: Path | None) -> Callable[..., None]:
    """Return a stand-in for `fedsim.run` that gets as far as making `folder`, then fails."""

    def run(source: Any, *, progress: Any, **kwargs: Any) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            progress.start(load_experiment(parse_yaml(EXPERIMENT, "small")), folder, 1)
        raise error

    return run


def fedsim_process(*arguments: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedsim.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, **kwargs)


def test_help_names_the_verbs_and_imports_nothing_heavy() -> None:
    done = fedsim_process("--help")
    assert done.returncode == 0
    verbs = done.stdout.partition("Commands:")[2].split("\n")
    names = " ".join(line.split()[0] for line in verbs if line.strip())
    assert names == "run sweep resume list show partition features compare export new bench"
    code = (
        "import sys; from fedsim.cli.commands import main; main(['--help']);"
        "print([m for m in ('torch', 'flwr', 'ray', 'pandas', 'rich', 'pydantic', 'numpy')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    name, version = capsys.readouterr().out.split()
    assert name == "fedsim"
    assert version[0].isdigit()


def test_run_hands_everything_to_the_api(file: Path, calls: list[dict[str, Any]]) -> None:
    command = ["run", str(file), "--set", "client.lr=0.1", "--set", "rounds=5", "--out", "results"]
    assert main([*command, "--force"]) == 0
    (call,) = calls
    call.pop("progress")
    assert call == {
        "source": str(file),
        "set": ["client.lr=0.1", "rounds=5"],
        "seed": None,
        "out": Path("results"),
        "force": True,
    }


def test_run_has_defaults(file: Path, calls: list[dict[str, Any]]) -> None:
    assert main(["run", str(file)]) == 0
    assert (calls[0]["set"], calls[0]["out"], calls[0]["force"]) == ([], Path("runs"), False)


def test_seeds_are_run_one_after_the_other(file: Path, calls: list[dict[str, Any]]) -> None:
    assert main(["run", str(file), "--seeds", "3,0, 1"]) == 0
    assert [call["seed"] for call in calls] == [3, 0, 1]


@pytest.mark.parametrize("seeds", ["", "a", "1,", "1,,2", "-1", "1.5", "0-3", "1,2,1"])
def test_bad_seeds_are_refused(
    file: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    assert main(["run", str(file), f"--seeds={seeds}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --seeds must ")
    assert repr(seeds) in error
    assert not calls


def test_a_seed_given_twice_is_refused(
    file: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(file), "--seeds", "1", "--set", "seed=2"]) == 2
    assert "given twice" in capsys.readouterr().err
    assert not calls


def test_an_existing_run_of_any_seed_is_told_before_the_first_starts(
    file: Path, calls: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.create(Path("runs"), "small", 1) as folder:
        folder.begin(EXPERIMENT, {}, SimpleNamespace(save=Path.touch))
    assert main(["run", str(file), "--seeds", "0,1"]) == 2
    assert capsys.readouterr().err == (
        "error: run folder runs/small/seed-1 already holds a run (round 0 of 3): continue it with "
        "`fedsim resume runs/small/seed-1`, or start anew with --force\n"
    )
    assert not calls
    assert main(["run", str(file), "--seeds", "0,1", "--force"]) == 0
    assert len(calls) == 2


def test_resume_hands_the_folder_to_the_api(calls: list[dict[str, Any]]) -> None:
    assert main(["resume", "runs/small/seed-0"]) == 0
    assert calls[0]["source"] == Path("runs/small/seed-0")


def test_bad_input_is_one_message_and_status_2(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(vars(fedsim), "run", failing(InputError("rounds must be, got 0"), None))
    assert main(["run", str(file)]) == 2
    out, error = capsys.readouterr()
    assert (out, error) == ("", "error: rounds must be, got 0\n")


def test_a_failed_run_says_how_to_resume_and_status_1(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/small/seed-0")
    monkeypatch.setitem(vars(fedsim), "run", failing(RunFailed("no survivors"), folder))
    assert main(["run", str(file)]) == 1
    assert capsys.readouterr().err == (
        "error: no survivors\nresume with: fedsim resume runs/small/seed-0\n"
    )
    assert not (folder / "log.txt").exists()


def test_an_unexpected_error_leaves_its_traceback_in_the_log(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("runs/small/seed-0")
    monkeypatch.setitem(vars(fedsim), "run", failing(ZeroDivisionError("by zero"), folder))
    assert main(["run", str(file)]) == 1
    error = capsys.readouterr().err
    assert error.splitlines() == [
        "error: ZeroDivisionError: by zero",
        "the traceback is in runs/small/seed-0/log.txt",
        "resume with: fedsim resume runs/small/seed-0",
    ]
    log = (folder / "log.txt").read_text()
    assert log.startswith("Traceback")
    assert log.endswith("ZeroDivisionError: by zero\n")


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(signal.SIGTERM)])
def test_an_interrupted_run_says_how_to_resume_and_status_130(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    monkeypatch.setitem(vars(fedsim), "run", failing(error, Path("runs/small/seed-0")))
    assert main(["run", str(file)]) == 130
    assert capsys.readouterr().err == (
        "interrupted; resume with: fedsim resume runs/small/seed-0\n"
    )
    monkeypatch.setitem(vars(fedsim), "run", failing(error, None))
    assert main(["run", str(file)]) == 130
    assert capsys.readouterr().err == "interrupted before the run began\n"


def test_sigterm_interrupts_and_its_handler_is_put_back(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def run(*args: Any, **kwargs: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setitem(vars(fedsim), "run", run)
    assert main(["run", str(file)]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_list_shows_names_and_descriptions(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "datasets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    described = dict(line.split(maxsplit=1) for line in lines)
    assert list(described) == sorted(described)
    assert {"digits", "fashion-mnist"} <= set(described)
    assert described["fashion-mnist"].startswith("Fashion-MNIST, 28x28")
    assert main(["list", "dataset"]) == 2
    assert "Did you mean 'datasets'?" in capsys.readouterr().err


def test_show_a_component(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "strategy:flwr.serverapp.strategy:QFedAvg"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["client_learning_rate", "float", "required"] in rows
    assert ["q", "float", "0.1"] in rows
    assert main(["show", "strategy:fedavg"]) == 0
    out = capsys.readouterr().out
    assert "McMahan" in out
    assert "Weighted mean of the clients' models." in out


def test_show_prints_the_comments_of_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\nfrom fedsim.client import Client\n"
        'class Mine(Client):\n    """My client."""\n    @dataclass(frozen=True)\n'
        "    class Config:\n        lr: float = 0.5  # step size, > 0\n"
    )
    assert main(["show", f"client:{tmp_path}/mine.py:Mine"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2] == "My client."
    assert out.splitlines()[-1].split() == ["lr", "float", "0.5", "step", "size,", ">", "0"]


@pytest.mark.parametrize(
    ("what", "parts"),
    [
        ("runs/none", ["no run folder runs/none", "KIND:NAME"]),
        ("strategi:fedavg", ["'strategi'", "Did you mean 'strategy'?"]),
        ("strategy:fedavgg", ["'fedavgg'", "Did you mean 'fedavg'?"]),
    ],
)
def test_show_of_what_is_not_there(
    capsys: pytest.CaptureFixture[str], what: str, parts: list[str]
) -> None:
    assert main(["show", what]) == 2
    error = capsys.readouterr().err
    for part in parts:
        assert part in error


def test_export_hands_the_run_to_the_api(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def export_run(folder: Path, to: str, out: Path | None) -> list[Path]:
        seen.append((folder, to, out))
        return [Path("a.csv"), Path("b.csv")]

    monkeypatch.setattr("fedsim.runs.export.export_run", export_run)
    assert main(["export", "r", "--to", "csv", "--out", "o"]) == 0
    assert seen == [(Path("r"), "csv", Path("o"))]
    assert capsys.readouterr().out == "a.csv\nb.csv\n"


def test_export_names_the_nearest_format(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "r", "--to", "cvs"]) == 2
    assert "got 'cvs'. Did you mean 'csv'?" in capsys.readouterr().err


def test_bench_hands_the_workloads_to_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    stand_in = SimpleNamespace(main=lambda *args: seen.append(args))
    monkeypatch.setitem(sys.modules, "fedsim.bench.timing", stand_in)
    assert main(["bench", "W1", "W3", "--repeats", "2", "--rounds", "4"]) == 0
    assert main(["bench"]) == 0
    assert seen == [(["W1", "W3"], 2, 4), ([], 3, None)]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["run"], "Missing argument 'FILE'"),
        (["rum", "x"], "No such command 'rum'"),
        (["run", "x", "--sett", "a=1"], "No such option"),
        (["bench", "--repeats", "0"], "0 is not in the range"),
        ([], "Usage:"),
    ],
)
def test_wrong_usage_is_status_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], part: str
) -> None:
    assert main(arguments) == 2
    assert part in capsys.readouterr().err


def test_bad_input_of_the_real_thing_prints_one_message_and_no_traceback(tmp_path: Path) -> None:
    done = fedsim_process("run", "none.yaml", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: there is no experiment file none.yaml.\n"
    assert list(tmp_path.iterdir()) == []


def test_resuming_a_finished_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = {**parse_yaml(EXPERIMENT, "small"), "rounds": 1, "engine": {"name": "serial"}}
    tree["model"] = {"name": "mlp"}
    run = fedsim.run(tree, out=tmp_path)
    assert main(["resume", str(run.path)]) == 0
    assert capsys.readouterr().out == f"{run.path} has finished: round 1 of 1\n"
    (run.path / "config.yaml").write_text("{{{")
    assert main(["resume", str(run.path)]) == 2
    assert str(run.path / "config.yaml") in capsys.readouterr().err


def test_a_sweep_is_no_experiment(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("many.yaml").write_text("base: small.yaml\nvariants: {fedavg: {}}\n")
    assert main(["run", "many.yaml"]) == 2
    assert "run it with: fedsim sweep many.yaml" in capsys.readouterr().err
    Path("more.yaml").write_text("base: many.yaml\n")
    Path("self.yaml").write_text("base: self.yaml\n")
    for name, base in (("more.yaml", "many.yaml"), ("self.yaml", "self.yaml")):
        assert main(["sweep", name]) == 2
        expected = f"error: {name}: base must be an experiment file, got the sweep {base!r}\n"
        assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("model={name: mlp, hidden: []}", "small.yaml: model.hidden must name at least one layer"),
        ("partition={name: dirichlet, clients: 4, alpha: 0}", "small.yaml: partition.alpha must"),
        ("client.batch_size=99999999999999999999", "client.batch_size must be below 2**31"),
        (
            "strategy={name: 'flwr.serverapp.strategy:FedTrimmedAvg', beta: 7}",
            "small.yaml: strategy 'FedTrimmedAvg' refuses its options {",
        ),
    ],
)
def test_messages_name_file_key_and_value(
    setting: str, text: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "small.yaml", "--set", setting, "--set", "engine.name=serial"]) == 2
    assert text in capsys.readouterr().err
    assert not Path("runs").exists()
