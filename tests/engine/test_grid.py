"""The grid: messages of Flower's in, genuine replies out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

from fedsim.engine.grid import SimulationGrid
from fedsim.flower.records import TreeRecord
from fedsim.strategy import WEIGHT_KEY
from tests.support.scheduled import Scheduled


class Gridded(Scheduled):
    """Grids over the schedulers of a scene."""

    def grid(self, seed: int | None = None) -> SimulationGrid:
        return SimulationGrid(self.scheduler(seed), 8, self.model, apps=False)

    def messages(self, cohort: list[int]) -> list[Message]:
        content = RecordDict(
            {
                "arrays": TreeRecord({"model": self.model}),
                "config": ConfigRecord({"server-round": 1}),
            }
        )
        return [Message(content, c, MessageType.TRAIN) for c in cohort]


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Gridded]:
    scene = Gridded(tmp_path)
    yield scene
    scene.executor.close()


def described(replies: Any) -> list[tuple[int, str, float, bytes]]:
    rows = []
    for reply in replies:
        arrays = next(iter(reply.content.array_records.values()))
        raw = b"".join(arrays[name].numpy().tobytes() for name in sorted(arrays))
        weight = next(iter(reply.content.metric_records.values()))[WEIGHT_KEY]
        rows.append((reply.metadata.src_node_id, reply.metadata.message_type, weight, raw))
    return rows


def test_replies_come_in_order_of_clients(scene: Gridded) -> None:
    reference = described(scene.grid().send_and_receive(scene.messages(list(range(8)))))
    assert [row[0] for row in reference] == list(range(8))
    shuffled = [5, 2, 7, 0, 1, 6, 3, 4]
    assert described(scene.grid(9).send_and_receive(scene.messages(shuffled))) == reference


def test_push_and_pull(scene: Gridded) -> None:
    grid = scene.grid()
    ids = list(grid.push_messages(scene.messages([1, 4])))
    assert len(set(ids)) == 2
    [one] = grid.pull_messages(ids[:1])
    [four] = grid.pull_messages(ids)
    assert (one.metadata.src_node_id, four.metadata.src_node_id) == (1, 4)
    assert list(grid.pull_messages(ids)) == []
    assert list(grid.send_and_receive([])) == []


def test_bytes_and_population(scene: Gridded) -> None:
    grid = scene.grid()
    list(grid.send_and_receive(scene.messages([0, 3])))
    # The number of the round travels too.
    size = scene.model.num_bytes() + 8
    assert grid.scheduler.log.bytes_down == {0: size, 3: size}
    assert list(grid.get_node_ids()) == list(range(8))


def test_payload_of_one_client_does_not_reach_another(scene: Gridded) -> None:
    """Each client starts from what it was sent; the others see the shared payload."""
    other = scene.model.replace(torch.zeros_like(scene.model.flat))
    messages = scene.messages([0, 1, 2])
    shared = messages[0].content.array_records["arrays"].shared
    record = TreeRecord(shared, {"model": other})
    messages[1] = Message(
        RecordDict({"arrays": record, "config": ConfigRecord({"server-round": 1})}),
        1,
        MessageType.TRAIN,
    )
    got = described(scene.grid().send_and_receive(messages))
    plain = described(scene.grid().send_and_receive(scene.messages([0, 1, 2])))
    assert [g == p for g, p in zip(got, plain, strict=True)] == [True, False, True]


def test_replies_of_several_payloads_come_in_order_of_clients(scene: Gridded) -> None:
    one, other = scene.messages(list(range(8))), scene.messages(list(range(8)))
    mixed = [one[c] if c % 2 else other[c] for c in range(8)]
    replies = described(scene.grid(4).send_and_receive(mixed))
    assert [row[0] for row in replies] == list(range(8))
    assert replies == described(scene.grid().send_and_receive(one))


def test_plain_array_record_is_read_as_the_model(scene: Gridded) -> None:
    """A foreign strategy sends genuine records without a tree."""
    arrays = ArrayRecord({name: scene.model[name] for name in scene.model})
    plain = RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1})})
    got = described(scene.grid().send_and_receive([Message(plain, 2, MessageType.TRAIN)]))
    assert got == described(scene.grid().send_and_receive(scene.messages([2])))
