"""Connecting to a Ray cluster: one of our own, or one at an address."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import warnings
from typing import Any

from fedsim.engine.jobs import WorkerSpec
from fedsim.errors import InputError


def places(node: dict[str, float], cpus: float, gpus: float) -> int:
    """Return how many workers with these shares of CPUs and GPUs fit on one machine.

    A worker has whole GPUs or a part of one: three of 0.6 do not fit on two GPUs.
    """
    count = int(node.get("CPU", 0.0) / cpus + 1e-9)
    if gpus > 0:
        whole = node.get("GPU", 0.0)
        count = min(count, int(whole) * int(1 / gpus + 1e-9) if gpus < 1 else int(whole / gpus))
    return count


def connect(spec: WorkerSpec) -> Any:
    """Start Ray on this machine, or join the cluster at `engine.address`.

    Usage statistics and the dashboard stay off.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    config = spec.experiment.engine
    if ray.is_initialized():
        return _Borrowed(ray)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if config.address is not None:
            try:
                _check_answers(config.address)
                ray.init(address=config.address, **common)
            except (ConnectionError, OSError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"engine.address = {config.address!r}: no Ray cluster answers there ({error}); "
                    "start one with `ray start --head`, or leave the address out"
                ) from None
        else:
            ray.init(
                address="local",  # not a cluster that somebody else runs on this machine
                num_cpus=max(os.cpu_count() or 1, _ceil((config.workers or 1) * config.cpus)),
                include_dashboard=False,
                object_store_memory=256 * 2**20,
                **common,
            )
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        # Ray has replaced the command line's handler, which ends a run as cleanly.
        signal.signal(signal.SIGTERM, on_sigterm)
    return ray


def _check_answers(address: str) -> None:
    """Raise OSError if nothing listens at ``host:port``; Ray would try for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


class _Borrowed:
    """A Ray that this process had already started: used, but not shut down."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    def shutdown(self) -> None:
        """Leave the cluster running."""


def _ceil(value: float) -> int:
    return int(-(-value // 1))


def python_search_path() -> tuple[str, ...]:
    """Return the driver's import path, so that workers find the user's own modules."""
    return tuple(path for path in sys.path if path)
