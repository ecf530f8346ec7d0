"""Scoring after a round: which models, on which samples, with which metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from fedsim import rng
from fedsim.config.experiment import Experiment
from fedsim.engine.schedule import Scheduler
from fedsim.evaluate.classification import shot_groups
from fedsim.evaluate.metric_names import SHOTS, named_scores, on_validation, shifted
from fedsim.evaluate.scorer import Tally
from fedsim.evaluate.scoring import scorer_of
from fedsim.params import FlatModel, Params
from fedsim.rounds.setup import Parts
from fedsim.strategy import sample_cohort

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Scoring:
    """Scores models on the global test set, on validation samples, or on both."""

    def __init__(self, parts: Parts, scheduler: Scheduler) -> None:
        self._parts = parts
        self._scheduler = scheduler
        self._settings = parts.experiment.evaluation
        self._layout = parts.model.layout
        self.scorer = scorer_of(parts.model.module)
        self._class_sizes = class_sizes(parts)
        self._shots = shots(parts, self._class_sizes)
        self._shifted = shifted_domains(parts)
        self._rows = scored_rows(parts)

    def is_due(self, round: int) -> bool:
        """Whether models are scored after this round."""
        return round % self._settings.every == 0 or round == self._parts.experiment.rounds

    def score(
        self, models: Mapping[str, Params], round: int
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Return the scores of models by name, and what is known of the first one's features."""
        scores: dict[str, float] = {}
        features: dict[str, float] = {}
        for name, params in self._whole(models).items():
            tally = self._scheduler.score(params, self._rows, round)
            values = self._values(tally) | tally.by_shots(self._shots)
            if self._settings.on == "validation":
                values |= self._balanced(tally)
            scores |= named_scores(name, values)
            if self._settings.on == "both":
                held_out = self._scheduler.score(params, validation_rows(self._parts), round)
                values = self._values(held_out) | self._balanced(held_out)
                scores |= on_validation(named_scores(name, values))
            if tally.moments is not None:
                features = self._features(name, params, tally, features)
        return scores, features

    def pictures(self, models: Mapping[str, Params]) -> Iterator[tuple[str, Figure]]:
        """Yield name and picture of each model whose scorer draws one."""
        model = FlatModel(self._parts.model.module)  # drawn on the CPU
        for name, params in self._whole(models).items():
            model.load(params)
            figure = self.scorer.picture(model.module, self._parts.dataset)
            if figure is not None:
                yield name, figure

    def _whole(self, models: Mapping[str, Params]) -> dict[str, Params]:
        return {name: p for name, p in models.items() if p.layout == self._layout}

    def _values(self, tally: Tally) -> dict[str, float]:
        values = tally.metrics()
        return values | shifted(values, self._shifted)

    def _balanced(self, tally: Tally) -> dict[str, float]:
        value = tally.balanced()
        return {} if value is None else {f"{self.scorer.headline}_balanced": value}

    def _features(
        self, name: str, params: Params, tally: Tally, features: dict[str, float]
    ) -> dict[str, float]:
        """Return what is known of the features of the first model and of each classifier."""
        if not features and tally.moments is not None:
            features = tally.moments.metrics()
            sizes = enumerate(self._class_sizes.tolist())
            features |= {f"samples/{c}": float(size) for c, size in sizes}
        norms = torch.linalg.vector_norm(params["head.weight"], dim=1).tolist()
        return features | {f"{name}/head_norm/{c}": norm for c, norm in enumerate(norms)}


def evaluation_clients(experiment: Experiment) -> list[int]:
    """Return the clients evaluated on their own data: the same ones in every evaluation."""
    population, count = experiment.partition.clients, experiment.evaluation.clients
    if count == "all":
        return list(range(population))
    return sample_cohort(rng.derive(experiment.seed, "evaluation"), 0, population, count)


def class_sizes(parts: Parts) -> np.ndarray:
    """Return the training samples of each class over all clients, int64 (C,)."""
    labels = parts.dataset.train.y[parts.manifest.indices]
    return np.bincount(labels[labels >= 0], minlength=parts.dataset.num_classes)


def scored_rows(parts: Parts) -> int | np.ndarray:
    """Return how many rows of the test split, or which of the training split, models are scored on.

    The latter are all clients' validation samples, client by client.
    """
    if parts.experiment.evaluation.split == "test":
        return len(parts.dataset.test)
    return validation_rows(parts)


def validation_rows(parts: Parts) -> np.ndarray:
    """Return all clients' validation samples, client by client."""
    clients = range(parts.manifest.num_clients)
    return np.concatenate([parts.manifest.client(c).validation for c in clients])


def shifted_domains(parts: Parts) -> list[str]:
    """Return the domains of which the server has no sample; none where it has none of any."""
    column, owned = parts.dataset.train.extra.get("domain"), parts.manifest.server
    if column is None or len(owned) == 0:
        return []
    known = set(np.unique(column[owned]).tolist())
    return [name for d, name in enumerate(parts.dataset.card.domains) if d not in known]


def shots(parts: Parts, sizes: np.ndarray) -> list[np.ndarray]:
    """Return the classes with many, medium and few samples; none where that is not asked for."""
    rule = parts.experiment.evaluation.shots
    if rule == "auto":
        rule = "cumulative" if parts.experiment.dataset.imbalance > 1 else None
    if rule is None:
        return [np.empty(0, np.int64)] * len(SHOTS)
    return shot_groups(sizes, rule)
