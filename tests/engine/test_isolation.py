"""A worker: time limits, and nothing that one client leaves behind for the next."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from typing import Any

import pytest
import torch
from torch import nn

from fedsim.engine.isolation import ClientTimeout, capture_module_state, time_limit
from fedsim.params import FlatModel


def test_time_limit_stops_python_and_sleep() -> None:
    def spin() -> None:
        while True:
            pass

    started = time.monotonic()
    with pytest.raises(ClientTimeout), time_limit(0.1):
        time.sleep(10)
    with pytest.raises(ClientTimeout), time_limit(0.1):
        spin()
    assert time.monotonic() - started < 2


def test_time_limit_is_not_swallowed_by_a_client_that_catches_exceptions() -> None:
    def stubborn() -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(0.01)

    with pytest.raises(ClientTimeout), time_limit(0.05):
        stubborn()


def test_time_limit_is_over_at_its_end_and_restores_the_handler() -> None:
    def mine(*arguments: Any) -> None:
        raise AssertionError("the old handler ran")

    previous = signal.signal(signal.SIGALRM, mine)
    try:
        with time_limit(0.05):
            pass
        time.sleep(0.1)
        assert signal.getsignal(signal.SIGALRM) is mine
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        with time_limit(None):
            assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_time_limit_does_nothing_outside_the_main_thread() -> None:
    done = []

    def work() -> None:
        with time_limit(0.01):
            time.sleep(0.1)
        done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_what_a_client_does_to_the_model_is_undone() -> None:
    model = FlatModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    restore = capture_module_state(model)
    linear = model.module[0]  # type: ignore[index]
    values = model.params()
    model.module.eval()
    linear.weight.requires_grad_(False)
    linear.bias.grad = torch.ones(2)
    linear.weight.data = torch.zeros(2, 2)
    restore()
    assert model.module.training
    assert linear.weight.requires_grad
    assert linear.bias.grad is None
    model.load(values)
    assert torch.equal(linear.weight, values["0.weight"])
