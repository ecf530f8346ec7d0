"""FedAvg on a model of two parameters, with numbers from paper and pencil; and its cohorts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import fedsim
from fedsim.client import Update
from fedsim.errors import InputError
from fedsim.params import Layout, Params
from fedsim.strategy import ServerContext, sample_cohort
from strategies.fedavg import FedAvg
from tests.support.runs import TESTS, tiny

LAYOUT = Layout(("w", "b", "running"), ((1,), (1,), (1,)), 2, ("count",))


def params(w: float, b: float, running: float = 0.0, count: int = 0) -> Params:
    return Params(LAYOUT, torch.tensor([w, b, running]), {"count": torch.tensor(count)})


@pytest.fixture
def bound() -> FedAvg:
    strategy = FedAvg()
    context = ServerContext(0, 1, 3, 3, 2, None, None)  # type: ignore[arg-type]
    strategy.bind(params(1.0, 2.0), context)
    return strategy


def test_one_round_by_hand(bound: FedAvg) -> None:
    updates = [
        Update({"model": params(2.0, 0.0, 4.0, 7)}, weight=1.0),
        Update({"model": params(6.0, 4.0, 0.0, 9)}, weight=3.0),
    ]
    state, metrics = bound.aggregate(bound.state, updates)
    # w = (1*2 + 3*6)/4 = 5, b = (1*0 + 3*4)/4 = 3, running = (1*4 + 3*0)/4 = 1, count = max
    assert state.model.flat.tolist() == [5.0, 3.0, 1.0]
    assert state.model.flat.dtype == torch.float32
    assert state.model.integers["count"].item() == 9
    # |(5, 3, 1) - (1, 2, 0)| = sqrt(16 + 1 + 1)
    assert metrics == {"update_norm": pytest.approx(math.sqrt(18))}


def test_block_means_by_weight_are_the_mean_of_all(bound: FedAvg) -> None:
    single = [Update({"model": params(float(v), 0.0)}, weight=float(v)) for v in (1, 2, 3)]
    whole, _ = bound.aggregate(bound.state, single)
    # Clients 1 and 2 as one block: (1*1 + 2*2)/3 with weight 3.
    block = Update({"model": params(5 / 3, 0.0)}, weight=3.0)
    parts, _ = bound.aggregate(bound.state, [block, single[2]])
    assert whole.model["w"].item() == pytest.approx(14 / 6)
    torch.testing.assert_close(parts.model.flat, whole.model.flat)


def test_configure_sends_the_generic_model(bound: FedAvg) -> None:
    payload: Any = bound.configure(bound.state, 1, [0, 2])
    assert set(payload) == {"model"}
    assert payload["model"].flat.tolist() == [1.0, 2.0, 0.0]


def test_an_equal_mean_does_not_move(bound: FedAvg) -> None:
    same = [Update({"model": params(1.0, 2.0)}, weight=float(n)) for n in (3, 5, 11)]
    state, metrics = bound.aggregate(bound.state, same)
    assert state.model.flat.tolist() == [1.0, 2.0, 0.0]
    assert metrics["update_norm"] == 0.0


# Cohorts.


@pytest.mark.parametrize(("population", "size"), [(10, 3), (10, 10), (1000, 999), (10**6, 50)])
def test_cohort_is_ascending_and_distinct(population: int, size: int) -> None:
    for round in range(1, 20):
        cohort = sample_cohort(0, round, population, size)
        assert len(cohort) == size
        assert cohort == sorted(set(cohort))
        assert cohort[0] >= 0
        assert cohort[-1] < population
        assert all(type(client) is int for client in cohort)


def test_cohort_follows_from_seed_and_round() -> None:
    assert sample_cohort(3, 5, 100, 10) == sample_cohort(3, 5, 100, 10)
    different = {tuple(sample_cohort(s, r, 100, 10)) for s in range(5) for r in range(20)}
    assert len(different) == 100


@pytest.mark.parametrize("size", [10, 40])  # both ways of drawing
def test_cohort_is_uniform(size: int) -> None:
    """Chi-square of the counts: mean ``population - 1``, standard deviation its root twice over."""
    population, rounds = 100, 4000
    counts = torch.zeros(population)
    pairs = torch.zeros(population, population)
    for round in range(rounds):
        cohort = torch.tensor(sample_cohort(1, round, population, size))
        counts[cohort] += 1
        pairs[cohort[:, None], cohort[None]] += 1
    expected = rounds * size / population
    # Without replacement the variance of a count is smaller by (1 - size / population).
    chi = float(((counts - expected) ** 2).sum() / expected / (1 - size / population))
    freedom = population - 1
    assert abs(chi - freedom) < 5 * math.sqrt(2 * freedom)
    # Neighbours are together no more often than others.
    together = rounds * size * (size - 1) / (population * (population - 1))
    neighbours = float(pairs.diagonal(1).mean())
    assert abs(neighbours - together) < 5 * math.sqrt(together / 99)


def test_cohort_takes_time_and_memory_in_its_size_only() -> None:
    import time
    import tracemalloc

    tracemalloc.start()
    started = time.perf_counter()
    for round in range(100):
        sample_cohort(0, round, 10**6, 20)
    seconds = time.perf_counter() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200_000  # a permutation of the clients alone is 8 MB
    assert seconds < 1.0


# A client method that does not fit.


@pytest.mark.parametrize(
    ("client", "words"),
    [
        ("SendsBody", "the strategy needs ['model'] in an update, the client sends ['body']"),
        (
            "NeedsPrototypes",
            "the client needs ['prototypes'] in the payload, the strategy sends ['model']",
        ),
    ],
)
def test_misfit_fails_before_anything_is_written(client: str, words: str, tmp_path: Path) -> None:
    name = f"{TESTS}/clients.py:{client}"
    with pytest.raises(InputError) as error:
        fedsim.run(tiny(client={"name": name}), out=tmp_path)
    said = f"strategy 'fedavg' and client {name!r} do not fit: {words}"
    assert said == str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_it_learns(tmp_path: Path) -> None:
    run = fedsim.run(tiny(rounds=20, client={"lr": 0.2, "batch_size": 8}), out=tmp_path)
    accuracy = run.metrics.query("name == 'generic/accuracy'")["value"].tolist()
    assert accuracy[0] < 0.75
    assert accuracy[-1] > 0.85
