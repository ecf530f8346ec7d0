"""The numbers of a comparison, as text, figures and pages show them."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from fedsim.evaluate.metric_names import Unit
from fedsim.report.groups import Group


@dataclass
class Tables:
    """Groups of runs and a table for each metric.

    `tables` map a metric to a frame with a row a group: run, strategy, seeds, mean, low, high
    (95 % interval), difference, difference_low, difference_high, pairs, p, p_holm (against
    `reference`; NaN in its own row). Those of clients' metrics also have worst_10 (mean of the
    clients' worst tenth) and spread (standard deviation over clients, with n), both of the rounds
    that `choice` names and means over seeds; those of the metric with a target rounds_to_target,
    bytes_to_target (up and down, all clients), seconds_to_target (of the run's machine) and
    virtual_seconds_to_target (as if the clients of a round ran all at once), means over the seeds
    that reached it, and reached, their number. `values` hold each run's number: metric, run, seed,
    value. `remarks` say what a reader must know of the choice and the target.
    """

    groups: list[Group]
    reference: str
    choice: str
    tables: dict[str, pd.DataFrame]
    values: pd.DataFrame
    missing: dict[str, list[int]]
    left_out: list[str] = field(default_factory=list)
    target: float | None = None
    remarks: list[str] = field(default_factory=list)

    def unit(self, name: str) -> Unit:
        """Return the unit of a metric."""
        return self.groups[0].runs[0].unit(name)
