"""Objects between processes: bit for bit, and nothing left in shared memory."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim.engine.shared_memory import INLINE_BYTES, SharedStore, dump, load
from fedsim.params import Layout, Params

MEMORY = Path("/dev/shm")


@pytest.fixture
def store() -> Iterator[SharedStore]:
    store = SharedStore.create()
    yield store
    store.close()


def equal_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    raw = [t.contiguous().view(-1).view(torch.uint8) for t in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*raw)


SPECIAL = torch.tensor([1.0, -0.0, float("nan"), float("inf"), 1e-45])
BIG = torch.arange(INLINE_BYTES, dtype=torch.float32)

TENSORS = {
    "special": SPECIAL,
    "big": BIG,
    "scalar": torch.tensor(2.5),
    "empty": torch.empty(0, 3),
    "half": SPECIAL.half(),
    "bfloat16": SPECIAL.bfloat16(),
    "bfloat16 scalar": torch.tensor(1.5, dtype=torch.bfloat16),
    "double": SPECIAL.double(),
    "bool": torch.tensor([True, False]),
    "int64": torch.tensor([[2**62, -1]]),
    "uint8": torch.arange(7, dtype=torch.uint8),
    "transposed": BIG.view(128, -1).t(),
    "strided": BIG[::3],
    "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
    "channels last": BIG.view(2, 4, 64, 64).contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("way", ["message", "store", "store and unlink"])
def test_tensor_round_trip(name: str, way: str, store: SharedStore) -> None:
    tensor = TENSORS[name]
    if way == "message":
        back = load(dump({"t": tensor}))["t"]
    else:
        unlink = way == "store and unlink"
        packed = store.put({"t": tensor, "more": BIG})
        assert packed.path is not None
        back = load(packed, unlink=unlink)["t"]
        assert Path(packed.path).exists() is not unlink
    assert equal_bits(back, tensor)


def test_order_in_memory_is_kept(store: SharedStore) -> None:
    back = load(store.put([TENSORS["channels last"], TENSORS["transposed"]]))
    assert back[0].stride() == TENSORS["channels last"].stride()
    assert back[1].stride() == TENSORS["transposed"].stride()


def test_params_round_trip(store: SharedStore) -> None:
    layout = Layout(("w", "b"), ((20000, 1), (3,)), 2, ("n",))
    flat = torch.randn(layout.size, generator=torch.Generator().manual_seed(0))
    params = Params(layout, flat, {"n": torch.tensor(5)})
    back = load(store.put({"model": params, "k": 1}))
    assert back["k"] == 1
    assert back["model"].layout == layout
    assert equal_bits(back["model"].flat, flat)
    assert equal_bits(back["model"]["w"], params["w"])
    assert equal_bits(back["model"].integers["n"], torch.tensor(5))


def test_gradient_does_not_travel() -> None:
    leaf = torch.ones(3, requires_grad=True)
    back = load(dump({"leaf": leaf, "parameter": torch.nn.Parameter(leaf), "of": leaf * 2}))
    assert not any(t.requires_grad for t in back.values())
    assert back["of"].tolist() == [2.0] * 3


def test_numpy_bytes_and_plain_values(store: SharedStore) -> None:
    value = {
        "a": np.arange(100_000),
        "f": np.array(1.5, np.float16),
        "b": b"\x00" * 100_000,
        "s": "é",
        "n": None,
        "l": [1, (2.5, True)],
    }
    back = load(store.put(value))
    np.testing.assert_array_equal(back.pop("a"), value.pop("a"))
    assert back.pop("f") == value.pop("f")
    assert back == value


def test_small_objects_need_no_file_and_large_ones_one(store: SharedStore) -> None:
    assert store.put({"x": torch.zeros(10)}).path is None
    assert store.put({"x": BIG, "y": BIG}).path is not None
    assert len(list(Path(store.folder).iterdir())) == 1


@pytest.mark.parametrize(
    "large",
    [b"x" * 10 * INLINE_BYTES, [np.zeros(1)] * INLINE_BYTES, [np.zeros(1) for _ in range(5000)]],
    ids=["a byte string", "one array many times", "many arrays"],
)
def test_a_packed_object_is_small_whatever_is_in_it(store: SharedStore, large: Any) -> None:
    packed = store.put(large)
    assert len(pickle.dumps(packed)) < 2 * INLINE_BYTES
    assert load(packed, unlink=True) == large
    assert not list(Path(store.folder).iterdir())


def test_what_the_receiver_takes_for_itself_is_writable(store: SharedStore) -> None:
    back = load(store.put(BIG.clone()), unlink=True)
    back += 1
    assert back[0] == 1.0


def test_receiver_does_not_change_what_was_sent(store: SharedStore) -> None:
    first, second = (load(store.put(BIG), unlink=True) for _ in range(2))
    first.zero_()
    assert torch.equal(second, BIG)


def _child(packed: Any, queue: Any) -> None:
    queue.put(float(load(packed)["x"].double().sum()))


def test_another_process_reads_the_store(store: SharedStore) -> None:
    packed = store.put({"x": BIG})
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_child, args=(packed, queue))
    process.start()
    assert queue.get(timeout=60) == INLINE_BYTES * (INLINE_BYTES - 1) / 2
    process.join()


def test_close_leaves_nothing_and_what_is_mapped_stays_readable() -> None:
    store = SharedStore.create()
    assert Path(store.folder).parent == MEMORY
    back = load(store.put(BIG))
    store.close()
    assert not Path(store.folder).exists()
    assert torch.equal(back, BIG)


def test_stores_of_dead_processes_are_removed() -> None:
    code = "from fedsim.engine.shared_memory import SharedStore\nprint(SharedStore.create().folder)"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    orphan = Path(done.stdout.strip())
    assert orphan.is_dir()  # its process ended without closing it
    living = SharedStore.create()
    assert not orphan.exists()
    another = SharedStore.create()
    assert Path(living.folder).is_dir()
    living.close()
    another.close()


def test_disk_is_used_where_shared_memory_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage)
    store = SharedStore.create()
    assert Path(store.folder).parent != MEMORY
    assert torch.equal(load(store.put(BIG)), BIG)
    store.close()


def test_folder_is_the_owners_alone(store: SharedStore) -> None:
    assert os.stat(store.folder).st_mode & 0o077 == 0
