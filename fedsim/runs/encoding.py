"""Encoding of values as named tensors and a JSON skeleton, and back, bit for bit, without pickle.

In the skeleton null, true, false, strings, finite floats and small integers are plain JSON, and a
list is an array. Everything else is an object with one tag:

    {"d": {k: v}}  dict with str keys       {"D": [[k, v]]}  dict with str and int keys
    {"o": [[k, v]]}  OrderedDict            {"u": [...]}     tuple
    {"s": [...]}  set                       {"z": [...]}     frozenset
    {"t": name, ...}  tensor                {"a": name, ...} numpy array
    {"n": dtype, "x": hex}  numpy scalar    {"b": name}      bytes
    {"i": hex}  large int                   {"f": hex}       inf, nan
    {"c": "module:qualname", "f": {...}}    dataclass
    {"p": [layout, flat, integers]}         Params; each layout is stored once in a file
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import struct
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.errors import RunFailed
from fedsim.params import Layout, Params

# Names of dtypes in the safetensors format; tensors of other dtypes are stored as bytes.
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}

_MAX_DEPTH = 64  # far above any real state; exceeded by a value that contains itself
_MAX_GAPS = 8  # memory that a strided tensor may span, as a multiple of its elements
_PLAIN_INT = 2**53  # exact in every JSON reader


class _Unsupported(Exception):
    """Error at a leaf; each level above adds its step to the leaf's path."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        self.steps: list[str] = []


def encode(value: Any, name: str = "state") -> tuple[dict[str, Tensor], Any]:
    """Split `value` into named contiguous CPU tensors and a JSON skeleton.

    Supported: dict (str or int keys), OrderedDict, list, tuple, set, frozenset, dataclasses,
    `Params`, dense CPU tensors and `nn.Parameter`, numpy arrays and scalars, int, float, bool,
    str, bytes, None. Tensors keep their strides (see `_keeps_strides`), because kernels may sum in
    another order over another memory format. Messages call the value `name`.

    Raises:
        TypeError: a leaf of another type; the message names its path.
    """
    encoder = _Encoder()
    try:
        tree = encoder.encode(value)
    except _Unsupported as error:
        path = name + "".join(reversed(error.steps))
        raise TypeError(f"{path}: {error.problem}") from None
    layouts = [
        [list(x.names), [list(s) for s in x.shapes], x.num_parameters, list(x.integers)]
        for x in encoder.layouts
    ]
    return encoder.tensors, {"layouts": layouts, "tree": tree}


def decode(tensors: dict[str, Tensor], skeleton: Any) -> Any:
    """Return the value that `encode` split; tensors with the right layout are not copied.

    A dataclass is rebuilt only if its module is imported: its constructor is called with the stored
    fields, if it takes exactly these, then every field is set to its stored value.

    Raises:
        RunFailed: a dataclass is not imported or has other fields now.
    """
    layouts = [
        Layout(tuple(names), tuple(tuple(s) for s in shapes), parameters, tuple(integers))
        for names, shapes, parameters, integers in skeleton["layouts"]
    ]
    return _Decoder(tensors, layouts).decode(skeleton["tree"])


