"""The base class of scorers, which turn a model and samples into metrics.

A model carries a `scorer`; one without is a classifier. Workers make a `Tally` of some samples
each, the tallies are added, and the sum has the metrics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

import numpy as np
from torch import nn

from fedsim.errors import InputError, nearest
from fedsim.evaluate.metric_names import Metric, Unit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedsim.data.dataset import Dataset
    from fedsim.data.views import View
    from fedsim.evaluate.feature_statistics import Moments


T = TypeVar("T")


class Tally(Protocol):
    """Sums over scored samples; picklable, and added up in the order of the samples."""

    @property
    def moments(self) -> Moments | None:
        """Of the features, where they were asked for."""

    def __add__(self: T, other: T) -> T: ...

    def metrics(self) -> dict[str, float]:
        """Return the metrics by name.

        Raises:
            ValueError: there were no samples.
        """

    def balanced(self) -> float | None:
        """Return the headline metric with all classes counted alike; None if there is none."""

    def by_shots(self, groups: Sequence[np.ndarray]) -> dict[str, float]:
        """Return metrics on the classes of each group (`shot_groups`); empty if there are none."""


class Scorer:
    """Base class: scores a module on views of data.

    Class attributes:
        headline: the metric, higher is better, that progress, tables and comparisons show.
        units: the units of its metrics; those without one have what `Metric.unit` says.
        further: the units of metrics that are recorded only where ``evaluation.metrics`` names
            them; a scorer that has some adds the `chosen` ones to what its tallies say.
    """

    headline: ClassVar[str] = "accuracy"
    units: ClassVar[Mapping[str, Unit]] = {}
    further: ClassVar[Mapping[str, Unit]] = {}
    chosen: tuple[str, ...] = ()

    def choosing(self, names: Sequence[str]) -> Scorer:
        """Return a scorer that has these further metrics as well.

        Raises:
            InputError: it has no such metric.
        """
        kind = type(self).__name__
        for name in names:
            if name not in self.further:
                allowed = ", ".join(self.further) or "none"
                raise InputError(
                    f"evaluation.metrics must name further metrics of {kind}, which are {allowed}, "
                    f"got {name!r}.{nearest(name, self.further)}"
                )
        scorer = copy(self)
        scorer.chosen = tuple(names)
        return scorer

    def tally(
        self,
        module: nn.Module,
        view: View,
        num_classes: int,
        batch_size: int = 512,
        *,
        features: bool = False,
    ) -> Tally:
        """Score the samples of a view, which may be empty.

        The module is scored in evaluation mode and left in the mode it was in. With `features`
        also the moments of the inputs of the module's `head`, where that makes sense.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define tally")

    def units_to_record(self) -> dict[str, tuple[str, bool]]:
        """Return kind and direction of the units that the words of a metric do not tell.

        A run records them, as its reader has no scorer.
        """
        return {
            name: (unit.kind, unit.higher_is_better)
            for name, unit in [*self.units.items(), *self.further.items()]
            if unit != Metric(name).unit()
        }

    def picture(self, module: nn.Module, dataset: Dataset) -> Figure | None:
        """Return a picture of what the module does with test samples, or None.

        Drawn once, of the final model, into the run's folder ``pictures``.
        """
        return None
