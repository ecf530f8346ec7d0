"""Client methods for tests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.client import Tree, Update
from fedsim.training.local_sgd import LocalSGD


class Tracing(LocalSGD):
    """Local SGD that leaves a file ``<node>.<pid>`` in a folder wherever it has trained."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        folder: str = ""

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else "driver"
        (Path(self.config.folder) / f"{node}.{os.getpid()}").touch()
        return super().train(payload, state, data, rng, ctx)


class Stateful(LocalSGD):
    """Local SGD from the mean of the global model and the client's own last one."""

    stateful = True

    def init_state(self, ctx: Any) -> Any:
        return {"last": None, "rounds": 0}

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        model = payload["model"]
        if state["last"] is not None:
            model = (model + state["last"]) * 0.5
        _, update = super().train({**payload, "model": model}, None, data, rng, ctx)
        update.metrics["rounds_before"] = float(state["rounds"])
        return {"last": update.tensors["model"].clone(), "rounds": state["rounds"] + 1}, update


class KeepsMuch(LocalSGD):
    """Local SGD whose clients keep a mebibyte each, of their own number."""

    stateful = True

    def init_state(self, ctx: Any) -> Any:
        return {"kept": b""}

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        assert ctx.round == 1 or state["kept"] == bytes([ctx.client_id]) * 2**20
        _, update = super().train(payload, None, data, rng, ctx)
        return {"kept": bytes([ctx.client_id]) * 2**20}, update


class SendsBody(LocalSGD):
    """Sends its body under another key than FedAvg needs."""

    sends = frozenset({"body"})

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        return None, Update({"body": payload["model"]}, 1.0)


class NeedsPrototypes(LocalSGD):
    """Needs more of the payload than FedAvg sends."""

    needs = frozenset({"model", "prototypes"})
