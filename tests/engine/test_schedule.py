"""The scheduler: blocks follow from the experiment, results do not depend on who is first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.data.views import View
from fedsim.engine.jobs import RoundLog
from fedsim.engine.schedule import MAX_BLOCKS, MIN_BLOCK_WORK, Dispatch, Plan, block_length
from fedsim.params import Params
from tests.support.scheduled import Scheduled


def blocks(cohort: int, work: float, group_size: int = 1) -> list[int]:
    """Return the sizes of the blocks that a cohort is cut into."""
    length = block_length(cohort, work, group_size)
    return [min(length, cohort - start) for start in range(0, cohort, length)]


def test_block_length_by_hand() -> None:
    # No more work than one block is worth: one block.
    assert blocks(10, MIN_BLOCK_WORK) == [10]
    # Worth three: ceil(10 / 3) = 4 clients each.
    assert blocks(10, 3.5 * MIN_BLOCK_WORK) == [4, 4, 2]
    # Never more blocks than clients, nor than MAX_BLOCKS.
    assert blocks(3, 1e12) == [1, 1, 1]
    assert len(blocks(10_000, 1e15)) == MAX_BLOCKS
    # Whole groups where clients are trained together.
    assert blocks(40, 1e12, 16) == [16, 16, 8]
    assert blocks(1, 0.0) == [1]


@pytest.mark.parametrize("cohort", [1, 2, 7, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("work", [0.0, 1e6, 1e7, 1e9])
@pytest.mark.parametrize("group", [1, 16])
def test_blocks_cover_the_cohort(cohort: int, work: float, group: int) -> None:
    sizes = blocks(cohort, work, group)
    assert sum(sizes) == cohort
    assert len(sizes) <= MAX_BLOCKS
    assert all(size % group == 0 for size in sizes[:-1])


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scheduled]:
    scene = Scheduled(tmp_path)
    yield scene
    scene.executor.close()


def described(log: RoundLog) -> list[tuple[int, float, bytes]]:
    """Return client, weight and bytes of each update in order of client, or of their mean."""
    if log.sums is not None:
        mean: Params = log.sums.mean()["model"]
        return [(-1, log.sums.weight, mean.flat.numpy().tobytes())]
    trained = [(r, (r.update or {})["model"]) for r in log.survivors()]
    return [(r.client, r.weight, params.flat.numpy().tobytes()) for r, params in trained]


@pytest.mark.parametrize("mean", [True, False])
def test_results_do_not_depend_on_the_order_of_completion(scene: Scheduled, mean: bool) -> None:
    cohort = list(range(8))
    reference = described(scene.scheduler().run(scene.plan(cohort, mean)))
    assert len(reference) == (1 if mean else 8)
    for seed in range(3):
        log = scene.scheduler(seed).run(scene.plan(cohort, mean))
        assert described(log) == reference
        assert [r.client for r in log.reports] == cohort


def test_the_sum_is_that_of_the_clients(scene: Scheduled) -> None:
    cohort = list(range(8))
    scheduler = scene.scheduler()
    [(_, weight, raw)] = described(scheduler.run(scene.plan(cohort)))
    assert len(scene.seen) > 2
    single = described(scene.scheduler().run(scene.plan(cohort, mean=False)))
    assert weight == sum(row[1] for row in single)
    total = sum(np.frombuffer(row[2], np.float32).astype(np.float64) * row[1] for row in single)
    mean = np.frombuffer(raw, np.float64)
    np.testing.assert_allclose(mean, total / weight, rtol=1e-12, atol=1e-15)


def test_a_client_that_was_slow_goes_first_but_blocks_stay(scene: Scheduled) -> None:
    scheduler = scene.scheduler()
    first = described(scheduler.run(scene.plan(list(range(8)))))
    before = scene.seen
    scheduler._seconds[6] = 1000.0
    assert described(scheduler.run(scene.plan(list(range(8))))) == first
    assert scene.seen == before


def test_bytes(scene: Scheduled) -> None:
    log = scene.scheduler().run(scene.plan([0, 3]))
    model = scene.model.num_bytes()
    assert log.bytes_down == {0: model, 3: model}
    assert [r.bytes_up for r in log.reports] == [model, model]


def test_payload_of_one_client_does_not_reach_another(scene: Scheduled) -> None:
    """Each client starts from what it was sent; the others see the shared payload."""
    plan = scene.plan([0, 1, 2], mean=False)
    other = scene.model.replace(torch.zeros_like(scene.model.flat))
    plan.dispatches[0].own = {1: {"model": other}}
    log = scene.scheduler().run(plan)
    assert log.bytes_down[1] == 2 * log.bytes_down[0]
    plain = described(scene.scheduler().run(scene.plan([0, 1, 2], mean=False)))
    same = [a == b for a, b in zip(described(log), plain, strict=True)]
    assert same == [True, False, True]


def test_several_dispatches_are_one_round(scene: Scheduled) -> None:
    halves = [scene.plan(clients, mean=False).dispatches[0] for clients in ([1, 3, 5], [0, 2, 4])]
    log = scene.scheduler(4).run(Plan(1, True, halves))
    whole = scene.scheduler().run(scene.plan(list(range(6)), mean=False))
    assert described(log) == described(whole)
    assert [r.client for r in log.reports] == [1, 3, 5, 0, 2, 4]


def test_nobody_to_ask_is_an_empty_log(scene: Scheduled) -> None:
    for plan in (Plan(1, True, []), Plan(1, True, [Dispatch([], {}, 0)])):
        log = scene.scheduler().run(plan)
        assert (log.reports, log.bytes_down, log.sums, log.seconds) == ([], {}, None, 0.0)


def test_training_leaves_the_payload_alone(scene: Scheduled) -> None:
    before: Params = scene.model.clone()
    scene.scheduler().run(scene.plan(list(range(8))))
    assert torch.equal(scene.model.flat, before.flat)


def test_score_is_the_mean_over_shards(scene: Scheduled) -> None:
    dataset = scene.worker.dataset
    rows = len(dataset.test)
    score = scene.scheduler(3).score(scene.model, rows, 1).metrics()
    model: Any = scene.worker.model
    model.load(scene.model)
    view = View(dataset.test, np.arange(rows), dataset.card)
    model.module.eval()
    with torch.no_grad():
        logits = model.module(view.inputs())
    labels = view.labels()
    assert score["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    expected = float(torch.nn.functional.cross_entropy(logits, labels))
    assert score["loss"] == pytest.approx(expected, rel=1e-5)
