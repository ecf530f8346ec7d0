"""Serialised values come back bit for bit."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedsim.errors import RunFailed
from fedsim.params import FlatModel, Params
from fedsim.runs import codec
from fedsim.runs.codec import Damaged, from_bytes, to_bytes
from fedsim.runs.encoding import decode, encode


@dataclass
class State:
    w: torch.Tensor
    names: list[str]
    step: int = 0
    cache: dict[str, float] = field(default_factory=dict, init=False)


@dataclass(frozen=True)
class Frozen:
    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", self.beta * 2)


@dataclass
class FromSeed:
    """Its constructor takes something that is not a field."""

    seed: dataclasses.InitVar[int]
    value: int = 0

    def __post_init__(self, seed: int) -> None:
        self.value = seed + 1


def same(a: Any, b: Any) -> None:
    """Assert equality of types and bits, recursively."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
        assert a.requires_grad == b.requires_grad
        left, right = (t.detach().contiguous().reshape(-1) for t in (a, b))
        if a.numel():
            assert torch.equal(left.view(torch.uint8), right.view(torch.uint8))
    elif isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.flags.f_contiguous) == (b.dtype, b.shape, b.flags.f_contiguous)
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, np.generic):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()
    elif isinstance(a, Params):
        assert a.layout == b.layout
        same(a.flat, b.flat)
        same(a.integers, b.integers)
    elif dataclasses.is_dataclass(a):
        same(vars(a), vars(b))
    elif isinstance(a, dict):
        assert list(a) == list(b)
        assert [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    elif isinstance(a, float):
        assert struct.pack("d", a) == struct.pack("d", b)
    else:
        assert a == b


def trip(value: Any) -> Any:
    return from_bytes(to_bytes(value))


ROUND_TRIPS = {
    "scalars": [None, True, False, 0, -7, 1.5, -0.0, 0.1, 5e-324, "", 'ü\n"\ud800', b"", b"\0x"],
    "numbers": [2**53, 2**53 + 1, -(2**70), 10**5000, math.inf, -math.inf, math.nan],
    "nan payload": struct.unpack("d", struct.pack("Q", 0xFFF8000000000123))[0],
    "containers": {"a": [], "b": (), "c": {}, "d": (1, [2, (3,)]), "s": {1, "x"}, "z": frozenset()},
    "keys": {1: "int", "1": "str", -(2**60): None},
    "ordered": OrderedDict([("z", 1), ("a", 2)]),
    "tags as keys": {"t": "0", "d": {"p": [0]}, "sha256": '"sha256":"' + "0" * 64},
    "numpy scalars": [np.float32(0.1), np.float64("nan"), np.int8(-3), np.bool_(True)],
    "numpy": [
        np.arange(6, dtype=">i4").reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.array(["a", "bcd"]),
        np.empty((0, 3)),
        np.array(7, np.uint16),
        np.array(["2020-01-01"], "M8[D]"),
    ],
    "dataclass": State(torch.tensor([1.0, math.nan]), ["a"], 3),
    "post init twice": Frozen(0.25),
    "init var": FromSeed(4),
}


@pytest.mark.parametrize("value", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_round_trip(value: Any) -> None:
    same(trip(value), value)


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint32),
        *(torch.bool, torch.complex64, torch.complex128),
    ],
    ids=str,
)
def test_tensor_dtypes(dtype: torch.dtype) -> None:
    raw = torch.arange(48, dtype=torch.uint8) % (2 if dtype is torch.bool else 251)
    values = raw.view(dtype)
    for shape in [(-1,), (1, -1), (3, -1) if values.numel() % 3 == 0 else (-1, 1)]:
        same(trip(values.view(shape)), values.view(shape))
    same(trip(values[0]), values[0].clone())
    same(trip(values[:0]), values[:0].clone())


def test_memory_format_is_kept() -> None:
    kernel = torch.randn(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    for value in (kernel, torch.arange(12.0).view(3, 4).t(), torch.arange(12.0)[::3]):
        same(trip(value), value)
    # Too wide or shared: the values are kept, the memory format is not.
    for value in (torch.arange(400.0).view(20, 20)[:, 3], torch.tensor([1.0, 2.0]).expand(3, 2)):
        same(trip(value), value.contiguous())


def test_tensors_come_back_aligned_and_writable() -> None:
    value = trip([torch.arange(3, dtype=torch.uint8), torch.arange(5.0)])
    assert all(t.data_ptr() % 64 == 0 for t in value)
    value[1] += 1
    assert value[1].tolist() == [1, 2, 3, 4, 5]


def test_parameters_keep_their_kind() -> None:
    value = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2), requires_grad=False)]
    same(trip([*value, torch.zeros(1, requires_grad=True)])[:2], value)
    assert trip(torch.zeros(1, requires_grad=True)).requires_grad


