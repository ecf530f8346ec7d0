"""Model parameters as one flat vector with names.

A `Layout` says where each named tensor lies in the vector; `Params` is the vector together
with its layout and behaves both as a mapping (name -> tensor view) and as an element of a
vector space (``+ - * /``). Floating-point buffers (BatchNorm statistics) lie in the vector
behind the parameters; integer buffers (``num_batches_tracked``) travel beside it and are
never averaged.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from fedsim.params.filters import under


@dataclass(frozen=True)
class Layout:
    """Where each tensor of a model lies in the flat vector.

    A four-dimensional weight is stored channels-last, the order convolution kernels read; its
    view in `Params` has the usual logical shape ``(out, in, height, width)``.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    num_parameters: int  # the first tensors of `names` that are parameters; the rest are buffers
    integers: tuple[str, ...] = ()

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(_numel(s) for s in self.shapes)

    @property
    def parameter_size(self) -> int:
        """Length of the part of the flat vector that holds trainable parameters."""
        return sum(_numel(s) for s in self.shapes[: self.num_parameters])

    def only(self, keep: Callable[[str], bool]) -> tuple[Layout, list[slice]]:
        """Return the layout of the tensors whose name passes, and where they lie in this one's.

        Neighbours share a slice.
        """
        names: list[str] = []
        shapes: list[tuple[int, ...]] = []
        runs: list[slice] = []
        offset = 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            n = _numel(shape)
            if keep(name):
                names.append(name)
                shapes.append(shape)
                if runs and runs[-1].stop == offset:
                    runs[-1] = slice(runs[-1].start, offset + n)
                else:
                    runs.append(slice(offset, offset + n))
            offset += n
        count = sum(keep(name) for name in self.names[: self.num_parameters])
        integers = tuple(filter(keep, self.integers))
        return Layout(tuple(names), tuple(shapes), count, integers), runs

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Return name -> view of `flat` (shape ``(size,)``); writing to a view writes to `flat`."""
        views, offset = {}, 0
        for name, shape in zip(self.names, self.shapes, strict=True):
            n = _numel(shape)
            piece = flat[offset : offset + n]
            if len(shape) == 4:
                o, i, h, w = shape
                views[name] = piece.view(o, h, w, i).permute(0, 3, 1, 2)
            else:
                views[name] = piece.view(shape)
            offset += n
        return views


def _numel(shape: Iterable[int]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


@dataclass(eq=False)
class Params(Mapping[str, Tensor]):
    """Named tensors over one flat fp32 vector.

    ``params["head.weight"]`` is a view; arithmetic is elementwise over the whole vector and
    returns new `Params` that keep the integer buffers of the left operand.

    Raises:
        ValueError: a vector of another length than the layout's.
    """

    layout: Layout
    flat: Tensor
    integers: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.flat.shape != (self.layout.size,):
            raise ValueError(
                f"a model of this layout is a vector of {self.layout.size} elements, got the "
                f"shape {tuple(self.flat.shape)}"
            )
        self._views: dict[str, Tensor] | None = None

    def _named(self) -> dict[str, Tensor]:
        if self._views is None:
            self._views = self.layout.views(self.flat)
        return self._views

    def __getitem__(self, name: str) -> Tensor:
        if name in self.integers:
            return self.integers[name]
        return self._named()[name]

    def __iter__(self) -> Iterator[str]:
        yield from self.layout.names
        yield from self.layout.integers

    def __len__(self) -> int:
        return len(self.layout.names) + len(self.layout.integers)

    def _combine(self, other: object, op: Callable[..., Tensor]) -> Params:
        if isinstance(other, Params):
            if other.layout != self.layout:
                raise ValueError("the two Params have different layouts")
            value = op(self.flat, other.flat)
        elif isinstance(other, int | float | Tensor):
            value = op(self.flat, other)
        else:
            return NotImplemented
        return Params(self.layout, value, self.integers)

    def __add__(self, other: Params) -> Params:
        return self._combine(other, torch.add)

    def __sub__(self, other: Params) -> Params:
        return self._combine(other, torch.sub)

    def __mul__(self, other: float | Tensor | Params) -> Params:
        return self._combine(other, torch.mul)

    def __truediv__(self, other: float | Tensor | Params) -> Params:
        return self._combine(other, torch.div)

    __rmul__ = __mul__

    def __neg__(self) -> Params:
        return self * -1.0

    def replace(self, flat: Tensor, integers: dict[str, Tensor] | None = None) -> Params:
        """Return Params of the same layout over another vector."""
        return Params(self.layout, flat, self.integers if integers is None else integers)

    def clone(self) -> Params:
        """Return an independent copy."""
        return Params(
            self.layout, self.flat.clone(), {k: v.clone() for k, v in self.integers.items()}
        )

    def select(self, keep: Callable[[str], bool]) -> dict[str, Tensor]:
        """Return independent copies of the tensors whose name passes `keep`."""
        return {name: self[name].clone() for name in self if keep(name)}

    def only(self, keep: Callable[[str], bool]) -> Params:
        """Return independent Params of the tensors whose name passes `keep`."""
        layout, runs = self.layout.only(keep)
        flat = torch.cat([self.flat[run] for run in runs]) if runs else self.flat[:0].clone()
        integers = {name: self.integers[name].clone() for name in layout.integers}
        return Params(layout, flat, integers)

    def inside(self, layer: str) -> Params:
        """Return independent Params of what lies under a layer, named without it.

        ``inside("body")`` has ``0.weight`` where this has ``body.0.weight``.
        """
        start = len(layer) + 1
        return self.only(under((layer,)))._renamed(lambda name: name[start:])

    def put_under(self, layer: str) -> Params:
        """Return the same tensors, named as under a layer: the reverse of `inside`."""
        return self._renamed(lambda name: f"{layer}.{name}")

    def _renamed(self, rename: Callable[[str], str]) -> Params:
        layout = replace(
            self.layout,
            names=tuple(map(rename, self.layout.names)),
            integers=tuple(map(rename, self.layout.integers)),
        )
        return Params(layout, self.flat, {rename(n): t for n, t in self.integers.items()})

    def merged(self, tensors: Mapping[str, Tensor]) -> Params:
        """Return a copy in which the named tensors are replaced.

        Raises:
            KeyError: a name that the layout does not have.
        """
        merged = self.clone()
        for name, value in tensors.items():
            merged[name].copy_(value)
        return merged

    def norm(self) -> float:
        """Euclidean norm of the flat vector, buffers included."""
        return float(torch.linalg.vector_norm(self.flat))

    def num_bytes(self) -> int:
        """Bytes the tensors take on the wire."""
        integers = sum(t.numel() * t.element_size() for t in self.integers.values())
        return self.flat.numel() * self.flat.element_size() + integers


@dataclass
class Rows:
    """The `Params` of several clients: `flat` (clients, size), each row a vector like `like`'s.

    Integer buffers are those of `like`.
    """

    like: Params
    flat: Tensor

    def split(self) -> list[Params]:
        """Return each client's, over the same memory."""
        return [self.like.replace(row) for row in self.flat]

    def only(self, keep: Callable[[str], bool]) -> Rows:
        """Return independent rows of the tensors whose name passes `keep`."""
        _, runs = self.like.layout.only(keep)
        pieces = [self.flat[:, run] for run in runs] or [self.flat[:, :0]]
        return Rows(self.like.only(keep), torch.cat(pieces, dim=1))

    def take(self, order: list[int]) -> Rows:
        """Return the rows in another order."""
        return Rows(self.like, self.flat[order])


def zeros_like(params: Params) -> Params:
    """Return Params of zeros with the same layout."""
    return params.replace(torch.zeros_like(params.flat))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of tensors: names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        flat = tensor.detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
