"""What a partition gives to whom, seen from strategies and clients in a run."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fedsim
from fedsim.data.partition import Manifest
from fedsim.errors import RunFailed
from tests.support.runs import events, tiny

METHODS = '''
from fedsim.client import Heterogeneous, Update
from fedsim.training.local_sgd import LocalSGD
from strategies.fedavg import FedAvg


class Counting(FedAvg):
    """Reports what the server itself has."""

    def aggregate(self, state, updates):
        state, metrics = super().aggregate(state, updates)
        server = self.ctx.server
        return state, {
            "server_samples": len(server),
            "server_rows": float(server.indices.sum()),
            "server_labels": float(server.labels().sum()),
        }


class Looking(LocalSGD):
    """Sends the model back and reports what it may see."""

    def train(self, payload, state, data, rng, ctx):
        seen = {"samples": len(data.train), "images": 0.0, "texts": 0.0, "labels": 0.0}
        for name, read in (
            ("images", data.train.inputs),
            ("texts", lambda: data.train.column("tokens")),
            ("labels", data.train.labels),
        ):
            try:
                read()
                seen[name] = 1.0
            except RuntimeError:
                pass
        return None, Update({"model": payload["model"]}, 1.0, seen)
'''


@pytest.fixture
def methods(tmp_path: Path) -> Path:
    file = tmp_path / "methods.py"
    file.write_text(METHODS)
    return file


def last(run: fedsim.Run, name: str) -> list[float]:
    return run.client_values("train", name, last=True)["value"].tolist()


def test_the_server_has_the_public_samples_and_no_client_has_them(
    methods: Path, tmp_path: Path
) -> None:
    run = fedsim.run(
        tiny(
            partition={"name": "public", "clients": 8, "size": 100},
            strategy={"name": f"{methods}:Counting"},
            rounds=1,
        ),
        out=tmp_path,
    )
    manifest = Manifest.load(run.path / "partition.npz")
    assert run.final["train/server_samples"] == 100
    assert run.final["train/server_rows"] == manifest.server.sum()
    assert not set(manifest.server) & set(manifest.indices)
    from fedsim.data.datasets.digits import digits

    assert run.final["train/server_labels"] == digits().train.y[manifest.server].sum()


def test_clients_see_their_modality_and_no_hidden_label(methods: Path, tmp_path: Path) -> None:
    inner: dict[str, Any] = {"name": "modality", "images": 2, "texts": 1, "pairs": 1}
    run = fedsim.run(
        tiny(
            dataset={"name": "emoji", "share": 0.1},
            partition={
                "name": "server-labelled", "clients": 4, "server_share": 0.5, "within": inner,
                "test": 0.0, "validation": 0.0,
            },
            client={"name": f"{methods}:Looking"},
            rounds=1,
        ),
        out=tmp_path,
    )  # fmt: skip
    assert last(run, "images") == [1, 1, 0, 1]
    assert last(run, "texts") == [0, 0, 1, 1]
    assert last(run, "labels") == [0, 0, 0, 0]


@pytest.mark.parametrize("vectorise", ["auto", False])
def test_training_on_hidden_labels_fails_by_name(vectorise: Any, tmp_path: Path) -> None:
    """Also where clients are trained in groups, which read many clients' labels at once."""
    experiment = tiny(
        partition={"name": "server-labelled", "clients": 4, "server_share": 0.5},
        client={"vectorise": vectorise},
    )
    with pytest.raises(RunFailed, match="0 of 4 clients"):
        fedsim.run(experiment, out=tmp_path)
    run = fedsim.load_run(tmp_path / "tiny" / "seed-0")
    found = events(run, "raised")
    assert sorted(e[1] for e in found if e[1] is not None) == [0, 1, 2, 3]
    assert all("the labels of this client's samples are hidden" in e[3] for e in found)


def test_a_saved_partition_is_used_as_it_is(tmp_path: Path) -> None:
    first = fedsim.run(tiny(rounds=1, name="first"), out=tmp_path)
    saved = first.path / "partition.npz"
    changes = {"partition": {"name": "file", "clients": 8, "path": str(saved)}}
    second = fedsim.run(tiny(rounds=1, name="second", seed=5, **changes), out=tmp_path)
    again = Manifest.load(second.path / "partition.npz")
    assert again.digest() == Manifest.load(saved).digest()


def test_a_share_and_a_tail_are_divided_and_nothing_else(tmp_path: Path) -> None:
    run = fedsim.run(
        tiny(dataset={"name": "digits", "share": 0.5, "imbalance": 10}, rounds=1), out=tmp_path
    )
    from fedsim.data.datasets.digits import digits

    rows = Manifest.load(run.path / "partition.npz").indices
    sizes = np.bincount(digits().train.y[rows])
    assert sizes[0] / sizes[9] == pytest.approx(10, rel=0.15)
    assert (np.diff(sizes) <= 0).all()
    assert sizes.sum() < 719
    names = set(run.metrics["name"])
    assert {"generic/accuracy_many", "generic/accuracy_medium", "generic/accuracy_few"} <= names


UNLIKE = '''
import torch
from fedsim.client import Heterogeneous, Update
from fedsim.training.local_sgd import LocalSGD
from strategies.fedavg import FedAvg


class Unlike({base}LocalSGD):
    """Sends the model and as many numbers as its id."""

    sends = frozenset({{"model", "numbers"}})

    def train(self, payload, state, data, rng, ctx):
        numbers = torch.zeros(1 if ctx.client_id < 3 else ctx.client_id)
        return None, Update({{"model": payload["model"], "numbers": numbers}}, 1.0)


class Sizes(FedAvg):
    """Reports how much was sent, and what whose clients hold."""

    weighted_mean = False

    def aggregate(self, state, updates):
        sizes = [len(u.tensors["numbers"]) for u in updates]
        held = [self.ctx.modality(c) for c in range(self.ctx.num_clients)]
        return state, {{"sent": float(sum(sizes)), "texts": float(held.count("text"))}}
'''


@pytest.mark.parametrize(("alike", "sent"), [(True, 3), (False, 1 + 1 + 1 + 3 + 4)])
def test_clients_that_send_other_shapes_are_kept_where_that_is_meant(
    alike: bool, sent: int, tmp_path: Path
) -> None:
    file = tmp_path / "unlike.py"
    file.write_text(UNLIKE.format(base="" if alike else "Heterogeneous, "))
    run = fedsim.run(
        tiny(
            dataset={"name": "emoji", "share": 0.1},
            partition={"name": "modality", "clients": 5, "images": 2, "texts": 2, "pairs": 1},
            strategy={"name": f"{file}:Sizes"},
            client={"name": f"{file}:Unlike"},
            rounds=1,
        ),
        out=tmp_path,
    )
    assert run.final["train/sent"] == sent
    assert run.final["train/texts"] == 2
    assert len(events(run, "screened")) == (2 if alike else 0)
