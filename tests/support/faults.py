"""Client methods that misbehave on purpose, chosen by the id of the client.

They train as local SGD does and then, for the client `victim` from round `since` on, do the
damage. A marker file counts how often a worker was killed, so that it happens `times` times.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fedsim.client import Tree, Update
from fedsim.params import Params
from fedsim.training.local_sgd import LocalSGD


class Faulty(LocalSGD):
    """Local SGD in which one client does `fault`."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        fault: str = "none"
        victim: int = 3
        victims: tuple[int, ...] = ()  # fault "kill": the worker of each of these dies once
        since: int = 1
        times: int = 1
        marker: str = ""

    stateful = True

    def init_state(self, ctx: Any) -> Any:
        return {"rounds": 0}

    def train(self, payload: Tree, state: Any, data: Any, rng: Any, ctx: Any) -> Any:
        _, update = super().train(payload, None, data, rng, ctx)
        state = {"rounds": state["rounds"] + 1}
        victims = self.config.victims or (self.config.victim,)
        if ctx.client_id in victims and ctx.round >= self.config.since:
            update = self._damage(update, ctx.client_id)
        return state, update

    def _damage(self, update: Update, client: int) -> Any:
        fault = self.config.fault
        model = update.tensors["model"]
        if fault == "raise":
            raise RuntimeError("the disk of this client is on fire")
        if fault == "nan":
            model.flat[5] = float("nan")
        elif fault == "huge":
            model.flat[5] = 1e12
        elif fault == "shape":
            first, *others = model.layout.shapes
            layout = replace(model.layout, shapes=((first[0] - 1, *first[1:]), *others))
            return replace(update, tensors={"model": Params(layout, torch.zeros(layout.size))})
        elif fault == "kind":
            return replace(update, tensors={"model": {"weight": torch.zeros(3)}})
        elif fault == "none-at-all":
            return None
        elif fault == "metric":
            return replace(update, metrics={"train_loss": "low"})  # type: ignore[dict-item]
        elif fault == "exit":
            sys.exit(3)
        elif fault == "missing":
            return Update({}, update.weight)
        elif fault == "weight":
            return replace(update, weight=0.0)
        elif fault == "type":
            return model
        elif fault == "until" and not Path(self.config.marker).exists():
            raise RuntimeError("the marker is missing")
        elif fault == "until-sleep":
            if not Path(self.config.marker).exists():
                time.sleep(3600)
        elif fault == "sleep":
            time.sleep(3600)
        elif fault == "hang":
            # No signal gets through, as in a C library that never returns.
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            time.sleep(3600)
        elif fault == "kill":
            self._kill(f"-{client}" if self.config.victims else "")
        elif fault == "memory":
            raise MemoryError("cannot allocate 1 TiB")
        return update

    def _kill(self, suffix: str) -> None:
        marker = Path(self.config.marker + suffix)
        done = len(marker.read_text()) if marker.exists() else 0
        if done < self.config.times:
            with marker.open("a") as file:
                file.write("x")
                file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
