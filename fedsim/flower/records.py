"""Flower records that hold tensors instead of bytes.

A Flower `Array` holds ``.npy`` bytes; encoding a model each way costs more than many a client's
training. `TreeRecord` is a genuine `ArrayRecord` whose arrays encode themselves only when
somebody asks for bytes, and which still knows the tree it was made of. Strategies of others and
ClientApps read it as any other record; our own take the tree.
"""

from __future__ import annotations

from io import BytesIO

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, RecordDict
from torch import Tensor

from fedsim.errors import FedsimError
from fedsim.params import Params
from fedsim.params.trees import Tree, named_tensors


class TensorArray(Array):
    """A Flower `Array` over a CPU tensor; `data` is encoded at first use."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.dtype = str(tensor.dtype).removeprefix("torch.")
        self.shape = tuple(tensor.shape)
        self.stype = "numpy.ndarray"

    @property
    def data(self) -> bytes:  # type: ignore[override]
        """The tensor as ``.npy`` bytes."""
        encoded = self.__dict__.get("_encoded")
        if encoded is None:
            buffer = BytesIO()
            np.save(buffer, self.numpy(), allow_pickle=False)
            encoded = self.__dict__["_encoded"] = buffer.getvalue()
        return encoded

    def numpy(self) -> np.ndarray:
        """Return a writable copy, in C order as `numpy.load` would give it."""
        return np.array(self.tensor.detach().numpy(), order="C")


class TreeRecord(ArrayRecord):
    """An `ArrayRecord` made of a tree of tensors.

    The model's tensors appear under their own names, everything else under its path
    (``generator/fc.weight``). A record that was changed, or copied, is an ordinary one: its `tree`
    is None.
    """

    # Flower copies records without calling the constructor.
    shared: Tree
    own: Tree | None = None
    tree: Tree | None = None

    def __init__(self, shared: Tree, own: Tree | None = None) -> None:
        """Hold a tree: what all clients get, and on top of it what one of them gets."""
        super().__init__()
        self.shared = shared
        self.own = own
        self.tree = shared if own is None else {**shared, **own}
        for name, tensor in named_tensors(self.tree).items():
            super().__setitem__(name, TensorArray(tensor))

    def __setitem__(self, key: str, value: Array) -> None:
        self.tree = None
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        self.tree = None
        super().__delitem__(key)


class RecordMismatch(FedsimError):
    """An `ArrayRecord` does not have the tensors that were expected of it."""


def tree_of(record: ArrayRecord, like: Params | None = None) -> Tree:
    """Return the tree behind a record, decoding it where it is a plain Flower one.

    A plain record whose names are those of the model `like` becomes ``{"model": Params}``;
    any other becomes a flat tree of its arrays.

    Raises:
        RecordMismatch: the record has some of the model's names but not all, or other shapes.
    """
    if isinstance(record, TreeRecord) and record.tree is not None:
        return record.tree
    arrays = {name: array.numpy() for name, array in record.items()}
    if like is None or not set(arrays) & set(like):
        return {name: torch.from_numpy(np.array(a)) for name, a in arrays.items()}
    if missing := sorted(set(like) - set(arrays)):
        raise RecordMismatch(f"missing keys {missing}")
    params = like.clone()
    tree: Tree = {}
    for name, array in arrays.items():
        if name not in like:
            tree[name] = torch.from_numpy(np.array(array))
            continue
        expected = tuple(like[name].shape)
        if tuple(array.shape) != expected:
            raise RecordMismatch(f"wrong shape of {name!r}: {array.shape}, expected {expected}")
        if name in params.integers:
            array = np.rint(array)
        params[name].copy_(torch.from_numpy(np.asarray(array)))
    return {"model": params, **tree}


def scalars(content: RecordDict) -> dict[str, float]:
    """Return the scalar metrics of a reply."""
    found: dict[str, float] = {}
    for record in content.metric_records.values():
        found |= {k: float(v) for k, v in record.items() if not isinstance(v, list)}
    return found


def count_bytes(content: RecordDict) -> int:
    """Bytes of the arrays in a reply."""
    return sum(
        int(np.prod(array.shape)) * np.dtype(array.dtype).itemsize
        for record in content.array_records.values()
        for array in record.values()
    )
