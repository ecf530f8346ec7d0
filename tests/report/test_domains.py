"""Clients on every domain: recorded by any method, and put together as a matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fedsim
from fedsim.errors import InputError
from tests.support.played import Player
from tests.support.runs import tiny

DOMAINS: dict[str, Any] = {
    "dataset": {"name": "emoji", "share": 0.1},
    "partition": {"name": "domain", "clients": 4, "test": "domain"},
    "evaluation": {"across_domains": True},
    "rounds": 1,
}


def test_a_clients_model_is_scored_on_every_domain(tmp_path: Path) -> None:
    run = fedsim.run(tiny(strategy={"name": "local"}, **DOMAINS), out=tmp_path)
    table = fedsim.domain_matrix(run)
    player = Player(strategy={"name": "local"}, **DOMAINS)
    test = player.worker.dataset.test
    assert list(table.columns) == list(player.worker.dataset.card.domains)
    nothing = player.initial.only(lambda name: False)
    card = player.worker.dataset.card
    x = (torch.from_numpy(np.array(test.x)) / 255 - torch.tensor(card.mean)) / torch.tensor(
        card.std
    )
    for client in range(4):
        state, _ = player.train(nothing, client=client)
        module = player.module(state["own"]).eval()
        right = module(x.permute(0, 3, 1, 2)).argmax(1).numpy() == test.y
        for domain in range(4):
            expected = right[test.extra["domain"] == domain].mean()
            assert table.iloc[client, domain] == pytest.approx(expected, abs=2e-3)
    # Its own domain is what it is scored on anyway.
    own = run.client_values("test", "personal/accuracy", last=True)["value"].to_numpy()
    assert np.allclose(np.diag(table.to_numpy()), own)


def test_means_over_runs_and_the_models_name(tmp_path: Path) -> None:
    runs = [fedsim.run(tiny(**DOMAINS), seed=seed, out=tmp_path) for seed in (0, 1)]
    mean = fedsim.domain_matrix(runs)
    each = [fedsim.domain_matrix(run, "generic").to_numpy() for run in runs]
    assert np.allclose(mean.to_numpy(), (each[0] + each[1]) / 2)
    assert np.ptp(each[0], axis=0).max() == 0  # one model for all clients
    with pytest.raises(InputError, match="has no 'personal' model; it has generic"):
        fedsim.domain_matrix(runs[0], "personal")
    figures = fedsim.compare(runs).figures()
    assert "tiny: clients by domains, last round" in figures


def test_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="across_domains must be false for digits"):
        fedsim.run(tiny(evaluation={"across_domains": True}), out=tmp_path)
    changes = {**DOMAINS, "evaluation": {"across_domains": True, "on": "validation"}}
    with pytest.raises(InputError, match="it reads test samples"):
        fedsim.run(tiny(**changes), out=tmp_path)
    assert not list(tmp_path.iterdir())
    plain = fedsim.run(tiny(rounds=1), out=tmp_path)
    with pytest.raises(InputError, match="has recorded nothing across domains"):
        fedsim.domain_matrix(plain)
