"""What is scored after a round, and on which samples."""

from __future__ import annotations

import numpy as np

from fedsim import rng
from fedsim.config.experiment import Experiment
from fedsim.evaluate.classification import shot_groups
from fedsim.evaluate.metric_names import SHOTS
from fedsim.rounds.setup import Parts
from fedsim.strategy import sample_cohort


def evaluation_clients(experiment: Experiment) -> list[int]:
    """Return the clients evaluated on their own data: the same ones in every evaluation."""
    population, wanted = experiment.partition.clients, experiment.evaluation.clients
    if wanted == "all":
        return list(range(population))
    return sample_cohort(rng.derive(experiment.seed, "evaluation"), 0, population, wanted)


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
