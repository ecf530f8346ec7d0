"""Trees of tensors: nested str-keyed dicts with `Params`, tensors and numbers as leaves.

Payloads, updates and client states are such trees. What is here treats them as one object:
size on the wire, finiteness, distance, and the weighted mean that federated averaging is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fedsim.params.vector import Layout, Params, Rows

Tree = dict[str, Any]


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield ``(path, leaf)`` in key order; `Params` count as one leaf, dicts are walked."""
    for key in sorted(tree):
        value = tree[key]
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and not isinstance(value, Params):
            yield from leaves(value, f"{path}/")
        else:
            yield path, value


def named_tensors(tree: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a tree by name.

    The model's tensors have their own names, everything else its path (``generator/fc.weight``).
    """
    named: dict[str, Tensor] = {}
    for path, leaf in leaves(tree):
        if isinstance(leaf, Params):
            prefix = "" if path == "model" else f"{path}/"
            named |= {prefix + name: leaf[name] for name in leaf}
        elif isinstance(leaf, Tensor):
            named[path] = leaf
    return named


def num_bytes(tree: Mapping[str, Any]) -> int:
    """Bytes the tree's tensors and numbers take on the wire (8 a number)."""
    total = 0
    for _, leaf in leaves(tree):
        if isinstance(leaf, Params):
            total += leaf.num_bytes()
        elif isinstance(leaf, Tensor):
            total += leaf.numel() * leaf.element_size()
        elif isinstance(leaf, int | float):
            total += 8
        elif isinstance(leaf, str | bytes):
            total += len(leaf)
    return total


def _float_tensors(tree: Mapping[str, Any]) -> Iterator[Tensor]:
    for _, leaf in leaves(tree):
        if isinstance(leaf, Params):
            yield leaf.flat
        elif isinstance(leaf, Tensor) and leaf.is_floating_point():
            yield leaf
        elif isinstance(leaf, float):
            yield torch.tensor(leaf)


def norm(tree: Mapping[str, Any]) -> float:
    """Euclidean norm over all floating-point leaves; NaN or infinite if any element is."""
    squares = 0.0
    for tensor in _float_tensors(tree):
        value = float(torch.linalg.vector_norm(tensor))
        if math.isinf(value) and bool(torch.isfinite(tensor).all()):
            # The sum of squares overflowed in fp32 although every element is finite.
            value = float(torch.linalg.vector_norm(tensor, dtype=torch.float64))
        squares += value * value
    return math.sqrt(squares) if not math.isnan(squares) else math.nan


def structure(tree: Mapping[str, Any]) -> tuple[tuple[str, object], ...]:
    """Return a comparable description: path and, for tensors, names and shapes."""
    described: list[tuple[str, object]] = []
    for path, leaf in leaves(tree):
        if isinstance(leaf, Params):
            described.append((path, leaf.layout))
        elif isinstance(leaf, Tensor):
            described.append((path, tuple(leaf.shape)))
        else:
            described.append((path, type(leaf).__name__))
    return tuple(described)


def difference(first: Tree, second: Tree) -> str | None:
    """Say in words how the structure of `first` departs from that of `second`; None if equal."""
    a, b = dict(structure(first)), dict(structure(second))
    if a == b:
        return None
    if missing := sorted(set(b) - set(a)):
        return f"missing keys {missing}"
    if extra := sorted(set(a) - set(b)):
        return f"unexpected keys {extra}"
    for path, described in a.items():
        if described == b[path]:
            continue
        if isinstance(described, Layout) != isinstance(b[path], Layout):
            return f"{path!r} must be {_kind(b[path])}, got {_kind(described)}"
        got, want = _shapes(first, path), _shapes(second, path)
        for name in want:
            if name not in got:
                return f"missing keys [{name!r}]"
            if got[name] != want[name]:
                return f"wrong shape of {name!r}: {got[name]}, expected {want[name]}"
        return f"{path!r} differs in kind: {described!r}, expected {b[path]!r}"
    return None


def _kind(described: object) -> str:
    if isinstance(described, Layout):
        return "Params with the model's names"
    return f"a tensor of shape {described}" if isinstance(described, tuple) else f"a {described}"


def _shapes(tree: Tree, path: str) -> dict[str, tuple[int, ...]]:
    leaf: Any = tree
    for key in path.split("/"):
        leaf = leaf[key]
    if isinstance(leaf, Params):
        return {name: tuple(leaf[name].shape) for name in leaf}
    return {path: tuple(leaf.shape)} if isinstance(leaf, Tensor) else {}


def subtract(first: Tree, second: Tree) -> Tree:
    """Return ``first - second`` over the keys of `first`; the structures must agree there."""
    result: Tree = {}
    for key, value in first.items():
        if isinstance(value, Mapping) and not isinstance(value, Params):
            result[key] = subtract(dict(value), second[key])
        elif isinstance(value, Params | Tensor | int | float):
            result[key] = value - second[key]
        else:
            result[key] = value
    return result


def move_towards(start: Tree, end: Tree, fraction: float) -> Tree:
    """Return ``start + fraction * (end - start)``; integer tensors are taken from `end`."""
    result: Tree = {}
    for key, value in end.items():
        if isinstance(value, Mapping) and not isinstance(value, Params):
            result[key] = move_towards(start[key], dict(value), fraction)
        elif isinstance(value, Params):
            moved = start[key].flat + (value.flat - start[key].flat) * fraction
            result[key] = value.replace(moved)
        elif isinstance(value, Tensor) and value.is_floating_point():
            result[key] = start[key] + (value - start[key]) * fraction
        else:
            result[key] = value
    return result


class WeightedMean:
    """Running weighted mean of trees: add in a fixed order, read `mean` at the end.

    Sums are kept in fp64. With whole-numbered weights (sample counts) every product
    ``weight * value`` is exact there, so the sum of a block is the same whether its clients were
    added in one process or one by one. Integer tensors are not averaged: the elementwise
    maximum is kept, which for BatchNorm's step counter is the longest history.
    """

    def __init__(self) -> None:
        self.weight = 0.0
        self._sum: Tree | None = None

    def add(self, tree: Tree, weight: float) -> None:
        """Add `tree` with `weight` (> 0); trees must agree in structure."""
        if self._sum is None:
            self._sum = _zeros(tree)
        _accumulate(self._sum, tree, float(weight))
        self.weight += float(weight)

    def add_rows(self, tree: Mapping[str, Rows], weights: list[float]) -> None:
        """Add the trees of several clients, whose `Params` are one row each of `tree`'s.

        Inside the rows the sum is taken in fp32, one matrix product over at most a few dozen
        terms, which is twice as fast as fp64; across calls it is in fp64 as everywhere.
        """
        if self._sum is None:
            self._sum = _zeros({key: rows.like for key, rows in tree.items()})
        for key, rows in tree.items():
            share = torch.tensor(weights, dtype=rows.flat.dtype)
            self._sum[key].flat.add_(torch.mv(rows.flat.T, share))
        self.weight += sum(weights)

    def merge(self, other: WeightedMean) -> None:
        """Add what `other` has summed up, as if its trees were added here."""
        if other._sum is None:
            return
        if self._sum is None:
            self._sum = _zeros(other._sum)
        _accumulate(self._sum, other._sum, 1.0)
        self.weight += other.weight

    def mean(self, dtype: torch.dtype | None = None) -> Tree:
        """Return the mean, in fp64 or cast to `dtype`.

        Raises:
            ValueError: nothing was added.
        """
        if self._sum is None:
            raise ValueError("the weighted mean of nothing is undefined")
        return _scaled(self._sum, self.weight, dtype)


def weighted_mean(trees: Iterable[tuple[Tree, float]]) -> Tree:
    """Return ``sum_k w_k tree_k / sum_k w_k`` in fp32, summed in fp64 in the order given."""
    total = WeightedMean()
    for tree, weight in trees:
        total.add(tree, weight)
    return total.mean(torch.float32)


def _zeros(tree: Mapping[str, Any]) -> Tree:
    zeros: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Params):
            flat = torch.zeros_like(value.flat, dtype=torch.float64)
            zeros[key] = Params(
                value.layout, flat, {k: v.clone() for k, v in value.integers.items()}
            )
        elif isinstance(value, Mapping):
            zeros[key] = _zeros(value)
        elif isinstance(value, Tensor):
            floating = value.is_floating_point()
            zeros[key] = torch.zeros_like(value, dtype=torch.float64) if floating else value.clone()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            zeros[key] = 0.0
        else:
            zeros[key] = value
    return zeros


def _accumulate(total: Tree, tree: Mapping[str, Any], weight: float) -> None:
    for key, value in tree.items():
        if isinstance(value, Params):
            total[key].flat.add_(value.flat, alpha=weight)
            for name, count in value.integers.items():
                torch.maximum(total[key].integers[name], count, out=total[key].integers[name])
        elif isinstance(value, Mapping):
            _accumulate(total[key], value, weight)
        elif isinstance(value, Tensor):
            if value.is_floating_point():
                total[key].add_(value, alpha=weight)
            else:
                torch.maximum(total[key], value, out=total[key])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            total[key] += weight * value


def _scaled(tree: Tree, weight: float, dtype: torch.dtype | None) -> Tree:
    scaled: Tree = {}
    for key, value in tree.items():
        if isinstance(value, Params):
            scaled[key] = value.replace((value.flat / weight).to(dtype or torch.float64))
        elif isinstance(value, dict):
            scaled[key] = _scaled(value, weight, dtype)
        elif isinstance(value, Tensor) and value.is_floating_point():
            scaled[key] = (value / weight).to(dtype or torch.float64)
        elif isinstance(value, float):
            scaled[key] = value / weight
        else:
            scaled[key] = value
    return scaled
