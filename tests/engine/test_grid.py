"""The grid: blocks that follow from the experiment, replies that do not depend on who was first."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedsim.components import build
from fedsim.data.partition import Manifest
from fedsim.engine.grid import SimulationGrid
from fedsim.engine.jobs import Block, BlockResult, WorkerSpec
from fedsim.engine.schedule import MAX_BLOCKS, MIN_BLOCK_WORK, block_length
from fedsim.engine.serial_executor import SerialExecutor
from fedsim.flower.messages import Letter, Letters
from fedsim.flower.records import TreeRecord
from fedsim.params import Params
from fedsim.runs.client_states import StateStore
from fedsim.strategy import WEIGHT_KEY
from tests.support.runs import prepared


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


class Shuffled:
    """Runs blocks one by one and hands the results over in a random order."""

    def __init__(self, inner: SerialExecutor, seed: int | None) -> None:
        self.inner, self.seed = inner, seed
        self.events: list[Any] = []
        self.num_workers = 1
        self.when_waiting = lambda: None
        self.seen: list[list[int]] = []

    def run(self, blocks: list[Block], payload: Any) -> Iterator[BlockResult]:
        self.seen = [b.client_ids for b in blocks]
        results = list(self.inner.run(blocks, payload))
        if self.seed is not None:
            random.Random(self.seed).shuffle(results)
        yield from results

    def close(self) -> None:
        self.inner.close()


class Bench:
    """A grid over digits whose MLP is large enough for a block a client or two."""

    def __init__(self, tmp_path: Path, **changes: Any) -> None:
        changes = {"model": {"name": "mlp", "hidden": [256]}, **changes}
        self.experiment = prepared(**changes, client={"vectorise": False})
        self.executor = SerialExecutor(WorkerSpec(self.experiment))
        worker = self.executor._worker
        self.model = worker.model.params()
        self.manifest: Manifest = build.build_partition(self.experiment, worker.dataset)
        self.folder = tmp_path

    def grid(self, seed: int | None = None, block_means: bool = True) -> SimulationGrid:
        return SimulationGrid(
            Shuffled(self.executor, seed),
            self.manifest,
            StateStore(self.folder),
            self.model,
            False,
            frozenset({"model"}),
            block_means,
        )

    def messages(self, cohort: list[int], weighted_mean: bool = True) -> list[Message]:
        record = TreeRecord({"model": self.model})
        record.weighted_mean = weighted_mean
        content = RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})})
        return [Message(content, c, MessageType.TRAIN) for c in cohort]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.executor.close()


def described(replies: Any) -> list[tuple[int, str, float, bytes]]:
    rows = []
    for reply in replies:
        arrays = next(iter(reply.content.array_records.values()))
        raw = b"".join(arrays[name].numpy().tobytes() for name in sorted(arrays))
        weight = next(iter(reply.content.metric_records.values()))[WEIGHT_KEY]
        rows.append((reply.metadata.src_node_id, reply.metadata.message_type, weight, raw))
    return rows


@pytest.mark.parametrize("mean", [True, False])
def test_replies_do_not_depend_on_the_order_of_completion(bench: Bench, mean: bool) -> None:
    cohort = list(range(8))
    reference = described(bench.grid().send_and_receive(bench.messages(cohort, mean)))
    assert len(reference) == (1 if mean else 8)
    assert [row[0] for row in reference] == sorted(row[0] for row in reference)
    for seed in range(3):
        grid = bench.grid(seed)
        assert described(grid.send_and_receive(bench.messages(cohort, mean))) == reference
        assert [r.client for r in grid.log.reports] == cohort
    shuffled = [5, 2, 7, 0, 1, 6, 3, 4]
    assert described(bench.grid(9).send_and_receive(bench.messages(shuffled, mean))) == reference


def test_the_one_reply_is_the_mean_of_its_clients(bench: Bench) -> None:
    cohort = list(range(8))
    grid = bench.grid()
    [(client, _, weight, raw)] = described(grid.send_and_receive(bench.messages(cohort)))
    assert len(grid.executor.seen) > 2  # type: ignore[attr-defined]
    single = described(bench.grid().send_and_receive(bench.messages(cohort, False)))
    assert client == 0
    assert weight == sum(row[2] for row in single)
    total = sum(np.frombuffer(row[3], np.float32).astype(np.float64) * row[2] for row in single)
    got = np.frombuffer(raw, np.float64)
    np.testing.assert_allclose(got, total / weight, rtol=1e-12, atol=1e-15)


def test_a_client_that_was_slow_goes_first_but_blocks_stay(bench: Bench) -> None:
    grid = bench.grid()
    first = described(grid.send_and_receive(bench.messages(list(range(8)))))
    before = grid.executor.seen  # type: ignore[attr-defined]
    grid._seconds[6] = 1000.0
    assert described(grid.send_and_receive(bench.messages(list(range(8))))) == first
    assert grid.executor.seen == before  # type: ignore[attr-defined]


def test_messages_are_made_only_where_somebody_looks(bench: Bench) -> None:
    grid = bench.grid()
    content = bench.messages([0])[0].content
    letters = [Letter(c, content, MessageType.TRAIN) for c in (3, 1, 2)]
    unseen, seen = Letters(letters), Letters(letters)
    assert (len(unseen), bool(unseen), bool(Letters([]))) == (3, True, False)
    reference = described(bench.grid().send_and_receive(bench.messages([1, 2, 3])))
    assert described(grid.send_and_receive(unseen)) == reference
    assert [letter.original is None for letter in letters] == [True, False, True]
    assert [m.metadata.dst_node_id for m in seen] == [3, 1, 2]
    assert seen[0] is seen[0]
    # What a wrapper does to the list counts, as with any list of messages.
    seen.append(Message(content, 5, MessageType.TRAIN))
    del seen[0]
    assert len(seen) == 3
    changed = described(bench.grid().send_and_receive(seen))
    assert changed == described(bench.grid().send_and_receive(bench.messages([1, 2, 5])))


def test_push_and_pull(bench: Bench) -> None:
    grid = bench.grid(block_means=False)
    ids = list(grid.push_messages(bench.messages([1, 4])))
    assert len(set(ids)) == 2
    [one] = grid.pull_messages(ids[:1])
    [four] = grid.pull_messages(ids)
    assert (one.metadata.src_node_id, four.metadata.src_node_id) == (1, 4)
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.send_and_receive([])) == []


def test_bytes_and_population(bench: Bench) -> None:
    grid = bench.grid()
    list(grid.send_and_receive(bench.messages([0, 3])))
    model = bench.model.num_bytes()
    assert set(grid.log.bytes_down) == {0, 3}
    assert all(model <= b < model + 100 for b in grid.log.bytes_down.values())
    assert [r.bytes_up for r in grid.log.reports] == [model, model]
    assert list(grid.get_node_ids()) == list(range(8))


def test_payload_of_one_client_does_not_reach_another(bench: Bench) -> None:
    """Each client starts from what it was sent; the others see the shared payload."""
    other = bench.model.replace(torch.zeros_like(bench.model.flat))
    messages = bench.messages([0, 1, 2], False)
    shared = messages[0].content.array_records["arrays"].__dict__["shared"]
    record = TreeRecord(shared, {"model": other})
    messages[1] = Message(
        RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})}),
        1,
        MessageType.TRAIN,
    )
    got = described(bench.grid().send_and_receive(messages))
    plain = described(bench.grid().send_and_receive(bench.messages([0, 1, 2], False)))
    assert [g == p for g, p in zip(got, plain, strict=True)] == [True, False, True]


def test_replies_of_several_payloads_come_in_order_of_clients(bench: Bench) -> None:
    one, other = bench.messages(list(range(8)), False), bench.messages(list(range(8)), False)
    mixed = [one[c] if c % 2 else other[c] for c in range(8)]
    replies = described(bench.grid(4).send_and_receive(mixed))
    assert [row[0] for row in replies] == list(range(8))
    assert replies == described(bench.grid().send_and_receive(one))


def test_training_leaves_the_payload_alone(bench: Bench) -> None:
    before: Params = bench.model.clone()
    list(bench.grid().send_and_receive(bench.messages(list(range(8)))))
    assert torch.equal(bench.model.flat, before.flat)


def test_score_is_the_mean_over_shards(bench: Bench) -> None:
    dataset = bench.executor._worker.dataset
    rows = len(dataset.test)
    score = bench.grid(3).score(bench.model, rows, 1).metrics()
    from fedsim.data.views import View

    module = bench.executor._worker.model
    module.load(bench.model)
    view = View(dataset.test, np.arange(rows), dataset.card)
    module.module.eval()
    with torch.no_grad():
        logits = module.module(view.inputs())
    labels = view.labels()
    assert score["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).float().mean()))
    expected = float(torch.nn.functional.cross_entropy(logits, labels))
    assert score["loss"] == pytest.approx(expected, rel=1e-5)


def test_plain_array_record_is_read_as_the_model(bench: Bench) -> None:
    """A foreign strategy sends genuine records without a tree."""
    arrays = ArrayRecord({name: bench.model[name] for name in bench.model})
    plain = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    got = described(bench.grid().send_and_receive([Message(plain, 2, MessageType.TRAIN)]))
    assert got == described(bench.grid().send_and_receive(bench.messages([2], False)))
