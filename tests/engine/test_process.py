"""Where the server trains, and what is drawn there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.api import prepare
from fedsim.components.build import build_dataset, build_partition
from fedsim.engine.process import driver_device, serial_device
from fedsim.errors import InputError
from fedsim.rng import seed_generators
from fedsim.rounds import setup
from fedsim.rounds.setup import build_parts, server_context
from tests.support.pairs import small
from tests.support.runs import tiny


@pytest.mark.parametrize(
    ("gpus", "there", "expected"),
    [(0.0, True, "cpu"), (0.5, False, "cpu"), (0.5, True, "cuda:0"), (1.0, True, "cuda:0")],
)
def test_the_drivers_device(
    gpus: float, there: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert driver_device(gpus) == expected


@pytest.mark.parametrize(
    ("gpus", "there", "expected"),
    [(0.0, 0, "cpu"), (0.0, 2, "cpu"), (0.5, 1, "cuda:0"), (2.0, 2, "cuda:0")],
)
def test_the_serial_executors_device(
    gpus: float, there: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    assert serial_device(gpus) == expected


@pytest.mark.parametrize(("gpus", "there"), [(1.0, 0), (0.25, 0), (3.0, 2)])
def test_gpus_that_are_not_there_are_bad_input(
    gpus: float, there: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As with Ray, whose refusal has the same words."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    threads = torch.get_num_threads()
    text = f"engine.gpus = {gpus:g} does not fit: this machine has {there} GPUs"
    with pytest.raises(InputError, match=text):
        fedsim.run(tiny(engine={"name": "serial", "gpus": gpus}), out=tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert torch.get_num_threads() == threads


def parts_of(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[setup.Parts, list[str]]:
    """Return the parts of an experiment, and the devices that its model was asked to be on."""
    asked: list[str] = []
    whole = setup.FlatModel

    def noted(module: torch.nn.Module, device: str = "cpu") -> Any:
        asked.append(device)
        return whole(module)

    monkeypatch.setattr(setup, "FlatModel", noted)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def build(experiment: Any) -> Any:
        dataset = build_dataset(experiment)
        return dataset, build_partition(experiment, dataset)

    return build_parts(prepare(tiny(**changes)), build), asked


def test_a_server_with_samples_trains_where_clients_do(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = {"name": "ray", "gpus": 0.5}
    parts, asked = parts_of(monkeypatch, **small(engine=engine))
    assert asked == ["cuda:0"]
    # The public pairs are where the model is.
    server = server_context(parts).server
    assert server is not None
    assert server.device == parts.model.flat.device
    assert parts_of(monkeypatch, engine=engine)[1] == ["cpu"]  # no samples of its own
    assert parts_of(monkeypatch, **small())[1] == ["cpu"]  # no GPUs


def test_both_generators_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed", seeds.append)
    with torch.random.fork_rng(devices=[]):
        seed_generators(torch.device("cpu"), 7)
        assert seeds == []
        first = torch.rand(1)
        seed_generators(torch.device("cuda:0"), 7)
        assert seeds == [7]
        assert torch.rand(1).equal(first)
