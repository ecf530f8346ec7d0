"""A whole round of FedSTO without its penalty against one written out with torch alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedsim import rng
from fedsim.components import build
from fedsim.data.dataset import Dataset
from fedsim.data.views import View
from fedsim.maths.detection_loss import Targets
from fedsim.params import FlatModel
from fedsim.strategy import ServerContext
from tests.support.fedsto_scenes import sections
from tests.support.played import Player, assert_weights, changed

LOW, HIGH = 0.1, 0.2
PARTITION = {
    "name": "server-labelled", "clients": 7, "server_domain": "clear",
    "within": {"name": "domain"}, "validation": 0.0, "test": 0.0,
}  # fmt: skip


def images(dataset: Dataset, rows: np.ndarray) -> Tensor:
    """Return images (n, 3, H, W) less the mean, over the standard deviation."""
    x = torch.from_numpy(dataset.train.x[rows]).double() / 255
    mean, std = (torch.tensor(v).double() for v in (dataset.card.mean, dataset.card.std))
    return ((x - mean) / std).float().permute(0, 3, 1, 2)


def taught(found: Any) -> Targets:
    """Return what boxes teach: from HIGH on all, from LOW on that there is something.

    A box of less than a pixel, as one at the border may be, teaches nothing.
    """
    shape = found.labels.shape
    labels, soft = torch.full(shape, -1), torch.full(shape, -1.0)
    classify, regress = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for i in range(shape[0]):
        for j in range(shape[1]):
            score, objectness = float(found.scores[i, j]), float(found.objectness[i, j])
            x1, y1, x2, y2 = found.boxes[i, j].tolist()
            if int(found.labels[i, j]) < 0 or score < LOW or min(x2 - x1, y2 - y1) < 1:
                continue
            labels[i, j] = found.labels[i, j]
            if score >= HIGH:
                classify[i, j] = regress[i, j] = True
            else:
                soft[i, j] = objectness
                regress[i, j] = objectness >= 0.99
    return Targets(found.boxes, labels, classify, regress, soft)


def shuffled(n: int, purpose: str, client: int = -1) -> Tensor:
    """Return 0..n-1 in the order of the first round."""
    return torch.randperm(n, generator=rng.torch_generator(0, purpose, 1, client))


def student(start: Any, x: Tensor, order: Tensor) -> Any:
    """Return the module of a client after two steps of three images."""
    module, teacher = copy.deepcopy(start), copy.deepcopy(start).eval()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    for batch in (order[:3], order[3:6]):
        with torch.no_grad():
            found = teacher.detect(x[batch], least_score=LOW, iou=0.65)
        targets = taught(found)
        assert targets.classify.any()
        assert (targets.soft >= 0).any()
        optimiser.zero_grad()
        module.loss_of(module(x[batch]), targets).backward()
        optimiser.step()
        with torch.no_grad():
            both = zip(teacher.state_dict().values(), module.state_dict().values(), strict=True)
            for slow, quick in both:
                if slow.is_floating_point():
                    slow.copy_(0.8 * slow + 0.2 * quick)
    return module


def test_a_round_without_the_penalty_is_semi_supervised_averaging() -> None:
    """Clients of 6 and 8 images take two steps each, then the server one on their mean."""
    tree = sections(
        partition=PARTITION, seed=0,
        strategy={
            "warm_up_rounds": 0, "stage1_rounds": 0, "lam": 0.0, "steps": 1, "batch_size": 8,
            "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4,
        },
        client={
            "steps": 2, "batch_size": 3, "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3,
            "alpha": 0.8, "tau_low": LOW, "tau_high": HIGH,
        },
    )  # fmt: skip
    player = Player(**tree)
    dataset, manifest = player.worker.dataset, player.manifest
    begun = changed(player.initial, 0.2)
    start: Any = player.module(begun)
    rows = {k: manifest.client(k).train for k in (0, 6)}
    assert [len(some) for some in rows.values()] == [6, 8]

    strategy: Any = build.build_strategy(player.experiment)
    model = FlatModel(copy.deepcopy(player.worker.model.module))
    own = View(dataset.train, manifest.server, dataset.card)
    strategy.bind(begun, ServerContext(0, 1, 7, 2, 2, model, dataset, own))
    payload = strategy.configure(strategy.state, 1, [0, 6])
    updates = [
        player.client.train(payload, None, player.data(k), player.rng(k), player.context(k))[1]
        for k in rows
    ]
    made = strategy.aggregate(strategy.state, updates)[0].model

    students = [
        student(start, images(dataset, some), shuffled(len(some), "client", k))
        for k, some in rows.items()
    ]
    server = copy.deepcopy(start)
    both = zip(*(module.state_dict().values() for module in students), strict=True)
    for tensor, (first, second) in zip(server.state_dict().values(), both, strict=True):
        tensor.copy_((6 * first + 8 * second) / 14)
    optimiser = torch.optim.SGD(server.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    shown = manifest.server[shuffled(24, "strategy/fedsto/server")[:8].numpy()]
    boxes, labels = (
        torch.from_numpy(dataset.train.extra[name][shown]) for name in ("boxes", "box_labels")
    )
    server.loss(server(images(dataset, shown)), boxes, labels).backward()
    optimiser.step()

    assert_weights(made, server, 1e-5)
    assert all(not made[name].equal(begun[name]) for name in made)
