"""Clients that fail: named, dropped, and without a trace in the aggregate of the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim import rng
from fedsim.components import build
from fedsim.config.yaml import dump_yaml
from fedsim.engine.jobs import Block, ClientJob, WorkerSpec
from fedsim.engine.worker import Worker
from fedsim.errors import RunFailed
from fedsim.training.local_sgd import LocalSGD
from tests.support.runs import FAULTY, assert_same, cli, events, model_bits, prepared, tiny

VICTIM = 3

# fault -> (kind of event, words of its text)
FAULTS: dict[str, tuple[str, list[str]]] = {
    "raise": ("raised", ["RuntimeError: the disk of this client is on fire", "faults.py"]),
    "exit": ("raised", ["SystemExit: 3"]),
    "none-at-all": ("raised", ["TypeError", "got NoneType"]),
    "type": ("raised", ["TypeError", "train must return (state, Update), got Params"]),
    "nan": ("screened", ["1 of", "are NaN or infinite"]),
    "huge": ("screened", ["1e+12", "exceeds screening.max_norm = 1e+06"]),
    "shape": ("screened", ["wrong shape of 'body.1.weight': (15, 64), expected (16, 64)"]),
    "kind": ("screened", ["missing keys ['model']"]),
    "missing": ("screened", ["missing keys ['model']"]),
    "weight": ("screened", ["weight must be positive and finite, got 0.0"]),
    "metric": ("raised", ["TypeError: metric 'train_loss' must be a number, got 'low'"]),
    "memory": ("out-of-memory", ["out of memory: cannot allocate 1 TiB"]),
    "sleep": ("timeout", ["took longer than engine.timeout = 0.3 s"]),
}


def faulty(fault: str, **changes: Any) -> dict[str, Any]:
    engine = {"name": "serial", "timeout": 0.3 if fault == "sleep" else None}
    client = {"name": FAULTY, "batch_size": 32, "fault": fault, "victim": VICTIM}
    return tiny(**{"rounds": 2, "engine": engine, "client": client, **changes})


def others_mean(round_one_clients: list[int]) -> dict[str, torch.Tensor]:
    """Return FedAvg's model after round 1, worked out here from each client's own training."""
    experiment = prepared(client={"name": "local-sgd", "batch_size": 32})
    worker = Worker(WorkerSpec(experiment))
    manifest = build.build_partition(experiment, worker.dataset)
    start = worker.model.params()
    method = LocalSGD(LocalSGD.Config(batch_size=32))
    total = torch.zeros(start.layout.size, dtype=torch.float64)
    weight = 0
    for client in round_one_clients:
        indices = manifest.client(client)
        _, update = method.train(
            {"model": start},
            None,
            worker.data(ClientJob(client, indices)),
            rng.torch_generator(0, "client", 1, client),
            worker.context(Block(0, 1, "train"), client),
        )
        assert update.weight == len(indices.train)
        total += update.tensors["model"].flat.double() * len(indices.train)
        weight += len(indices.train)
    mean = start.replace((total / weight).float())
    return {name: mean[name] for name in mean}


@pytest.fixture(scope="module")
def without_victim() -> dict[str, torch.Tensor]:
    return others_mean([c for c in range(8) if c != VICTIM])


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_named_and_leaves_no_trace(
    fault: str, without_victim: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = fedsim.run(faulty(fault, rounds=1), out=tmp_path)
    kind, words = FAULTS[fault]
    [(round, client, got, text)] = events(run)
    assert (round, client, got) == (1, VICTIM, kind)
    assert f"client {VICTIM}" in text
    for word in words:
        assert word in text
    for name, tensor in run.arrays().items():
        torch.testing.assert_close(tensor, without_victim[name], rtol=1e-6, atol=1e-7)
    assert run.final["train/clients"] == 7
    trained = run.clients[run.clients["split"] == "train"]
    assert sorted(trained["client"].unique()) == [0, 1, 2, 4, 5, 6, 7]


def test_the_check_would_see_the_victim(
    without_victim: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    run = fedsim.run(faulty("none", rounds=1), out=tmp_path)
    assert events(run) == []
    name = "head.weight"
    assert not torch.allclose(run.arrays()[name], without_victim[name], rtol=1e-3, atol=1e-4)
    expected = others_mean(list(range(8)))
    torch.testing.assert_close(run.arrays()[name], expected[name], rtol=1e-6, atol=1e-7)


def test_fault_in_a_later_round_goes_on_in_every_round(tmp_path: Path) -> None:
    client = {"name": FAULTY, "fault": "nan", "victim": VICTIM, "since": 2}
    run = fedsim.run(tiny(client=client, rounds=4), out=tmp_path)
    assert [e[:3] for e in events(run)] == [(r, VICTIM, "screened") for r in (2, 3, 4)]
    assert run.metrics.query("name == 'clients'")["value"].tolist() == [8, 7, 7, 7]
    assert run.status == "finished"


def test_a_failed_client_keeps_its_state_of_before(tmp_path: Path) -> None:
    from fedsim.runs import checkpoint
    from fedsim.runs.client_states import StateStore

    client = {"name": FAULTY, "fault": "nan", "victim": VICTIM, "since": 2}
    run = fedsim.run(tiny(client=client, rounds=3), out=tmp_path)
    found = checkpoint.load_latest(run.path)
    assert found is not None
    store = StateStore(run.path)
    store.restore(found[1]["states"])
    assert store.get(VICTIM) == {"rounds": 1}
    assert store.get(0) == {"rounds": 3}
    store.close()


def test_clients_of_a_group_that_fails_are_trained_one_by_one(tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    file = tmp_path / "group.py"
    file.write_text(
        "from pathlib import Path\n"
        "from fedsim.training.local_sgd import LocalSGD\n"
        "class Group(LocalSGD):\n"
        "    def train_group(self, tasks):\n"
        f"        Path({str(seen)!r}).write_text(str(len(tasks)))\n"
        "        tasks[3].payload['no such thing']\n"
    )
    client = {"name": f"{file}:Group", "batch_size": 32}
    run = fedsim.run(tiny(client=client, rounds=1), out=tmp_path)
    assert seen.read_text() == "8"
    assert events(run) == []  # everybody does well alone
    plain = fedsim.run(tiny(client={"vectorise": False}, rounds=1), out=tmp_path / "plain")
    assert model_bits(run) == model_bits(plain)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "exit", "shape", "sleep"])
def test_faults_on_ray_are_those_of_serial(fault: str, ray8: Any, tmp_path: Path) -> None:
    changes = faulty(fault)
    serial = fedsim.run(changes, out=tmp_path / "serial")
    engine = {"name": "ray", "workers": 2, "timeout": changes["engine"]["timeout"]}
    run = fedsim.run({**changes, "engine": engine}, out=tmp_path / "ray")
    assert_same(run, serial)
    first = [(*e[:3], e[3].split("\n")[0]) for e in events(run)]
    assert first == [(*e[:3], e[3].split("\n")[0]) for e in events(serial)]
    assert len(first) == 2


@pytest.mark.ray
@pytest.mark.slow
def test_client_that_no_signal_stops_is_given_up(
    ray8: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.engine.ray_executor.GRACE_SECONDS", 0.5)
    client = {"name": FAULTY, "fault": "hang", "victim": 1, "since": 2, "batch_size": 32}
    changes: dict[str, Any] = {
        "client": client,
        "rounds": 2,
        "partition": {"name": "iid", "clients": 3},
        "model": {"name": "mlp", "hidden": [256]},  # enough work for a block a client
    }
    engine = {"name": "ray", "workers": 2, "timeout": 1.0}
    run = fedsim.run(tiny(**changes, engine=engine), out=tmp_path / "ray")
    died = events(run, "worker-died")
    named = [e for e in died if e[1] == 1]
    assert [e[:3] for e in named] == [(2, 1, "worker-died")]
    assert "client 1, round 2: its worker died or hung" in named[0][3]
    assert all("round 2" in e[3] for e in died)
    gone = {**client, "fault": "raise"}
    reference = fedsim.run(tiny(**{**changes, "client": gone}), out=tmp_path / "serial")
    assert_same(run, reference)


def test_too_few_survivors_stop_the_run_which_stays_resumable(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    client = {"name": FAULTY, "fault": "until", "marker": str(marker), "since": 2}
    changes = tiny(client=client, screening={"min_survivors": 8})
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(changes))
    done = cli("run", file, "--out", tmp_path / "runs")
    folder = tmp_path / "runs/tiny/seed-0"
    assert done.returncode == 1
    assert (
        "error: round 2: only 7 of 8 clients gave a usable update, screening.min_survivors needs "
        f"8: client {VICTIM}, round 2: RuntimeError: the marker is missing"
    ) in done.stderr
    assert f"resume with: fedsim resume {folder}" in done.stderr
    assert "Traceback" not in done.stderr
    run = fedsim.load_run(folder)
    assert (run.status, run.rounds_done) == ("failed", 1)
    assert [e[:3] for e in events(run)] == [(2, VICTIM, "raised")]
    marker.touch()
    again = cli("resume", folder)
    assert again.returncode == 0, again.stderr
    assert_same(fedsim.load_run(folder), fedsim.run(changes, out=tmp_path / "other"))


@pytest.mark.parametrize(("least", "needed"), [(0.95, 8), (0.8, None), (1.0, 8), (7, None), (8, 8)])
def test_minimum_of_survivors_as_count_and_fraction(
    least: float, needed: int | None, tmp_path: Path
) -> None:
    changes = faulty("raise", rounds=1, screening={"min_survivors": least})
    if needed is None:
        assert fedsim.run(changes, out=tmp_path).status == "finished"
        return
    with pytest.raises(RunFailed, match=f"min_survivors needs {needed}"):
        fedsim.run(changes, out=tmp_path)


def test_all_clients_failing_is_a_failed_run(tmp_path: Path) -> None:
    changes = tiny(partition={"name": "iid", "clients": 1}, client={"name": FAULTY, "victim": 0})
    changes["client"]["fault"] = "raise"
    with pytest.raises(RunFailed, match="round 1: only 0 of 1 clients"):
        fedsim.run(changes, out=tmp_path)


def test_policy_abort_stops_at_the_first_fault(tmp_path: Path) -> None:
    changes = faulty("nan", screening={"policy": "abort"})
    with pytest.raises(RunFailed, match=r"round 1: client 3: not finite.*policy is abort"):
        fedsim.run(changes, out=tmp_path)
    run = fedsim.load_run(tmp_path / "tiny/seed-0")
    assert run.status == "failed"
    assert [e[:3] for e in events(run)] == [(1, VICTIM, "screened")]


def test_policy_clip_shortens_the_change_to_the_limit(tmp_path: Path) -> None:
    changes = faulty(
        "huge",
        rounds=1,
        partition={"name": "iid", "clients": 2},
        screening={"policy": "clip", "max_norm": 10.0},
    )
    changes["client"]["victim"] = 1
    experiment = prepared(partition={"name": "iid", "clients": 2})
    start = dict(fedsim.api.build_model(experiment).state_dict())
    run = fedsim.run(changes, out=tmp_path)
    [(round, client, kind, text)] = events(run)
    assert (round, client, kind) == (1, 1, "clipped")
    assert "norm 1e+12 of the change exceeds screening.max_norm = 10" in text
    # Two clients of about equal weight, one moved by almost nothing, the other by exactly 10.
    change = torch.cat([(t - start[n]).flatten() for n, t in run.arrays().items()])
    assert 4.5 < float(change.norm()) < 5.5
    position = int(change.abs().argmax())
    assert float(change[position]) == pytest.approx(5.0, rel=0.05)
    assert run.final["train/clients"] == 2


def test_policy_clip_drops_what_is_not_finite(tmp_path: Path) -> None:
    run = fedsim.run(faulty("nan", rounds=1, screening={"policy": "clip"}), out=tmp_path)
    assert [e[:3] for e in events(run)] == [(1, VICTIM, "screened")]


def test_screened_update_does_not_depend_on_how_clients_are_trained(tmp_path: Path) -> None:
    dropped = fedsim.run(faulty("nan"), out=tmp_path / "nan")
    raised = fedsim.run(faulty("raise"), out=tmp_path / "raise")
    assert model_bits(dropped) == model_bits(raised)


BROKEN = '''
from dataclasses import dataclass

from flwr.serverapp.strategy import FedAvg as FlowerFedAvg

from fedsim import Params
from strategies.fedavg import FedAvg


class Broken(FedAvg):
    """Its second round goes wrong."""

    @dataclass(frozen=True)
    class Config:
        how: str = "nan"

    def aggregate(self, state, updates):
        state, metrics = super().aggregate(state, updates)
        self.rounds = getattr(self, "rounds", 0) + 1
        if self.rounds == 2:
            model = state.model
            if self.config.how == "nan":
                flat = model.flat.clone()
                flat[3:5] = float("nan")
                state.model = model.replace(flat)
            else:
                state.model = model.flat
        return state, metrics


class Nameless(FlowerFedAvg):
    def aggregate_train(self, server_round, replies):
        from flwr.app import ArrayRecord

        arrays, metrics = super().aggregate_train(server_round, replies)
        return ArrayRecord([array.numpy() for array in arrays.values()]), metrics
'''


@pytest.mark.parametrize(
    ("options", "round", "text"),
    [
        ({"how": "nan"}, 2, r"not finite: 2 of 1024 elements of 'body\.1\.weight' are NaN"),
        ({"how": "bare"}, 2, "made no model: it has none of the model's tensors by name"),
        (None, 1, "made no model: it has none of the model's tensors by name"),
    ],
)
def test_a_strategy_that_makes_no_model_is_named_before_the_round_counts(
    options: dict[str, Any] | None, round: int, text: str, tmp_path: Path
) -> None:
    file = tmp_path / "no_model.py"
    file.write_text(BROKEN)
    cls = "Nameless" if options is None else "Broken"
    with pytest.raises(RunFailed, match=f"round {round}: strategy '.*:{cls}' .*{text}"):
        fedsim.run(
            tiny(strategy={"name": f"{file}:{cls}", **(options or {})}), out=tmp_path / "runs"
        )
    run = fedsim.load_run(tmp_path / "runs" / "tiny" / "seed-0")
    assert run.rounds_done == round - 1
    assert run.status == "failed"


def test_a_tensor_for_a_model_is_told_as_such(tmp_path: Path) -> None:
    file = tmp_path / "flat.py"
    file.write_text(
        "from fedsim import LocalSGD\n\n\n"
        "class Flat(LocalSGD):\n"
        "    def update(self, fit):\n"
        "        model = super().update(fit)['model']\n"
        "        return {'model': model.flat[:-1] if fit.ctx.client_id == 3 else model}\n"
    )
    run = fedsim.run(tiny(client={"name": f"{file}:Flat"}, rounds=1), out=tmp_path)
    (event,) = events(run, "screened")
    assert event[1] == 3
    assert (
        "'model' must be Params with the model's names, got a tensor of shape (1209,)" in event[3]
    )
