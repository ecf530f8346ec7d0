"""The executor of an experiment, serial or Ray."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from fedsim.config.experiment import Experiment
from fedsim.engine.jobs import Executor, WorkerSpec


@contextmanager
def open_executor(experiment: Experiment, public: np.ndarray) -> Iterator[Executor]:
    """Start the executor that `engine` asks for, and stop it at the end.

    `public` int32 (p,) are the rows of the training split that all clients know.

    Raises:
        InputError: more workers than the cluster has room for, or no cluster at the address; more
            GPUs than this machine has, where all is done in this process.
    """
    executor: Executor
    if experiment.engine.name == "serial":
        from fedsim.engine.serial_executor import SerialExecutor

        executor = SerialExecutor(WorkerSpec(experiment, public=public))
    else:
        from fedsim.engine.ray_cluster import python_search_path
        from fedsim.engine.ray_executor import RayExecutor

        spec = WorkerSpec(experiment, python_search_path(), public)
        executor = RayExecutor(spec, max_workers=max(experiment.cohort_size, 1))
    try:
        yield executor
    finally:
        executor.close()
