"""Ray workers: where they are placed, how many fit, and what is left when they are gone."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.components.build import build_dataset, build_partition
from fedsim.config.yaml import dump_yaml
from fedsim.engine.executors import open_executor
from fedsim.engine.jobs import WorkerSpec
from fedsim.engine.ray_cluster import places
from fedsim.engine.ray_executor import RayExecutor
from fedsim.errors import InputError
from fedsim.rounds.setup import build_parts
from tests.support.runs import (
    FAULTY,
    KEEPS_MUCH,
    TRACING,
    assert_same,
    events,
    prepared,
    start,
    tiny,
)

pytestmark = pytest.mark.ray


def shelves_of_this_process() -> set[Path]:
    return set(Path("/dev/shm").glob(f"fedsim-{os.getpid()}-*"))


def executor(**engine: Any) -> RayExecutor:
    experiment = prepared(engine={"name": "ray", **engine})
    return RayExecutor(WorkerSpec(experiment), max_workers=8)


@pytest.mark.parametrize(
    ("node", "cpus", "gpus", "room"),
    [
        ({"CPU": 8.0}, 1, 0, 8),
        ({"CPU": 8.0}, 3, 0, 2),
        ({"CPU": 8.0}, 0.1, 0, 80),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.5, 4),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 0.6, 2),  # two halves of a worker on two GPUs are none
        ({"CPU": 8.0, "GPU": 2.0}, 0.5, 0.1, 16),
        ({"CPU": 8.0, "GPU": 2.0}, 1, 2, 1),
        ({"CPU": 8.0}, 1, 0.5, 0),
        ({}, 1, 0, 0),
    ],
)
def test_room_on_one_machine(node: dict[str, float], cpus: float, gpus: float, room: int) -> None:
    assert places(node, cpus, gpus) == room


@pytest.mark.slow
def test_workers_share_gpus_by_fraction(ray8: Any) -> None:
    workers = executor(gpus=0.5, cpus=0.5)
    try:
        assert workers.num_workers == 4
        gpus = Counter(tuple(w["gpu_ids"]) for w in workers.describe())
        assert sorted(gpus.values()) == [2, 2]  # two workers on each of the two GPUs
        assert all(len(ids) == 1 for ids in gpus)
        assert len({w["pid"] for w in workers.describe()}) == 4
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("engine", "numbers"),
    [
        ({"workers": 9}, ["engine.workers = 9", "8 CPUs and 2 GPUs", "room for 8"]),
        ({"workers": 5, "gpus": 0.5}, ["engine.workers = 5", "engine.gpus = 0.5", "room for 4"]),
        ({"workers": 3, "gpus": 0.6}, ["engine.workers = 3", "room for 2"]),
        ({"cpus": 16}, ["engine.cpus = 16", "room for 0"]),
        ({"gpus": 3}, ["engine.gpus = 3", "2 GPUs", "room for 0"]),
    ],
)
def test_workers_that_do_not_fit_are_bad_input(
    engine: dict[str, Any], numbers: list[str], ray8: Any, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        fedsim.run(tiny(engine={"name": "ray", **engine}), out=tmp_path)
    for words in numbers:
        assert words in str(error.value)
    assert list(tmp_path.iterdir()) == []
    assert ray8.is_initialized()


@pytest.mark.slow
def test_no_more_workers_than_clients_and_nothing_left_behind(ray8: Any) -> None:
    shelves = shelves_of_this_process()
    experiment = prepared(participation=2, engine={"name": "ray", "cpus": 1})
    parts = build_parts(experiment, lambda e: (d := build_dataset(e), build_partition(e, d)))
    with open_executor(parts.experiment, parts.manifest.public_rows) as workers:
        assert workers.num_workers == 2
        pids = [w["pid"] for w in workers.describe()]  # type: ignore[attr-defined]
        assert shelves_of_this_process() > shelves
    assert shelves_of_this_process() == shelves
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert ray8.is_initialized()  # it was not ours to stop


def test_driver_computes_on_one_thread_meanwhile(ray8: Any) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        workers = executor(workers=1)
        assert torch.get_num_threads() == 1
        workers.close()
        assert torch.get_num_threads() == 2
        with pytest.raises(InputError):
            executor(workers=9)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_worker_that_cannot_start_fails_clearly_and_leaves_nothing(
    ray8: Any, tmp_path: Path
) -> None:
    shelves = shelves_of_this_process()
    model = tmp_path / "model.py"
    model.write_text(
        "import os\n"
        "from torch import nn\n"
        "def here_only(input_shape, num_classes):\n"
        "    if 'RAY_WORKER' in os.environ or 'ray' in os.sys.argv[0]:\n"
        "        raise OSError('no such library here')\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    changes = tiny(model={"name": f"{model}:here_only"}, engine={"name": "ray", "workers": 1})
    with pytest.raises(fedsim.RunFailed, match="no such library here"):
        fedsim.run(changes, out=tmp_path / "runs")
    assert shelves_of_this_process() == shelves
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    # A machine that is gone is noticed in two seconds instead of half a minute.
    health = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 2,
    }
    try:
        cluster.add_node(num_cpus=4, include_dashboard=False, _system_config=health)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
def test_machine_that_is_lost_in_a_run(cluster: Any, tmp_path: Path) -> None:
    """Its workers start anew on the other machine, and the bits are the same."""
    second = cluster.add_node(num_cpus=4)
    trace = tmp_path / "trace"
    trace.mkdir()
    experiment = tiny(
        rounds=150,
        model={"name": "mlp", "hidden": [256]},
        client={"name": TRACING, "folder": str(trace)},
        engine={"name": "ray", "workers": 4, "address": cluster.address},
        evaluation={"every": 50},
    )
    file = tmp_path / "experiment.yaml"
    file.write_text(dump_yaml(experiment))
    process = start("run", file, "--out", tmp_path / "runs")
    deadline = time.monotonic() + 90
    while len({p.name.split(".")[0] for p in trace.iterdir()}) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    cluster.remove_node(second, allow_graceful=False)
    _, error = process.communicate(timeout=150)
    assert process.returncode == 0, error
    run = fedsim.load_run(tmp_path / "runs/tiny/seed-0")
    assert len(events(run, "worker-died")) >= 1
    serial = {**experiment, "engine": {"name": "serial"}}
    assert_same(run, fedsim.run(serial, out=tmp_path / "serial"))


@pytest.mark.slow
def test_longest_block_is_handed_out_first_and_order_does_not_show(ray8: Any) -> None:
    """A worker that dies with blocks waiting gives all of them back."""
    experiment = prepared(
        model={"name": "mlp", "hidden": [256]}, engine={"name": "ray", "workers": 1}
    )
    from fedsim.engine.jobs import Block, ClientJob

    dataset = build_dataset(experiment)
    manifest = build_partition(experiment, dataset)
    workers = RayExecutor(WorkerSpec(experiment), max_workers=8)
    try:
        from fedsim.engine.worker import Worker

        model = Worker(WorkerSpec(experiment)).model.params()
        blocks = [
            Block(i, 1, "train", [ClientJob(i, manifest.client(i))], cost=float(cost))
            for i, cost in enumerate([1, 3, 2, 3])
        ]
        results = list(workers.run(blocks, {"model": model, "config": {}}))
        assert [r.index for r in results] == [1, 3, 2, 0]
    finally:
        workers.close()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("workers", [1, 2])
def test_large_states_do_not_block_the_way_to_a_worker(
    ray8: Any, tmp_path: Path, workers: int
) -> None:
    """Blocks and answers of mebibytes, which no socket's buffer holds, cross each other."""
    model = {"name": "mlp", "hidden": [256]}  # large enough for a block a client
    engine = {"name": "ray", "workers": workers}
    experiment = tiny(client={"name": KEEPS_MUCH}, model=model, engine=engine)
    run = fedsim.run(experiment, out=tmp_path / "ray")
    assert run.status == "finished"
    assert not events(run)
    assert_same(run, fedsim.run({**experiment, "engine": {"name": "serial"}}, out=tmp_path / "s"))


@pytest.mark.slow
def test_faulty_is_importable_by_workers_from_a_file(ray8: Any, tmp_path: Path) -> None:
    changes = tiny(client={"name": FAULTY}, rounds=1, engine={"name": "ray", "workers": 1})
    assert fedsim.run(changes, out=tmp_path).status == "finished"
