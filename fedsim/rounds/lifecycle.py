"""The life of a run around its rounds: status, log, and the final table."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fedsim.engine.jobs import Executor
from fedsim.rounds.loop import RoundLoop
from fedsim.rounds.progress import Progress
from fedsim.rounds.setup import Parts
from fedsim.runs.folder import RunFolder
from fedsim.runs.results import Run


def execute(
    parts: Parts, executor: Executor, folder: RunFolder, progress: Progress, resumed: bool
) -> None:
    started = time.perf_counter()
    with _flower_log_to(folder.logger()):
        try:
            folder.set_status("running")
            loop = RoundLoop(parts, executor, folder, progress)
            try:
                done = loop.resume() if resumed else 0
                progress.start(parts.experiment, folder.path, done + 1)
                loop.run()
            finally:
                loop.close()
        except (KeyboardInterrupt, SystemExit):
            # Ray makes a SystemExit of SIGTERM, the command line a KeyboardInterrupt.
            folder.set_status("interrupted")
            raise
        except Exception as error:
            folder.set_status("failed", f"{type(error).__name__}: {error}")
            folder.logger().exception("the run failed")
            error.add_note(f"the traceback is in {folder.path / 'log.txt'}")
            raise
        folder.set_status("finished")
    progress.end(folder.path, Run(folder.path).summary(), time.perf_counter() - started)


@contextmanager
def _flower_log_to(logger: logging.Logger) -> Iterator[None]:
    """Send what Flower's strategies say to the run's log instead of the terminal."""
    flower = logging.getLogger("flwr")
    handlers, propagate = flower.handlers, flower.propagate
    flower.handlers, flower.propagate = list(logger.handlers), False
    try:
        yield
    finally:
        flower.handlers, flower.propagate = handlers, propagate
