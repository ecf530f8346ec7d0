"""Screening: updates that would spoil the aggregate are dropped, clipped or end the run.

A worker judges each update as it is made (`UpdateScreen`, for replies of Flower ClientApps
`screen_reply`): keys, shapes, weight, finiteness and the norm of its change. The driver judges a
round as a whole (`RoundScreen`): updates that differ from most, and whether enough are left.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from fedsim.client import GroupUpdate
from fedsim.config.experiment import Screening
from fedsim.engine.jobs import Failure, Report, RoundLog
from fedsim.errors import RunFailed
from fedsim.params import Params, trees
from fedsim.params.trees import Tree


class UpdateScreen:
    """Judges single updates; `sends` are the keys that every update must have."""

    def __init__(self, settings: Screening, sends: frozenset[str]) -> None:
        self._settings = settings
        self._sends = sends
        self._norm: tuple[Tree, float] = ({}, 0.0)  # of the payload seen last

    def screen(self, report: Report, payload: Tree) -> None:
        """Mark the report of an unfit update as failed, or clip the update (in place)."""
        if report.failure is not None:
            return
        defect = self._defect(report, payload)
        if defect is not None:
            reject(report, defect)

    def admits(self, update: GroupUpdate, payload: Tree) -> bool:
        """Whether no update of a group can be unfit; where not, its clients are judged singly."""
        norms = update.norms() + self._norm_of(payload)
        return not self._sends - set(update.tensors) and bool(
            (norms <= self._settings.max_norm).all()
        )

    def _defect(self, report: Report, payload: Tree) -> str | None:
        update, weight = report.update, report.weight
        if not isinstance(update, dict):
            return f"Update.tensors is a {type(update).__name__}, expected a dict"
        if missing := sorted(self._sends - set(update)):
            return f"missing keys {missing}"
        if not isinstance(weight, int | float) or not (weight > 0 and math.isfinite(weight)):
            return f"weight must be positive and finite, got {weight!r}"
        sent = {key: payload[key] for key in update if key in payload}
        comparable = {key: update[key] for key in sent}
        difference = trees.difference(comparable, sent)
        if difference is not None:
            return difference
        size = trees.norm(update)
        if not math.isfinite(size):
            return f"not finite: {_first_non_finite(update)}"
        limit = self._settings.max_norm
        # |update - sent| <= |update| + |sent|: most updates pass without the difference.
        if size + self._norm_of(payload) <= limit:
            return None
        distance = trees.norm(trees.subtract(comparable, sent))
        if distance <= limit:
            return None
        text = f"norm {distance:.4g} of the change exceeds screening.max_norm = {limit:g}"
        if self._settings.policy != "clip":
            return text
        report.update = {**update, **trees.move_towards(sent, comparable, limit / distance)}
        report.note = f"client {report.client}: clipped: {text}"
        return None

    def _norm_of(self, payload: Tree) -> float:
        """Norm of a payload, remembered while the next client gets the same."""
        if payload is not self._norm[0]:
            self._norm = (payload, trees.norm(payload))
        return self._norm[1]


class RoundScreen:
    """Judges a round; without `uniform` clients may send different tensors."""

    def __init__(self, settings: Screening, uniform: bool = True) -> None:
        self._settings = settings
        self._uniform = uniform

    def compare(self, reports: Sequence[Report], log: RoundLog) -> None:
        """Reject updates whose tensors have other names or shapes than most have (in place)."""
        if not self._uniform:
            return
        good = [report for report in reports if report.failure is None]
        shapes = [_shapes(report) for report in good]
        common = max(shapes, key=shapes.count, default=())
        for report, shape in zip(good, shapes, strict=True):
            if shape != common:
                reject(report, "its update has other keys or shapes than those of most clients")
                log.failures.append(report)

    def check_survivors(self, cohort: int, failures: Sequence[Report]) -> None:
        """Raise `RunFailed` if too few of a cohort are left, or on any loss under `abort`."""
        if self._settings.policy == "abort" and failures:
            first = failures[0].failure
            raise RunFailed(f"{first.text if first else ''} (screening.policy is abort)")
        alive = cohort - len(failures)
        least = self._settings.min_survivors
        needed = least if isinstance(least, int) else max(1, int(-(-least * cohort // 1)))
        if alive < min(needed, cohort):
            reasons = "; ".join(r.failure.text for r in failures[:3] if r.failure)
            more = f"; and {len(failures) - 3} more" if len(failures) > 3 else ""
            raise RunFailed(
                f"only {alive} of {cohort} clients gave a usable update, screening.min_survivors "
                f"needs {needed}: {reasons}{more}"
            )


def screen_reply(report: Report, model: Params) -> None:
    """Mark the report of a ClientApp's unfit reply as failed (in place).

    Its arrays must be finite and, where they have names of the model's tensors, be the whole model.
    """
    from fedsim.flower.records import RecordMismatch, tree_of

    for record in report.content.array_records.values():
        for name, array in record.items():
            values = torch.from_numpy(array.numpy())
            if values.is_floating_point() and not bool(torch.isfinite(values).all()):
                reject(report, f"not finite: {name!r} has NaN or infinite elements")
                return
        try:
            tree_of(record, model)
        except RecordMismatch as error:
            reject(report, str(error))
            return


def reject(report: Report, defect: str) -> None:
    """Mark a report as screened (in place)."""
    report.failure = Failure("screened", f"client {report.client}: {defect}")


def _shapes(report: Report) -> tuple[Any, ...]:
    """Return the names and shapes of what a client sent."""
    if report.content is None:
        tensors = trees.named_tensors(report.update or {})
        return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(tensors.items()))
    return tuple(
        (name, tuple((key, tuple(array.shape)) for key, array in sorted(record.items())))
        for name, record in sorted(report.content.array_records.items())
    )


def _first_non_finite(tree: Tree) -> str:
    for name, tensor in trees.named_tensors(tree).items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            bad = int((~torch.isfinite(tensor)).sum())
            return f"{bad} of {tensor.numel()} elements of {name!r} are NaN or infinite"
    return "a number is NaN or infinite"
