"""The protocols of the authors' code on small files in the formats of the sets and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fedsim
from fedsim.api import prepare
from fedsim.components.build import build_dataset, build_partition
from fedsim.config.experiment import Experiment
from fedsim.data.dataset import Dataset
from fedsim.data.datasets.image_folder import SETS
from tests.support.digit_files import mnist, mnist_m, svhn, usps
from tests.support.resnets import torchvision_state
from tests.support.runs import events

FOLDER = Path(__file__).resolve().parents[2] / "experiments/fraug"
CHANGES: dict[str, Any] = {
    "rounds": 1,
    "dataset.share": 1.0,
    "client.steps": 1,
    "client.batch_size": 8,
    "evaluation.every": 1,
    "engine": {"name": "serial"},
}
"""To a round of seconds."""
SMALL: dict[str, Any] = {"dataset.size": 32, "dataset.augment.crop": 4}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "data"
    monkeypatch.setenv("FEDSIM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FEDSIM_DATA", str(root))
    (root / "weights").mkdir(parents=True)
    return root


def write(root: Path, name: str, classes: tuple[str, ...], each: int) -> None:
    """Write so many images a class and domain, in folders."""
    generator = np.random.default_rng(0)
    for domain in SETS[name].domains:
        for label in classes:
            folder = root / name / domain / label
            folder.mkdir(parents=True)
            for i in range(each):
                pixels = generator.integers(0, 255, (4, 5, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")


def write_weights(root: Path, flat: bool) -> dict[str, torch.Tensor]:
    """Write weights under torchvision's names, with `flat` in a small file; return them."""
    state = torchvision_state(18, flat=flat)
    torch.save(state, root / "weights" / "resnet18-f37072fd.pth")
    return state


def test_a_run_on_pacs_begins_with_the_weights(data: Path, tmp_path: Path) -> None:
    write(data, "pacs", SETS["pacs"].classes, 5)
    state = write_weights(data, flat=False)
    changes = CHANGES | SMALL | {"client.lr": 1e-12}
    run = fedsim.run(FOLDER / "pacs.yaml", set=changes, out=tmp_path / "runs")
    assert events(run) == []
    assert 0 <= run.final["test/clients/personal/accuracy_on/sketch"] <= 1
    model = run.arrays()
    assert model["head.weight"].shape == (7, 512)
    # A step of no length; statistics of BatchNorm stay with the clients.
    torch.testing.assert_close(model["body.0.weight"], state["conv1.weight"])
    torch.testing.assert_close(model["body.11.norm2.bias"], state["layer4.1.bn2.bias"])


def owned_domains(experiment: Experiment, dataset: Dataset) -> list[set[int]]:
    manifest = build_partition(experiment, dataset)
    domains = dataset.train.extra["domain"]
    clients = range(experiment.partition.clients)
    return [set(domains[manifest.client(c).train].tolist()) for c in clients]


def played(name: str, clients: int, changes: dict[str, Any], out: Path) -> fedsim.Run:
    """Play a round of a file: every client takes part, nothing goes wrong, the model is finite."""
    changes = CHANGES | {"evaluation.across_domains": False} | changes
    run = fedsim.run(FOLDER / name, set=changes, out=out)
    assert run.status == "finished"
    assert events(run) == []
    assert run.final["train/clients"] == clients
    assert all(bool(tensor.isfinite().all()) for tensor in run.arrays().values())
    return run


def test_a_run_on_digits_has_the_networks_of_the_code(data: Path, tmp_path: Path) -> None:
    for write_set, name in ((mnist, "mnist"), (mnist_m, "mnist-m"), (svhn, "svhn"), (usps, "usps")):
        write_set(data / name)
    run = played("digits5.yaml", 4, {"partition.validation": 0.0}, tmp_path / "runs")
    model = run.arrays()
    assert model["body.12.weight"].shape == (2048, 8192)
    assert model["head.weight"].shape == (10, 512)
    # |theta| without BatchNorm's statistics: `tests/models/test_cnn.py` counts it. |omega|: noise
    # of 256, 512 features, four numbers for each of the 2 x 512 normalised ones, two counters.
    theta, omega = 18_151_370, 266 * 512 + 512 + 512 * 512 + 512 + 4 * 2 * 512
    assert set(run.clients.query("name == 'bytes_up'")["value"]) == {4 * (theta + omega) + 16}


def test_officehome_has_a_domain_a_client(data: Path, tmp_path: Path) -> None:
    write(data, "office-home", SETS["office-home"].classes, 2)
    changes = {"dataset.size": 4, "dataset.share": 1.0, "dataset.test_share": 0.5}
    experiment = prepare(FOLDER / "officehome.yaml", changes)
    dataset = build_dataset(experiment)
    assert (dataset.num_classes, len(dataset.train)) == (65, 4 * 65)
    assert owned_domains(experiment, dataset) == [{0}, {1}, {2}, {3}]
    write_weights(data, flat=True)
    run = played("officehome.yaml", 4, SMALL | {"dataset.test_share": 0.5}, tmp_path / "runs")
    assert run.arrays()["head.weight"].shape == (65, 512)


def test_domainnet_has_ten_classes_and_a_domain_a_client(data: Path, tmp_path: Path) -> None:
    ten = ("bird", "feather", "headphones", "ice_cream", "teapot", "tiger", "whale", "windmill",
           "wine_glass", "zebra")  # fmt: skip
    names = sorted([*ten, *(f"thing {i}" for i in range(335))])
    write(data, "domainnet", tuple(names), 2)
    for domain in SETS["domainnet"].domains:
        for i, part in enumerate(("train", "test")):
            lines = [f"{domain}/{name}/{i}.png {n}\n" for n, name in enumerate(names)]
            (data / "domainnet" / f"{domain}_{part}.txt").write_text("".join(lines))
    experiment = prepare(FOLDER / "domainnet.yaml", {"dataset.size": 4, "dataset.share": 1.0})
    dataset = build_dataset(experiment)
    assert dataset.card.classes == ten
    assert (len(dataset.train), len(dataset.test)) == (6 * 10, 6 * 10)
    assert owned_domains(experiment, dataset) == [{0}, {1}, {2}, {3}, {4}, {5}]
    write_weights(data, flat=True)
    run = played("domainnet.yaml", 6, SMALL, tmp_path / "runs")
    assert run.arrays()["head.weight"].shape == (10, 512)
