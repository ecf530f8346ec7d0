"""Runs that differ in their seed alone, gathered, and checked to be fit for comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import Any

from fedsim.errors import InputError
from fedsim.runs.results import Run


@dataclass
class Group:
    """The runs of one setting, in the order of their seeds."""

    label: str
    runs: list[Run]

    @property
    def seeds(self) -> list[int]:
        return [run.config.seed for run in self.runs]

    @property
    def strategy(self) -> str:
        return self.runs[0].config.strategy.name

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the runs have in common, keys joined by dots."""
        return flat(_settings(self.runs[0]))


def gather(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of runs that differ in nothing but seed, engine and checkpoints.

    They keep the order in which they first come. A group is named as its runs; where several have
    the same name, also by what tells them apart: the strategy, else the settings that differ. No
    two groups have the same label.

    Raises:
        InputError: a setting has two runs of one seed.
    """
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(json.dumps(_settings(run), sort_keys=True), []).append(run)
    groups = []
    for same in found.values():
        same.sort(key=lambda run: run.config.seed)
        for a, b in pairwise(same):
            if a.config.seed == b.config.seed:
                raise InputError(
                    f"{a.path} and {b.path} are the same setting and seed; leave one out"
                )
        groups.append(Group(same[0].config.name, same))
    tell_apart(groups)
    return groups


def check_same_data(groups: Sequence[Group]) -> None:
    """Raise unless all groups have the same data, and for each seed the same partition.

    Groups without a common seed must have the same section ``partition``; those with one may have
    come to the same partition in other ways, such as by a file.

    Raises:
        InputError: it names two runs that differ, and in what.
    """
    first = groups[0].runs[0]
    for group in groups:
        for run in group.runs:
            if (changed := _data(run)) != (wanted := _data(first)):
                keys = ", ".join(k for k in changed if changed[k] != wanted.get(k)) or "dataset"
                raise InputError(
                    f"{run.path} and {first.path} have different data ({keys}); compare runs of "
                    "the same data, or allow it with --different-data"
                )
    digests: dict[int, tuple[str, Run]] = {}
    for group in groups:
        for run in group.runs:
            digest = run.partition_digest
            known, other = digests.setdefault(run.config.seed, (digest, run))
            if known != digest:
                raise InputError(_other_partition(run, other))
    for a, b in combinations(groups, 2):
        ours, theirs = _partition(a), _partition(b)
        if not set(a.seeds) & set(b.seeds) and ours != theirs:
            unlike = [k for k in ours | theirs if ours.get(k) != theirs.get(k)]
            named = ", ".join(f"{k}: {theirs.get(k)} and {ours.get(k)}" for k in unlike)
            raise InputError(_other_partition(b.runs[0], a.runs[0], f" ({named})"))


def _other_partition(run: Run, other: Run, what: str = "") -> str:
    return (
        f"{run.path} and {other.path} have different partitions of the data{what}; compare runs "
        "of the same partition, or allow it with --different-data"
    )


def _partition(group: Group) -> dict[str, Any]:
    """Return the partition's options, for a partition from a file what it holds."""
    found = {k: v for k, v in group.settings.items() if k.startswith("partition.")}
    if found["partition.name"] == "file":
        return {"partition.name": "file", "manifest": group.runs[0].partition_digest}
    return found


def tell_apart(groups: list[Group]) -> None:
    """Make the labels of groups that have the same one different."""
    taken = {g.label for g in groups}
    for label in [g.label for g in groups]:
        same = [g for g in groups if g.label == label]
        if len(same) < 2:
            continue
        texts = [g.strategy for g in same]
        if len(set(texts)) < len(same):
            keys = _telling(same)
            texts = [_shown(g, keys) for g in same]
        for group, text in zip(same, texts, strict=True):
            named = wanted = f"{label} ({text})"
            number = 1
            while named in taken:  # of another group, or two whose settings read the same
                number += 1
                named = f"{wanted} #{number}"
            group.label = named
            taken.add(named)


def missing_seeds(groups: Sequence[Group]) -> dict[str, list[int]]:
    """Return, for each group that lacks some, the seeds that others have."""
    every = sorted({seed for group in groups for seed in group.seeds})
    lacking = {g.label: [s for s in every if s not in g.seeds] for g in groups}
    return {label: seeds for label, seeds in lacking.items() if seeds}


def differences(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Return the settings that are not the same in all groups: key -> value in each, or None."""
    keys = dict.fromkeys(k for group in groups for k in group.settings if k != "name")
    table = {k: [group.settings.get(k) for group in groups] for k in keys}
    return {k: values for k, values in table.items() if any(v != values[0] for v in values)}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping as one with dotted keys."""
    result: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[f"{prefix}{key}"] = value
    return result


def _settings(run: Run) -> dict[str, Any]:
    return run.config.model_dump(exclude={"seed", "engine", "checkpoint"})


def _data(run: Run) -> dict[str, Any]:
    tree = run.config.model_dump(include={"dataset", "evaluation"})
    return flat({"dataset": tree["dataset"], "evaluation.on": tree["evaluation"].get("on")})


def _telling(same: list[Group]) -> list[str]:
    """Return few settings that together tell all of these groups apart."""
    keys: list[str] = []
    found = [""] * len(same)
    for key, values in differences(same).items():
        longer = [f"{f} {v!r}" for f, v in zip(found, values, strict=True)]
        if len(set(longer)) > len(set(found)):
            keys.append(key)
            found = longer
    return keys


def _shown(group: Group, keys: list[str]) -> str:
    known = [f"{key}={group.settings[key]}" for key in keys if key in group.settings]
    return ", ".join(known) or f"without {', '.join(keys)}"
