"""The state of Flower strategies that were not written for us, for checkpoints.

Flower's strategies keep what survives a round in their attributes (``m_t``, ``current_arrays``, a
wrapped strategy ...). Everything in them that is data is captured; functions and the like come
back with the constructor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsim.flower.records import TreeRecord
from fedsim.params.trees import Tree
from fedsim.strategy import Strategy

_SCALARS = (int, float, str, bytes, bool, type(None), np.ndarray, np.generic, torch.Tensor)


def own_strategies(strategy: Any) -> Iterator[Strategy]:
    """Yield the strategies of ours in a strategy: itself, or those that a wrapper holds."""
    if isinstance(strategy, Strategy):
        yield strategy
    elif isinstance(strategy, FlowerStrategy):
        for value in vars(strategy).values():
            if isinstance(value, FlowerStrategy):
                yield from own_strategies(value)


def capture(strategy: Any) -> Any:
    """Return all that a strategy carries from round to round, ready for a checkpoint."""
    if isinstance(strategy, Strategy):
        return strategy.state
    return _attributes(strategy)


def restore(strategy: Any, captured: Any) -> None:
    """Give a newly constructed strategy what `capture` returned (in place)."""
    if isinstance(strategy, Strategy):
        strategy.state = captured
        return
    for name, value in captured.items():
        current = getattr(strategy, name, None)
        if isinstance(value, dict) and "object" in value:
            restore(current, value["object"])
        elif isinstance(value, dict) and "value" in value:
            setattr(strategy, name, _decode(value["value"]))


def _attributes(owner: Any) -> Tree:
    captured: Tree = {}
    for name, value in vars(owner).items():
        if isinstance(value, FlowerStrategy):
            captured[name] = {"object": capture(value)}
            continue
        try:
            captured[name] = {"value": _encode(value)}
        except TypeError:
            if not callable(value) and hasattr(value, "__dict__"):
                captured[name] = {"object": _attributes(value)}
    return captured


def _encode(value: Any) -> Any:
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, ArrayRecord):
        tree = value.__dict__.get("tree")
        if tree is not None:
            return {"kind": "tree", "items": tree}
        return {"kind": "arrays", "items": {k: a.numpy() for k, a in value.items()}}
    for kind, record in (("metrics", MetricRecord), ("config", ConfigRecord)):
        if isinstance(value, record):
            return {"kind": kind, "items": dict(value)}
    if isinstance(value, dict):
        return {"kind": "dict", "items": [[_encode(k), _encode(v)] for k, v in value.items()]}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {"kind": kind, "items": [_encode(v) for v in value]}
    raise TypeError(type(value).__name__)


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    kind, items = value["kind"], value["items"]
    if kind == "tree":
        return TreeRecord(items)
    if kind == "arrays":
        return ArrayRecord({k: Array(np.asarray(a)) for k, a in items.items()})
    if kind == "metrics":
        return MetricRecord(items)
    if kind == "config":
        return ConfigRecord(items)
    if kind == "dict":
        return {_decode(k): _decode(v) for k, v in items}
    decoded = [_decode(v) for v in items]
    return decoded if kind == "list" else tuple(decoded)
