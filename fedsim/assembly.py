"""Building all parts of a run before anything is written, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedsim import rng
from fedsim.components import build_augment, check_fit, group_size, is_client_app
from fedsim.config import Experiment
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Manifest
from fedsim.data.views import View
from fedsim.engine.device import driver_device
from fedsim.engine.foreign import own_strategies
from fedsim.errors import InputError
from fedsim.evaluate import SHOTS, shot_groups
from fedsim.params import FlatModel
from fedsim.strategy import ServerContext, sample_cohort


@dataclass
class Parts:
    """What an experiment is made of, built and checked before anything is written."""

    experiment: Experiment
    dataset: Dataset
    manifest: Manifest
    strategy: Any
    client: Any
    model: FlatModel


def evaluation_clients(experiment: Experiment) -> list[int]:
    """Return the clients evaluated on their own data: the same ones in every evaluation."""
    population, wanted = experiment.partition.clients, experiment.evaluation.clients
    if wanted == "all":
        return list(range(population))
    return sample_cohort(rng.derive(experiment.seed, "evaluation"), 0, population, wanted)


def build_parts(
    experiment: Experiment, build: Callable[[Experiment], tuple[Dataset, Manifest]]
) -> Parts:
    """Build everything in the driver once, so that what can not work fails before any work.

    Raises:
        InputError: components that do not fit each other.
    """
    from fedsim.components import build_client, build_model, build_strategy

    dataset, manifest = build(experiment)
    strategy, client = build_strategy(experiment), build_client(experiment)
    check_fit(strategy, client, experiment)
    # A server with samples trains where clients do.
    device = driver_device(experiment.engine.gpus) if len(manifest.server) else "cpu"
    try:
        model = FlatModel(build_model(experiment, dataset.card), device)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"model {experiment.model.name!r} can not be built for inputs of shape "
            f"{dataset.card.input_shape}: {type(error).__name__}: {error}"
        ) from error
    if not is_client_app(client):
        group_size(experiment, client, model.module)  # refuses `vectorise` where it can not be
    parts = Parts(experiment, dataset, manifest, strategy, client, model)
    if experiment.evaluation.on != "test" and not manifest.num_validation.any():
        raise InputError(
            f"evaluation.on is {experiment.evaluation.on!r}, but no client has validation samples; "
            f"set partition.validation above 0, got {experiment.partition.validation}"
        )
    if experiment.evaluation.features and "head.weight" not in model.layout.names:
        raise InputError(
            f"evaluation.features must be false for model {experiment.model.name!r}: it has no "
            "linear layer named 'head'"
        )
    if experiment.evaluation.across_domains:
        if "domain" not in dataset.test.extra:
            raise InputError(
                f"evaluation.across_domains must be false for {dataset.name}: it has no domains"
            )
        if experiment.evaluation.on == "validation":
            raise InputError(
                "evaluation.across_domains must be false where evaluation.on is 'validation': it "
                "reads test samples"
            )
    for own in own_strategies(strategy):
        own.check(model.params(), server_context(parts))
    return parts


def server_context(parts: Parts) -> ServerContext:
    """Return what a strategy may know of the experiment."""
    experiment, dataset, owned = parts.experiment, parts.dataset, parts.manifest.server
    server = None
    if len(owned):
        place = parts.model.flat.device
        server = View(dataset.train, owned, dataset.card, place, augment=build_augment(experiment))
    return ServerContext(
        seed=experiment.seed,
        rounds=experiment.rounds,
        num_clients=experiment.partition.clients,
        cohort_size=experiment.cohort_size,
        num_classes=dataset.num_classes,
        model=parts.model,
        dataset=dataset,
        server=server,
        public=len(owned) > 0 and len(parts.manifest.public_rows) == len(owned),
        modalities=parts.manifest.modality,
    )


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
