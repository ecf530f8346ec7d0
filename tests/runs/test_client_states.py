"""Client states: every commit can be restored exactly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from fedsim.errors import RunFailed
from fedsim.runs.client_states import Index, StateStore
from fedsim.runs.codec import from_bytes, to_bytes


def state(client: int, round: int, size: int = 4) -> dict[str, object]:
    return {"w": torch.full((size,), client + round / 1000), "round": round}


def rounds(store: StateStore, clients: int) -> list[int | None]:
    found = [store.get(c) for c in range(clients)]
    for client, value in enumerate(found):
        if value is not None:
            assert torch.equal(
                value["w"], torch.full_like(value["w"], client + value["round"] / 1e3)
            )
    return [None if v is None else v["round"] for v in found]


def saved(index: Index) -> Index:
    """The index as a checkpoint gives it back."""
    return from_bytes(to_bytes(index))


def test_put_get_and_copies(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    assert store.get(3) is None
    assert 3 not in store
    mine = state(3, 1)
    store.put(3, mine)
    mine["w"].fill_(9)  # type: ignore[attr-defined]
    first = store.get(3)
    first["w"].fill_(8)
    assert rounds(store, 4) == [None, None, None, 1]
    store.commit(1)
    assert rounds(store, 4) == [None, None, None, 1]
    assert store.clients == [3]
    store.put(0, None)
    assert 0 in store
    assert store.get(0) is None
    assert store.clients == [0, 3]


def test_unsupported_state_names_the_client(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state of client 5\['f'\]: builtin_function_or_method"):
        StateStore(tmp_path).put(5, {"f": len})


def test_one_file_a_commit_and_none_without_change(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    store.commit(1)
    assert not (tmp_path / "states").exists()
    assert store.index()["rows"].shape == (0, 4)
    for client in range(10):
        store.put(client, state(client, 2))
    store.commit(2)
    store.commit(3)
    assert os.listdir(tmp_path / "states") == ["round-2-0.states"]
    index = store.index()
    assert index["files"] == ["round-2-0.states"]
    assert index["rows"][:, 0].tolist() == list(range(10))


def test_an_older_index_gives_exactly_its_states(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for client in range(3):
        store.put(client, state(client, 1))
    store.commit(1)
    old = saved(store.index())
    store.put(1, state(1, 2))
    store.put(3, state(3, 2))
    store.commit(2)
    newer = saved(store.index())
    store.put(2, state(2, 3))

    again = StateStore(tmp_path)
    again.restore(old)
    assert rounds(again, 4) == [1, 1, 1, None]
    again.restore(newer)
    assert rounds(again, 4) == [1, 2, 1, 2]
    store.restore(old)
    assert rounds(store, 4) == [1, 1, 1, None]

    # Going on from there writes a new file and never changes one that an index refers to.
    store.put(0, state(0, 2))
    store.commit(2)
    assert rounds(store, 4) == [2, 1, 1, None]
    again.restore(newer)
    assert rounds(again, 4) == [1, 2, 1, 2]


def test_files_go_when_no_recent_index_needs_them(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    indexes: dict[int, Index] = {}
    for round in range(1, 8):
        for client in range(4):
            store.put(client, state(client, round))
        store.commit(round)
        names = set(os.listdir(tmp_path / "states"))
        # Before the next checkpoint is written, those of the last two can still be used.
        for older in (round - 1, round - 2):
            assert set(indexes[older]["files"] if older in indexes else []) <= names
        indexes[round] = saved(store.index())
    assert sorted(names) == [f"round-{r}-0.states" for r in (5, 6, 7)]
    for round in (5, 6, 7):
        store.restore(indexes[round])
        assert rounds(store, 4) == [round] * 4
    with pytest.raises(RunFailed, match=r"round-4-0\.states are missing"):
        store.restore(indexes[4])
    assert rounds(store, 4) == [7] * 4


def test_a_resume_does_not_delete_what_the_older_checkpoint_needs(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    indexes = []
    for round in (1, 2):
        store.put(0, state(0, round))
        store.commit(round)
        indexes.append(saved(store.index()))
    resumed = StateStore(tmp_path)
    resumed.restore(indexes[1])
    resumed.put(0, state(0, 3))
    resumed.commit(3)
    resumed.restore(indexes[0])
    assert rounds(resumed, 1) == [1]


def test_thousands_of_rounds_leave_few_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    store = StateStore(tmp_path)
    expected: dict[int, int] = {}
    draw = np.random.default_rng(0)
    previous: tuple[Index, dict[int, int]] | None = None
    for round in range(1, 1001):
        # Client 7 takes part once only, so a file would live for ever for its sake.
        cohort = {7} if round == 1 else {int(c) for c in draw.integers(8, 400, 3)}
        for client in cohort:
            store.put(client, state(client, round))
            expected[client] = round
        store.commit(round)
        index = store.index()
        if round % 250 == 0:
            assert len(os.listdir(tmp_path / "states")) <= 140
            fresh = StateStore(tmp_path)
            fresh.restore(saved(index))
            assert {c: fresh.get(c)["round"] for c in fresh.clients} == expected
            assert previous is not None
            fresh.restore(saved(previous[0]))
            assert {c: fresh.get(c)["round"] for c in fresh.clients} == previous[1]
        previous = index, dict(expected)
    live = len(to_bytes(state(0, 1))) * len(expected)
    size = sum(p.stat().st_size for p in (tmp_path / "states").iterdir())
    assert size < 5 * live


def test_spilled_states_are_not_lost(tmp_path: Path) -> None:
    one = len(to_bytes(state(0, 1, 1000)))
    store = StateStore(tmp_path, memory_limit_bytes=3 * one)
    for client in range(8):
        store.put(client, state(client, 1, 1000))
        assert store.memory_bytes <= 3 * one
    assert (tmp_path / "states" / ".tmp-pending.states").stat().st_size == 5 * one
    assert rounds(store, 8) == [1] * 8
    store.put(6, state(6, 2, 1000))  # a spilled one again
    store.put(0, state(0, 2, 1000))  # one in memory again
    assert rounds(store, 8) == [2, 1, 1, 1, 1, 1, 2, 1]
    store.commit(2)
    assert rounds(store, 8) == [2, 1, 1, 1, 1, 1, 2, 1]
    assert store.memory_bytes <= 3 * one
    other = StateStore(tmp_path)
    other.restore(saved(store.index()))
    assert rounds(other, 8) == [2, 1, 1, 1, 1, 1, 2, 1]
    assert os.listdir(tmp_path / "states") == ["round-2-0.states"]


def test_least_used_states_leave_the_memory(tmp_path: Path) -> None:
    one = len(to_bytes(state(0, 1, 1000)))
    store = StateStore(tmp_path, memory_limit_bytes=2 * one)
    for client in range(3):
        store.put(client, state(client, 1, 1000))
    store.commit(1)
    for client in (0, 1, 0, 2):
        store.get(client)
    os.rename(tmp_path / "states" / "round-1-0.states", tmp_path / "moved")
    assert rounds(store, 1) == [1]
    assert store.get(2)["round"] == 1
    with pytest.raises(RunFailed, match=r"cannot read client states .*: No such file"):
        store.get(1)


def test_damage_is_named(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    for client in range(2):
        store.put(client, state(client, 1))
    store.commit(1)
    index = saved(store.index())
    path = tmp_path / "states" / "round-1-0.states"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    other = StateStore(tmp_path)
    other.restore(index)
    assert other.get(0)["round"] == 1
    with pytest.raises(RunFailed, match=r"state of client 1 in .*round-1-0\.states is damaged"):
        other.get(1)
    path.write_bytes(data[:-1])
    with pytest.raises(RunFailed, match=r"round-1-0\.states are truncated"):
        other.restore(index)


def test_a_failed_commit_leaves_the_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = StateStore(tmp_path)
    store.put(0, state(0, 1))
    store.commit(1)
    index = saved(store.index())
    store.put(0, state(0, 2))

    def pwrite(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(RunFailed, match=r"cannot write client states in .*: No space left"):
        store.commit(2)
    monkeypatch.undo()
    assert os.listdir(tmp_path / "states") == ["round-1-0.states"]
    store.restore(index)
    assert rounds(store, 1) == [1]


def test_encoded_states_pass_through(tmp_path: Path) -> None:
    store = StateStore(tmp_path)
    blob = to_bytes(state(2, 5))
    store.put_bytes(2, blob)
    assert store.get_bytes(2) == blob
    assert store.get_bytes(1) is None
    store.commit(5)
    store.close()
    assert store.get(2)["round"] == 5
