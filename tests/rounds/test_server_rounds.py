"""Rounds in which the server works alone, and audits of what clients claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.errors import RunFailed
from tests.support.interruptions import StopAt
from tests.support.runs import assert_same, events, model_bits, tiny

ALONE = '''
from dataclasses import dataclass, replace

from fedsim import Params, Strategy
from fedsim.strategy import mean_update


@dataclass
class State:
    model: Params
    round: int


class Alone(Strategy):
    """In odd rounds the server doubles the model alone, in even ones it averages."""

    weighted_mean = True

    def cohort(self, round, population):
        return [] if round % 2 == 1 else super().cohort(round, population)

    def init(self, params, ctx):
        return State(params, 0)

    def aggregate(self, state, updates):
        assert bool(updates) == (state.round % 2 == 1)
        model = mean_update(updates)["model"] if updates else state.model * 2.0
        return State(model, state.round + 1), {"mine": float(not updates)}
'''


@pytest.fixture
def strategy(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "alone.py"
    file.write_text(ALONE)
    return {"name": f"{file}:Alone"}


def test_the_server_may_work_alone(strategy: dict[str, Any], tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy=strategy, rounds=4), out=tmp_path)
    metrics = run.metrics[run.metrics["split"] == "train"].pivot(
        index="round", columns="name", values="value"
    )
    assert metrics["clients"].tolist() == [0, 8, 0, 8]
    assert metrics["mine"].tolist() == [1, 0, 1, 0]
    assert metrics["bytes_up"].tolist()[::2] == metrics["bytes_down"].tolist()[::2] == [0, 0]
    assert (metrics["bytes_up"].tolist()[1]) > 0
    assert metrics["train_loss"].isna().tolist() == [True, False, True, False]
    assert set(run.client_values("train", "weight")["round"]) == {2, 4}
    assert events(run) == []


def test_a_server_alone_needs_no_client(strategy: dict[str, Any], tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy=strategy, rounds=1), out=tmp_path)
    first = fedsim.run(tiny(rounds=1, client={"lr": 1e-30}, name="kept"), out=tmp_path)
    for name, tensor in run.arrays().items():
        torch.testing.assert_close(tensor, 2.0 * first.arrays()[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("at", [2, 4])
def test_such_runs_resume(strategy: dict[str, Any], at: int, tmp_path: Path) -> None:
    whole = fedsim.run(tiny(strategy=strategy, rounds=4), out=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        fedsim.run(tiny(strategy=strategy, rounds=4), out=tmp_path / "b", progress=StopAt(at))
    assert_same(fedsim.resume(tmp_path / "b/tiny/seed-0"), whole)


def test_a_strategy_that_forgets_its_clients_still_fails(tmp_path: Path) -> None:
    file = tmp_path / "nobody.py"
    file.write_text(
        "from strategies.fedavg import FedAvg\n\n"
        "class Nobody(FedAvg):\n"
        "    def configure_train(self, *given):\n"
        "        return []\n"
    )
    with pytest.raises(RunFailed, match="addressed no client"):
        fedsim.run(tiny(strategy={"name": f"{file}:Nobody"}), out=tmp_path)


CLAIMS = '''
from fedsim.client import Audited, AuditedUpdate
from fedsim.training.local_sgd import LocalSGD


class Claims(Audited, LocalSGD):
    """Trains as ever, and claims that all its samples are of class 3."""

    def train(self, payload, state, data, rng, ctx):
        ctx.model.load(payload["model"])
        state, update = None, self.sent(payload, data)
        return state, update

    def sent(self, payload, data):
        return AuditedUpdate(
            {"model": payload["model"]}, float(len(data.train)), {"told": 1.0}, claims={"class": 3}
        )

    def audit(self, claims, view, ctx):
        labels = view.labels()
        return {"right": float((labels == claims["class"]).float().mean())}
'''

LISTENS = '''
from strategies.fedavg import FedAvg


class Listens(FedAvg):
    """Keeps what it is told of the clients."""

    weighted_mean = False

    def aggregate(self, state, updates):
        told = {name for u in updates for name in u.metrics}
        assert told == {"told"}, told
        assert not any(hasattr(u, "claims") for u in updates)
        return super().aggregate(state, updates)
'''


@pytest.mark.parametrize("engine", ["serial", pytest.param("ray", marks=pytest.mark.ray)])
def test_claims_are_audited_with_labels_that_the_client_cannot_read(
    engine: str, tmp_path: Path
) -> None:
    (tmp_path / "claims.py").write_text(CLAIMS)
    (tmp_path / "listens.py").write_text(LISTENS)
    partition = {"name": "server-labelled", "clients": 4, "server_share": 0.5}
    engines = {"name": engine, **({"workers": 2} if engine == "ray" else {})}
    tree = tiny(
        partition=partition,
        client={"name": f"{tmp_path}/claims.py:Claims"},
        strategy={"name": f"{tmp_path}/listens.py:Listens"},
        rounds=1,
        engine=engines,
    )
    run = fedsim.run(tree, out=tmp_path)
    from fedsim.data.datasets.digits import digits
    from fedsim.data.partition import Manifest

    manifest, labels = Manifest.load(run.path / "partition.npz"), digits().train.y
    shares = [(labels[manifest.client(c).train] == 3).mean() for c in range(4)]
    assert run.client_values("train", "right")["value"].tolist() == pytest.approx(shares)
    sizes = manifest.num_train
    mean = sum(s * n for s, n in zip(shares, sizes, strict=True)) / sizes.sum()
    assert run.final["train/right"] == pytest.approx(mean)
    up = run.client_values("train", "bytes_up")["value"]
    assert set(up) == {sum(t.numel() * t.element_size() for t in run.arrays().values())}


def test_claims_without_an_audit_fail_the_client(tmp_path: Path) -> None:
    text = CLAIMS.replace("(Audited, LocalSGD)", "(LocalSGD)")
    (tmp_path / "claims.py").write_text(text)
    tree = tiny(client={"name": f"{tmp_path}/claims.py:Claims"}, rounds=1)
    with pytest.raises(RunFailed, match="Claims makes claims but is no Audited"):
        fedsim.run(tree, out=tmp_path)


def test_training_does_not_change_with_an_audit(tmp_path: Path) -> None:
    (tmp_path / "claims.py").write_text(CLAIMS)
    (tmp_path / "silent.py").write_text(
        CLAIMS.replace(', claims={"class": 3}', "")
        .replace("AuditedUpdate(", "Update(")
        .replace("AuditedUpdate", "Update")
    )
    runs = [
        fedsim.run(
            tiny(client={"name": f"{tmp_path}/{n}.py:Claims"}, rounds=2, name=n), out=tmp_path
        )
        for n in ("claims", "silent")
    ]
    assert model_bits(runs[0]) == model_bits(runs[1])
