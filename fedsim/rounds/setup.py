"""Set-up of a run: components are built and checked before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from fedsim.client import Heterogeneous
from fedsim.components.build import (
    build_augment,
    build_client,
    build_model,
    build_strategy,
    check_fit,
    group_size,
)
from fedsim.config.experiment import Experiment
from fedsim.data.dataset import Dataset
from fedsim.data.partition import Manifest
from fedsim.data.views import View
from fedsim.engine.jobs import Executor
from fedsim.engine.process import driver_device
from fedsim.engine.schedule import Scheduler
from fedsim.engine.screening import RoundScreen
from fedsim.errors import InputError
from fedsim.flower.contracts import is_client_app, is_strategy_class
from fedsim.params import FlatModel, Params
from fedsim.runs.client_states import StateStore
from fedsim.strategy import Pooled, ServerContext, Strategy


@dataclass
class Parts:
    """What an experiment is made of, built and checked before anything is written."""

    experiment: Experiment
    dataset: Dataset
    manifest: Manifest
    strategy: Any
    client: Any
    model: FlatModel


def build_parts(
    experiment: Experiment, build: Callable[[Experiment], tuple[Dataset, Manifest]]
) -> Parts:
    """Build everything in the driver once, so that what cannot work fails before any work.

    Raises:
        InputError: components that do not fit each other.
    """
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
            f"model {experiment.model.name!r} cannot be built for inputs of shape "
            f"{dataset.card.input_shape}: {type(error).__name__}: {error}"
        ) from error
    if not is_client_app(client):
        group_size(experiment, client, model.module)  # refuses `vectorise` where it is impossible
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


def own_strategies(strategy: Any) -> Iterator[Strategy]:
    """Yield the strategies of ours in a strategy: itself, or those that a wrapper holds."""
    if isinstance(strategy, Strategy):
        yield strategy
    elif is_strategy_class(type(strategy)):
        for value in vars(strategy).values():
            yield from own_strategies(value)


def server_context(parts: Parts) -> ServerContext:
    """Return the read-only context that a strategy is called with."""
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


def make_scheduler(
    parts: Parts, initial: Params, executor: Executor, states: StateStore
) -> Scheduler:
    """Return the scheduler of an experiment's clients."""
    experiment, client = parts.experiment, parts.client
    app = is_client_app(client)
    return Scheduler(
        executor,
        parts.manifest,
        states,
        RoundScreen(experiment.screening, uniform=not isinstance(client, Heterogeneous)),
        initial.flat.numel(),
        group_size=1 if app else group_size(experiment, client, parts.model.module),
        pooled=isinstance(parts.strategy, Pooled),
    )
