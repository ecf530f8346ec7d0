"""The same seed gives the same bits: serial, any number of workers, several nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fedsim
from fedsim.config.yaml import dump_yaml
from tests.support.runs import (
    DROPOUT_AND_BATCH_NORM,
    TESTS,
    TRACING,
    assert_same,
    cli,
    measured,
    model_bits,
    tiny,
)

EXPERIMENTS: dict[str, dict[str, Any]] = {
    "dropout-and-batch-norm": {"model": {"name": DROPOUT_AND_BATCH_NORM}, "rounds": 3},
    "resnet": {
        "model": {"name": "resnet", "width": 8},
        "partition": {"name": "iid", "clients": 6},
        "client": {"steps": 2, "momentum": 0.9},
        "rounds": 2,
    },
    "vectorised": {
        "model": {"name": "mlp", "hidden": [256]},
        "partition": {"name": "dirichlet", "clients": 120, "alpha": 1.0},
        "client": {"batch_size": 4, "vectorise": True},
        "participation": 100,
        "rounds": 2,
    },
    "stateful": {
        "model": {"name": "mlp", "hidden": [128]},
        "client": {"name": f"{TESTS}/clients.py:Stateful"},
    },
    "augmented": {
        "dataset": {
            "name": "emoji",
            "share": 0.1,
            "imbalance": 4,
            "augment": {"crop": 2, "flip": True, "jitter": 0.3, "grayscale": 0.2, "cutout": 6},
        },
        "partition": {"name": "domain", "clients": 8, "test": "domain"},
        "model": {"name": "cnn", "channels": [8], "kernel": 3, "hidden": 16},
    },
    "personal": {
        "strategy": {"name": "fedper"},
        "partition": {"name": "dirichlet", "clients": 8, "alpha": 0.5, "test": "matched"},
        "participation": 0.5,
    },
    "partial": {
        "model": {"name": "cnn", "channels": [8], "kernel": 3, "hidden": 64, "dropout": 0.5},
        "partition": {"name": "dirichlet", "clients": 12, "alpha": 0.3},
        "participation": 0.5,
        "evaluation": {"every": 2},
    },
}


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the serial run of an experiment, made once."""
    made: dict[str, fedsim.Run] = {}

    def get(name: str) -> fedsim.Run:
        if name not in made:
            out = tmp_path_factory.mktemp(name)
            made[name] = fedsim.run(tiny(**EXPERIMENTS[name]), out=out)
        return made[name]

    return get


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_serial_run_repeats(name: str, serial: Any, tmp_path: Path) -> None:
    assert_same(fedsim.run(tiny(**EXPERIMENTS[name]), out=tmp_path), serial(name))


def test_another_seed_is_another_run(serial: Any, tmp_path: Path) -> None:
    other = fedsim.run(tiny(**EXPERIMENTS["partial"]), seed=1, out=tmp_path)
    assert model_bits(other) != model_bits(serial("partial"))
    assert measured(other) != measured(serial("partial"))


def test_global_generators_do_not_matter(serial: Any, tmp_path: Path) -> None:
    import random

    import numpy as np
    import torch

    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    before = torch.get_rng_state(), random.getstate()
    run = fedsim.run(tiny(**EXPERIMENTS["dropout-and-batch-norm"]), out=tmp_path)
    assert_same(run, serial("dropout-and-batch-norm"))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("dropout-and-batch-norm", 1),
        ("dropout-and-batch-norm", 2),
        ("dropout-and-batch-norm", 4),
        ("resnet", 2),
        ("vectorised", 1),
        ("vectorised", 4),
        ("stateful", 1),
        ("stateful", 3),
        ("augmented", 3),
        ("personal", 2),
        ("partial", 2),
        ("partial", 4),
    ],
)
def test_ray_equals_serial(name: str, workers: int, serial: Any, ray8: Any, tmp_path: Path) -> None:
    engine = {"name": "ray", "workers": workers, "cpus": 1}
    run = fedsim.run(tiny(**{**EXPERIMENTS[name], "engine": engine}), out=tmp_path)
    assert_same(run, serial(name))


@pytest.mark.ray
@pytest.mark.slow
def test_all_workers_take_part(serial: Any, ray8: Any, tmp_path: Path) -> None:
    experiment = tiny(
        model={"name": DROPOUT_AND_BATCH_NORM},
        client={"name": TRACING, "folder": str(tmp_path)},
        engine={"name": "ray", "workers": 2},
    )
    run = fedsim.run(experiment, out=tmp_path / "runs")
    assert_same(run, serial("dropout-and-batch-norm"))
    assert len([p for p in tmp_path.iterdir() if p.is_file()]) == 2


@pytest.fixture
def two_nodes() -> Iterator[str]:
    """Yield the address of a Ray cluster of two nodes with 2 CPUs each."""
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        head = cluster.add_node(num_cpus=2, include_dashboard=False)
        cluster.add_node(num_cpus=2)
        yield head.address
    finally:
        cluster.shutdown()


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_equal_serial(serial: Any, two_nodes: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.mkdir()
    experiment = tiny(
        model={"name": DROPOUT_AND_BATCH_NORM},
        client={"name": TRACING, "folder": str(trace)},
        engine={"name": "ray", "workers": 4, "address": two_nodes},
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(experiment))
    done = cli("run", file, "--out", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    assert_same(fedsim.load_run(tmp_path / "runs/tiny/seed-0"), serial("dropout-and-batch-norm"))
    nodes = {p.name.split(".")[0] for p in trace.iterdir()}
    assert len(nodes) == 2
