"""Transport of trees between driver and workers through shared memory, without copies.

An object is pickled with its large buffers out of band (pickle protocol 5). Between processes of
one machine the buffers lie in a file of a shared-memory folder that both sides map; between
machines they travel through Ray's object store.
"""

from __future__ import annotations

import copyreg
import io
import itertools
import mmap
import os
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from fedsim.params import Layout, Params

INLINE_BYTES = 32 * 1024
"""Up to this size an object travels inside the message: Ray passes up to 100 kB that way."""

_PREFIX = "fedsim-"

_NUMPY_DTYPES = {torch.float64, torch.float32, torch.float16, torch.complex64, torch.complex128} | {
    torch.bool, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8
}  # fmt: skip


@dataclass
class Packed:
    """A pickled object, held in `header` and `buffers` or in the file `path`.

    The file holds the buffers and, from `index` on, the pickled header and the buffers' spans.
    """

    header: bytes = b""
    buffers: list[np.ndarray] = field(default_factory=list)
    path: str | None = None
    index: int = 0


def _reduce_params(params: Params) -> Any:
    return _params, (params.layout, params.flat.detach(), params.integers)


def _reduce_tensor(tensor: Tensor) -> Any:
    tensor = tensor.detach().cpu()
    if tensor.dtype not in _NUMPY_DTYPES:
        return _tensor, (tensor.contiguous().view(-1).view(torch.uint8).numpy(), _form(tensor))
    if tensor.is_contiguous():
        return _tensor, (tensor.numpy(),)
    # The order in memory is kept, as kernels may sum in another order over another one.
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    if not tensor.permute(order).is_contiguous():
        return _tensor, (tensor.contiguous().numpy(),)
    return _permuted, (tensor.permute(order).numpy(), order)


def _form(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...]]:
    return tensor.dtype, tuple(tensor.shape)


def _permuted(array: np.ndarray, order: list[int]) -> Tensor:
    return _tensor(array).permute([order.index(i) for i in range(len(order))])


class _Pickler(pickle.Pickler):
    """Pickles tensors as numpy arrays, whose memory goes out of band."""

    # By exact type, so that the pickler calls no Python code for anything else.
    dispatch_table: ClassVar[dict[type, Callable[[Any], Any]]] = {  # type: ignore[misc]
        **copyreg.dispatch_table,
        Params: _reduce_params,
        Tensor: _reduce_tensor,
        nn.Parameter: _reduce_tensor,
    }


def _params(layout: Layout, flat: Tensor, integers: dict[str, Tensor]) -> Params:
    return Params(layout, flat, integers)


def _tensor(array: np.ndarray, form: tuple[torch.dtype, tuple[int, ...]] | None = None) -> Tensor:
    if form is not None:
        return _tensor(array).view(form[0]).view(form[1])
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        # A payload is read-only by contract; torch has no read-only tensors and would warn.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


class SharedStore:
    """A folder in shared memory through which processes of one machine exchange objects."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._names = itertools.count()

    @classmethod
    def create(cls, needed_bytes: int = 0) -> SharedStore:
        """Create the folder in shared memory, or on disk if memory is scarce."""
        memory = Path("/dev/shm")
        usable = memory.is_dir() and os.access(memory, os.W_OK)
        if usable and shutil.disk_usage(memory).free < max(4 * needed_bytes, 64 * 2**20):
            usable = False
        if usable:
            _remove_orphans(memory)
        prefix = f"{_PREFIX}{os.getpid()}-"
        return cls(tempfile.mkdtemp(prefix=prefix, dir=str(memory) if usable else None))

    def put(self, value: Any) -> Packed:
        """Pickle `value`; a large one goes into a new file of the folder.

        The return value is small whatever is put: the header counts as well, as it holds byte
        strings such as the clients' states.
        """
        packed = dump(value)
        if len(packed.header) + sum(b.nbytes + 64 for b in packed.buffers) <= INLINE_BYTES:
            return packed
        path = os.path.join(self.folder, f"{os.getpid()}-{next(self._names)}")
        offset, spans = 0, []
        with open(path, "wb") as file:
            for buffer in packed.buffers:
                padding = -buffer.nbytes % 64
                file.write(buffer.data)
                file.write(bytes(padding))
                spans.append((offset, buffer.nbytes))
                offset += buffer.nbytes + padding
            file.write(pickle.dumps((len(packed.header), spans)))
            file.write(packed.header)
        return Packed(path=path, index=offset)

    def close(self) -> None:
        """Remove the folder; mapped memory lives on until it is unmapped."""
        shutil.rmtree(self.folder, ignore_errors=True)


def dump(value: Any) -> Packed:
    """Pickle `value` into an object that carries its buffers itself."""
    raw: list[pickle.PickleBuffer] = []
    header = io.BytesIO()
    _Pickler(header, protocol=5, buffer_callback=raw.append).dump(value)
    return Packed(header.getvalue(), buffers=[np.frombuffer(b.raw(), np.uint8) for b in raw])


def load(packed: Packed, unlink: bool = False) -> Any:
    """Unpickle an object; buffers in a file are mapped, not copied.

    The object is read-only unless `unlink`, which removes the file.
    """
    if packed.path is None:
        return pickle.loads(packed.header, buffers=packed.buffers)
    access = mmap.ACCESS_COPY if unlink else mmap.ACCESS_READ
    with open(packed.path, "rb") as file:
        memory = memoryview(mmap.mmap(file.fileno(), 0, access=access))
    if unlink:
        os.unlink(packed.path)
    size, spans = pickle.loads(memory[packed.index :])
    pieces = [memory[start : start + length] for start, length in spans]
    return pickle.loads(memory[len(memory) - size :], buffers=pieces)


def _remove_orphans(memory: Path) -> None:
    """Remove the folders of processes that were killed."""
    for folder in memory.glob(f"{_PREFIX}*-*"):
        pid = folder.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
