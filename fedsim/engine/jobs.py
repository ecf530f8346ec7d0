"""Records exchanged between driver and workers, all of them picklable."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch

from fedsim.config.experiment import Experiment
from fedsim.data.partition import ClientIndices
from fedsim.params.trees import Tree

Kind = Literal["train", "evaluate", "score"]


@dataclass(frozen=True)
class WorkerSpec:
    """Specification of a worker, for any machine that has the packages and the data.

    `public` int32 (p,) are the rows of the training split that the server and all clients know.
    """

    experiment: Experiment
    search_path: tuple[str, ...] = ()
    public: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))


@dataclass
class ClientJob:
    """The work of one client in a block."""

    client: int
    indices: ClientIndices
    state: bytes | None = None  # encoded, before this round; None before the client's first
    own: Tree | None = None  # payload on top of the shared one
    message_type: str = ""  # of the Flower message, for ClientApps


@dataclass
class Block:
    """Consecutive clients of a cohort, run one after another by one worker."""

    index: int
    round: int
    kind: Kind
    clients: list[ClientJob] = field(default_factory=list)
    reduce: bool = False  # return the weighted mean of the updates instead of each update
    shard: tuple[int, int] = (0, 0)  # kind "score": rows of the global test set
    rows: np.ndarray | None = None  # kind "score": these rows of the training split instead
    cost: float = 0.0  # expected seconds or any unit alike for all; only orders the queue

    @property
    def client_ids(self) -> list[int]:
        return [a.client for a in self.clients]

    def __reduce__(self) -> Any:
        # A few long arrays instead of three short ones a client: blocks travel every round.
        lengths = np.array([[len(rows) for rows in a.indices[:3]] for a in self.clients], np.int64)
        rows = [rows for a in self.clients for rows in a.indices[:3]]
        joined = np.concatenate(rows) if rows else np.empty(0, np.int32)
        rest = [(a.client, a.state, a.own, a.message_type, a.indices[3:]) for a in self.clients]
        own = (self.index, self.round, self.kind, self.reduce, self.shard, self.rows, self.cost)
        return _block, (own, lengths, joined, rest)


def _block(own: tuple[Any, ...], lengths: np.ndarray, joined: np.ndarray, rest: Any) -> Block:
    index, round, kind, reduce, shard, held_out, cost = own
    clients, start = [], 0
    for (client, state, extra, message_type, traits), sizes in zip(
        rest, lengths.tolist(), strict=True
    ):
        validation = start + sizes[0]
        test = validation + sizes[1]
        stop = test + sizes[2]
        pieces = joined[start:validation], joined[validation:test], joined[test:stop]
        start = stop
        clients.append(
            ClientJob(client, ClientIndices(*pieces, *traits), state, extra, message_type)
        )
    return Block(index, round, kind, clients, reduce, shard, held_out, cost)


@dataclass
class Failure:
    """Why a client's answer cannot be used."""

    kind: str  # raised | timeout | worker-died | screened | out-of-memory
    text: str
    traceback: str = ""


@dataclass
class Report:
    """What one client reports of its work in a block."""

    client: int
    weight: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_up: int = 0
    failure: Failure | None = None
    note: str | None = None  # of an update that was used, but changed
    update: Tree | None = None  # None where the block is reduced
    state: bytes | None = None  # the encoded state after this round, if the client keeps one
    content: Any = None  # the reply of a ClientApp
    audit: dict[str, float] = field(default_factory=dict)  # metrics that the server never sees

    @property
    def measured(self) -> dict[str, float]:
        """All metrics that are recorded of the client."""
        return {**self.metrics, **self.audit} if self.audit else self.metrics


@dataclass
class BlockResult:
    """A worker's answer to a block."""

    index: int
    reports: list[Report]
    sums: Any = None  # the block's `WeightedMean` when it is reduced
    tally: Any = None  # kind "score": the `Tally` of the rows
    seconds: float = 0.0

    def __reduce__(self) -> Any:
        # Tuples pickle several times faster than one dataclass a client.
        rows = [tuple(vars(report).values()) for report in self.reports]
        return _result, (self.index, rows, self.sums, self.tally, self.seconds)


def _result(index: int, rows: list[tuple[Any, ...]], *rest: Any) -> BlockResult:
    return BlockResult(index, [Report(*row) for row in rows], *rest)


@dataclass(frozen=True)
class EngineEvent:
    """An incident in the engine: a worker died, a block was split."""

    kind: str
    text: str


class Executor(Protocol):
    """Runs blocks; the results do not depend on which executor it is."""

    events: list[EngineEvent]
    num_workers: int
    when_waiting: Callable[[], None]  # called while workers are busy and the driver is not

    def run(self, blocks: list[Block], payload: Tree) -> Any:
        """Yield a `BlockResult` for every block, in any order."""

    def close(self) -> None:
        """Stop everything that was started."""


@dataclass
class RoundLog:
    """What the clients of a round reported and what it cost.

    `failures` are the reports of lost clients in the order they were noticed, `sums` the
    `WeightedMean` of all updates where only that was asked for.
    """

    reports: list[Report] = field(default_factory=list)
    bytes_down: dict[int, int] = field(default_factory=dict)
    failures: list[Report] = field(default_factory=list)
    sums: Any = None
    seconds: float = 0.0

    @property
    def num_survivors(self) -> int:
        """How many clients were not lost."""
        return len(self.reports) - len(self.failures)

    def mean(self) -> tuple[Tree, float, dict[str, float]]:
        """Return the weighted mean of all updates, their weight together, and the mean metrics.

        Of the metrics that all clients report; there must be `sums`.
        """
        good = [report for report in self.reports if report.failure is None]
        total = sum(report.weight for report in good)
        names = set.intersection(*(set(report.metrics) for report in good))
        metrics = {n: sum([r.weight * r.metrics[n] for r in good]) / total for n in sorted(names)}
        return self.sums.mean(), self.sums.weight, metrics

    def survivors(self) -> list[Report]:
        """Return the reports of the clients that were not lost, in ascending order of id."""
        good = (report for report in self.reports if report.failure is None)
        return sorted(good, key=lambda report: report.client)


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics as plain floats.

    Raises:
        TypeError: one of them is no number.
    """
    for name, value in metrics.items():
        if not isinstance(value, int | float | np.number | torch.Tensor):
            raise TypeError(f"metric {name!r} must be a number, got {value!r}")
    return {name: float(value) for name, value in metrics.items()}