class _Encoder:
    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.layouts: dict[Layout, int] = {}
        self.depth = 0

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_PLAIN_INT <= value <= _PLAIN_INT else {"i": hex(value)}
        if kind is float:
            if math.isfinite(value):
                return value
            return {"f": struct.pack(">d", value).hex()}
        if isinstance(value, Tensor):
            return self.tensor(value)
        self.depth += 1
        if self.depth > _MAX_DEPTH:
            raise _Unsupported(f"nested deeper than {_MAX_DEPTH} levels; does it contain itself?")
        result = self.other(value, kind)
        self.depth -= 1
        return result

    def other(self, value: Any, kind: type) -> Any:
        if kind is dict:
            if all(type(k) is str for k in value):
                return {"d": {k: self.at(v, "[{!r}]", k) for k, v in value.items()}}
            return {"D": self.pairs(value)}
        if kind is OrderedDict:
            return {"o": self.pairs(value)}
        if kind is list:
            return self.items(value)
        if kind is tuple:
            return {"u": self.items(value)}
        if kind is set or kind is frozenset:
            # Sorted, so that equal sets give equal bytes whatever order they were filled in.
            members = sorted(self.items(value), key=json.dumps)
            return {"s" if kind is set else "z": members}
        if kind is Params:
            return {
                "p": [
                    self.layouts.setdefault(value.layout, len(self.layouts)),
                    self.at(value.flat, ".flat"),
                    self.at(value.integers, ".integers"),
                ]
            }
        if kind is np.ndarray:
            return self.array(value)
        if kind is bytes:
            return {"b": self.add(torch.from_numpy(np.frombuffer(bytearray(value), np.uint8)))}
        if isinstance(value, np.number | np.bool_ | np.datetime64 | np.timedelta64):
            return {"n": value.dtype.str, "x": value.tobytes().hex()}
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return self.instance(value, kind)
        raise _Unsupported(f"{_describe(value)} cannot be saved")

    def at(self, value: Any, step: str, *arguments: object) -> Any:
        """Encode a child; `step` is added to the path of an error in it."""
        try:
            return self.encode(value)
        except _Unsupported as error:
            error.steps.append(step.format(*arguments))
            raise

    def items(self, values: Iterable[Any]) -> list[Any]:
        return [self.at(v, "[{}]", i) for i, v in enumerate(values)]

    def pairs(self, values: dict[Any, Any]) -> list[Any]:
        for key in values:
            if type(key) is not str and type(key) is not int:
                raise _Unsupported(f"a dict key must be a str or an int, not {_describe(key)}")
        return [[self.encode(k), self.at(v, "[{!r}]", k)] for k, v in values.items()]

    def add(self, tensor: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = tensor
        return name

    def tensor(self, value: Tensor) -> dict[str, Any]:
        if type(value) is not Tensor and type(value) is not nn.Parameter:
            raise _Unsupported(f"a tensor of type {type(value).__qualname__} cannot be saved")
        if value.device.type != "cpu":
            raise _Unsupported(f"a tensor on device {value.device}; states hold CPU tensors")
        if value.layout is not torch.strided or value.is_quantized:
            raise _Unsupported("a sparse or quantised tensor cannot be saved")
        if not value.is_leaf:
            raise _Unsupported("a tensor that is part of an autograd graph; detach it")
        entry: dict[str, Any] = {}
        if type(value) is nn.Parameter:
            entry["parameter"] = True
        if value.requires_grad:
            entry["grad"] = True
        data = value.detach().resolve_conj().resolve_neg()
        if not data.is_contiguous():
            if _keeps_strides(data):
                entry["stride"] = list(data.stride())
            data = data.contiguous()
        if data.dtype not in CODES:
            entry["dtype"] = str(data.dtype).removeprefix("torch.")
            entry["shape"] = list(data.shape)
            data = data.reshape(-1).view(torch.uint8)
        return {"t": self.add(data), **entry}

    def array(self, value: np.ndarray) -> dict[str, Any]:
        if value.dtype.hasobject or value.dtype.names is not None:
            raise _Unsupported(f"a numpy array of dtype {value.dtype} cannot be saved")
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        raw = np.frombuffer(bytearray(value.tobytes(order="A" if order == "F" else "C")), np.uint8)
        entry = {"a": self.add(torch.from_numpy(raw)), "dtype": value.dtype.str}
        return {**entry, "shape": list(value.shape), "order": order}

    def instance(self, value: Any, kind: type) -> dict[str, Any]:
        name = f"{kind.__module__}:{kind.__qualname__}"
        if _find(name) is not kind:
            raise _Unsupported(
                f"the dataclass {name} cannot be found by that name; "
                "define it at the top level of its module"
            )
        names = _fields(kind)
        stray = [k for k in getattr(value, "__dict__", ()) if k not in names and k[0] != "_"]
        if stray:
            raise _Unsupported(
                f"attribute {stray[0]!r} is not a field of the dataclass {kind.__qualname__} "
                "and would be lost"
            )
        fields = {}
        for field in names:
            if not hasattr(value, field):
                raise _Unsupported(f"field {field!r} of {kind.__qualname__} is not set")
            fields[field] = self.at(getattr(value, field), ".{}", field)
        return {"c": name, "f": fields}


class _Decoder:
    def __init__(self, tensors: dict[str, Tensor], layouts: list[Layout]) -> None:
        self.tensors = tensors
        self.layouts = layouts
        self.tags: dict[str, Callable[[Any], Any]] = {
            "d": lambda e: {k: self.decode(v) for k, v in e["d"].items()},
            "D": lambda e: {self.decode(k): self.decode(v) for k, v in e["D"]},
            "o": lambda e: OrderedDict((self.decode(k), self.decode(v)) for k, v in e["o"]),
            "u": lambda e: tuple(self.decode(v) for v in e["u"]),
            "s": lambda e: {self.decode(v) for v in e["s"]},
            "z": lambda e: frozenset(self.decode(v) for v in e["z"]),
            "t": self.tensor,
            "a": self.array,
            "n": lambda e: np.frombuffer(bytes.fromhex(e["x"]), np.dtype(e["n"]))[0],
            "b": lambda e: self.tensors[e["b"]].numpy().tobytes(),
            "i": lambda e: int(e["i"], 16),
            "f": lambda e: struct.unpack(">d", bytes.fromhex(e["f"]))[0],
            "c": self.instance,
            "p": self.params,
        }

    def decode(self, entry: Any) -> Any:
        if type(entry) is dict:
            return self.tags[next(iter(entry))](entry)
        if type(entry) is list:
            return [self.decode(v) for v in entry]
        return entry

    def tensor(self, entry: dict[str, Any]) -> Tensor:
        value = self.tensors[entry["t"]]
        if "dtype" in entry:
            value = value.view(getattr(torch, entry["dtype"])).view(entry["shape"])
        if "stride" in entry:
            value = torch.empty_strided(value.shape, entry["stride"], dtype=value.dtype).copy_(
                value
            )
        if "parameter" in entry:
            return nn.Parameter(value, requires_grad="grad" in entry)
        return value.requires_grad_() if "grad" in entry else value

    def array(self, entry: dict[str, Any]) -> np.ndarray:
        dtype, shape = np.dtype(entry["dtype"]), entry["shape"]
        value: np.ndarray = np.empty(shape, dtype, order=entry["order"])
        raw = self.tensors[entry["a"]].numpy()
        if raw.size:
            flat = np.frombuffer(raw.tobytes(), dtype)
            value[...] = flat.reshape(shape, order=entry["order"])
        return value

    def params(self, entry: dict[str, Any]) -> Params:
        layout, flat, integers = entry["p"]
        return Params(self.layouts[layout], self.decode(flat), self.decode(integers))

    def instance(self, entry: dict[str, Any]) -> Any:
        name, stored = entry["c"], entry["f"]
        kind = _find(name)
        if kind is None:
            raise RunFailed(f"the saved state holds a {name}, which is not a known dataclass")
        if list(stored) != list(_fields(kind)):
            raise RunFailed(
                f"the saved state holds a {name} with fields {', '.join(stored)}; "
                f"it has {', '.join(_fields(kind))} now"
            )
        fields = {k: self.decode(v) for k, v in stored.items()}
        arguments = _arguments(kind)
        if arguments is None:
            value: Any = object.__new__(kind)
        else:
            value = kind(**{k: fields[k] for k in arguments})
        for field, content in fields.items():
            object.__setattr__(value, field, content)
        return value


def _keeps_strides(tensor: Tensor) -> bool:
    """Whether a tensor keeps its strides: no two elements share memory, and gaps are small.

    An expanded tensor or a column of a large matrix becomes contiguous instead.
    """
    reach = 0  # offset of the last element among the dimensions seen so far
    dims = ((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    for stride, n in sorted(dims):
        if stride <= reach:
            return False
        reach += stride * (n - 1)
    return reach < _MAX_GAPS * tensor.numel()


def _find(name: str) -> type | None:
    """Return the dataclass ``module:qualname`` if its module is imported; imports nothing."""
    module, _, qualname = name.partition(":")
    kind: Any = sys.modules.get(module)
    for attribute in qualname.split("."):
        kind = getattr(kind, attribute, None)
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


@lru_cache(maxsize=1024)
def _fields(kind: type) -> dict[str, None]:
    return dict.fromkeys(f.name for f in dataclasses.fields(kind))


@lru_cache(maxsize=1024)
def _arguments(kind: type) -> tuple[str, ...] | None:
    """Return the constructor's arguments if they are exactly the `init` fields, else None."""
    names = tuple(f.name for f in dataclasses.fields(kind) if f.init)
    return names if set(inspect.signature(kind).parameters) == set(names) else None


def _describe(value: object) -> str:
    name = getattr(value, "__name__", None)
    kind = type(value).__qualname__
    return f"{kind} {name}" if isinstance(name, str) else f"a {kind}"