def test_params_share_one_layout() -> None:
    module = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    params = FlatModel(module).params()
    one, two = trip((params, params * 2.0))
    same(one, params)
    assert torch.equal(two["0.weight"], params["0.weight"] * 2)
    assert one.layout is two.layout
    assert int(one.integers["1.num_batches_tracked"]) == 0


def test_equal_sets_give_equal_bytes() -> None:
    names = [f"layer{i}" for i in range(50)]
    backwards = names[::-1]
    assert to_bytes(set(names)) == to_bytes(set(backwards))


def test_other_programs_can_read_the_tensors() -> None:
    value = {"a": torch.tensor([[1.0, 2.0]]), "b": torch.tensor([3], dtype=torch.int16)}
    tensors = safetensors.torch.load(to_bytes(value))
    assert tensors["0"].tolist() == [[1.0, 2.0]]
    assert tensors["1"].dtype == torch.int16


def test_skeleton_is_json() -> None:
    tensors, skeleton = encode(ROUND_TRIPS)
    same(decode(tensors, json.loads(json.dumps(skeleton, allow_nan=False))), ROUND_TRIPS)


leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.floats(width=32)).map(torch.tensor)
    | st.lists(st.integers(-100, 100)).map(lambda x: np.array(x, np.int16))
)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.builds(lambda w, x: State(torch.tensor(w), [], x), st.lists(st.floats()), inner)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(trees)
def test_any_tree_round_trips(value: Any) -> None:
    data = to_bytes(value)
    same(from_bytes(data), value)
    assert to_bytes(from_bytes(data)) == data


def local_class() -> object:
    @dataclass
    class Local:
        x: int

    return Local(1)


class Text(str):
    pass


def stray() -> State:
    state = State(torch.zeros(1), [])
    state.momentum = torch.zeros(1)  # type: ignore[attr-defined]
    return state


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"v": {"x": len}}, r"state\['v'\]\['x'\]: builtin_function_or_method len cannot be saved"),
        (State(torch.zeros(1), [test_round_trip]), r"state\.names\[0\]: function test_round_trip"),
        ([{1}, (0, Text("a"))], r"state\[1\]\[1\]: a Text cannot be saved"),
        ({(1, 2): 0}, "state: a dict key must be a str or an int, not a tuple"),
        ({True: 0}, "state: a dict key must be a str or an int, not a bool"),
        (local_class(), r"state: the dataclass .*Local cannot be found by that name"),
        (State, "state: type State cannot be saved"),
        (stray(), "state: attribute 'momentum' is not a field of the dataclass State"),
        ([np.array([None])], r"state\[0\]: a numpy array of dtype object"),
        (torch.eye(2).to_sparse(), "state: a sparse or quantised tensor"),
        (torch.empty(1, device="meta"), "state: a tensor on device meta"),
        (torch.ones(1, requires_grad=True) * 2, "state: a tensor that is part of an autograd"),
    ],
    ids=range(12),
)
def test_what_cannot_be_saved_is_named(value: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        to_bytes(value)


def test_a_value_that_contains_itself_is_refused() -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match="contain itself"):
        to_bytes(value)


def test_only_imported_dataclasses_are_rebuilt() -> None:
    tensors, skeleton = encode(Frozen(1.0))
    for name in ("subprocess:Popen", "not_imported_module:State", f"{__name__}:local_class"):
        skeleton["tree"]["c"] = name
        with pytest.raises(RunFailed, match=f"holds a {name}, which is not a known dataclass"):
            decode(tensors, skeleton)


def test_changed_fields_are_named() -> None:
    tensors, skeleton = encode(Frozen(1.0))
    skeleton["tree"]["f"]["gamma"] = 1
    with pytest.raises(RunFailed, match="with fields beta, gamma; it has beta now"):
        decode(tensors, skeleton)


def test_every_flipped_bit_is_noticed() -> None:
    value = {"w": torch.arange(4.0), "n": 3}
    data = to_bytes(value)
    for position in range(len(data)):
        torn = bytearray(data)
        torn[position] ^= 1 << (position % 8)
        with pytest.raises(Damaged):
            from_bytes(bytes(torn))


def test_every_truncation_is_noticed() -> None:
    data = to_bytes([torch.arange(4.0)])
    for length in range(len(data)):
        with pytest.raises(Damaged):
            from_bytes(data[:length])
    with pytest.raises(Damaged):
        from_bytes(data + b"\0")


def test_a_newer_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "VERSION", 2)
    data = to_bytes(1)
    monkeypatch.undo()
    with pytest.raises(RunFailed, match=r"newer fedsim \(file format 2, this one reads up to 1\)"):
        from_bytes(data)
