"""Isolation of clients: time limits, failures as reports, restoring the resident model."""

from __future__ import annotations

import gc
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from fedsim.engine.jobs import Failure, Report
from fedsim.params import FlatModel


class ClientTimeout(BaseException):
    """Raised inside a client that takes too long.

    A `BaseException`, so that ``except Exception`` in client code does not catch it.
    """


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Raise `ClientTimeout` in the body after `seconds`; possible in a main thread only."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def expire(signum: int, frame: FrameType | None) -> None:
        raise ClientTimeout

    previous = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def guarded(client: int, round: int, limit: float | None, work: Callable[[], Report]) -> Report:
    """Return the report of one client's work; whatever goes wrong becomes a failure in it.

    `limit` bounds the work in seconds.
    """
    started = time.perf_counter()
    where = f"client {client}, round {round}"
    try:
        with time_limit(limit):
            report = work()
    except ClientTimeout:
        text = f"{where}: took longer than engine.timeout = {limit} s"
        report = Report(client, failure=Failure("timeout", text))
    except (MemoryError, torch.OutOfMemoryError) as error:
        gc.collect()
        text = f"{where}: out of memory: {error}"
        report = Report(client, failure=Failure("out-of-memory", text))
    except (Exception, SystemExit) as error:
        text = f"{where}: {type(error).__name__}: {error}"
        report = Report(client, failure=Failure("raised", text, traceback.format_exc()))
    report.seconds = time.perf_counter() - started
    return report


def capture_module_state(model: FlatModel) -> Callable[[], None]:
    """Return a function that undoes what clients do to a resident model besides its values.

    Restored are the training mode, which parameters require a gradient, stored gradients, and
    parameters that were re-pointed away from the flat vector.
    """
    module = model.module
    flags = [(p, p.requires_grad) for p in model.parameters]
    views = model.layout.views(model.flat)
    tensors = [(t, views[n]) for n, t in module.state_dict(keep_vars=True).items() if n in views]

    def restore() -> None:
        module.train()
        for parameter, flag in flags:
            parameter.grad = None
            if parameter.requires_grad != flag:
                parameter.requires_grad_(flag)
        for tensor, view in tensors:
            if tensor.data_ptr() != view.data_ptr():
                tensor.data = view

    return restore
