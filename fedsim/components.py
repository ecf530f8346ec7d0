"""Building what an experiment names: data set, partition, model, strategy, client method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim import registry, rng
from fedsim.config import Experiment, load_experiment
from fedsim.data.augment import Augmentation
from fedsim.data.dataset import Card, Dataset, Samples
from fedsim.data.local_tests import add_local_tests
from fedsim.data.long_tail import long_tail_rows
from fedsim.data.partition import Assignment, Manifest, build_manifest
from fedsim.data.share import share_rows
from fedsim.errors import InputError
from fedsim.models._nested import call_model


def _build(experiment: Experiment, kind: str) -> tuple[Any, Any]:
    section = getattr(experiment, registry.SECTIONS[kind])
    return (
        registry.resolve(kind, section.name),
        registry.configure(kind, section.name, section.options),
    )


@contextmanager
def _named(section: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Give an error that begins with the name of an option that option's whole key."""
    try:
        yield
    except InputError as error:
        if str(error).split(" ", 1)[0] in options:
            raise InputError(f"{section}.{error}") from error
        raise


def build_dataset(experiment: Experiment) -> Dataset:
    """Return the experiment's data set."""
    function, options = _build(experiment, "datasets")
    with _named("dataset", options):
        dataset = function(**options)
    if not isinstance(dataset, Dataset):
        raise InputError(
            f"dataset.name {experiment.dataset.name!r} must return a fedsim Dataset, got "
            f"{type(dataset).__name__}"
        )
    kind = dataset.card.kind
    if experiment.dataset.augment is not None and kind == "text":
        raise InputError(
            f"dataset.augment must be null for {experiment.dataset.name!r}: it changes images, and "
            "this is a text set"
        )
    return dataset


def training_rows(experiment: Experiment, dataset: Dataset) -> np.ndarray | None:
    """Return the rows of the training split that are divided among clients; None for all.

    First a random `share` of each domain, then a long tail of what that leaves.
    """
    section, split = experiment.dataset, dataset.train
    rows = None
    if section.share < 1:
        generator = rng.numpy_generator(experiment.seed, "share")
        rows = share_rows(len(split), split.extra.get("domain"), section.share, generator)
    if section.imbalance > 1 or section.largest is not None:
        generator = rng.numpy_generator(experiment.seed, "long-tail")
        labels = split.y if rows is None else split.y[rows]
        kept = long_tail_rows(
            labels,
            dataset.num_classes,
            section.imbalance,
            section.profile,
            generator,
            largest=section.largest,
            step_share=section.step_share,
        )
        rows = kept if rows is None else rows[kept]
    return rows


def build_partition(experiment: Experiment, dataset: Dataset) -> Manifest:
    """Return who owns which training sample, and what each client holds out.

    A partition that returns a `Manifest` has decided about held-out samples itself, in rows of the
    training split.
    """
    function, options = _build(experiment, "partitions")
    section = experiment.partition
    generator = rng.numpy_generator(experiment.seed, "partition")
    rows = training_rows(experiment, dataset)
    samples = Samples.of(dataset, rows)
    with _named("partition", options):
        assignment = function(samples, section.clients, generator, **options)
    if not isinstance(assignment, Assignment):
        raise InputError(
            f"partition.name {section.name!r} must return a fedsim Assignment, got "
            f"{type(assignment).__name__}"
        )
    if assignment.num_clients != section.clients:
        raise InputError(
            f"partition.name {section.name!r} made {assignment.num_clients} clients, "
            f"partition.clients is {section.clients}"
        )
    whole = isinstance(assignment, Manifest)
    available = len(dataset.train) if whole else len(samples)
    _check_rows(section.name, assignment.indices, available, dataset.name)
    _check_rows(section.name, assignment.server, available, dataset.name)
    if isinstance(assignment, Manifest):
        _check_rows(section.name, assignment.test_indices, len(dataset.test), dataset.name)
        return assignment
    if rows is not None:
        assignment = assignment.on_rows(rows)
    held_out = 0.0 if isinstance(section.test, str) else section.test
    holdout = rng.numpy_generator(experiment.seed, "holdout")
    manifest = build_manifest(assignment, section.validation, held_out, holdout)
    if not isinstance(section.test, str):
        return manifest
    generator = rng.numpy_generator(experiment.seed, "local-tests")
    return add_local_tests(manifest, dataset, section.test, generator)


def _check_rows(name: str, rows: np.ndarray, available: int, dataset: str) -> None:
    if len(rows) and int(rows.max()) >= available:
        raise InputError(
            f"partition.name {name!r} refers to sample {int(rows.max())}, {dataset} has {available}"
        )


def build_augment(experiment: Experiment) -> Augmentation | None:
    """Return how training images are changed, None if they are not."""
    options = experiment.dataset.augment
    return None if options is None else Augmentation(**options.model_dump())


def group_size(experiment: Experiment, client: Any, module: nn.Module) -> int:
    """Return how many clients are trained at once: one where each changes its images at random."""
    return 1 if experiment.dataset.augment is not None else client.group_size(module)


def build_model(experiment: Experiment, card: Card) -> nn.Module:
    """Return the model with its initial weights, which depend on the experiment's seed alone.

    A function with a third positional argument is given the data set's card there.
    """
    function, options = _build(experiment, "models")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.derive(experiment.seed, "model"))
        with _named("model", options):
            module = call_model(function, card.input_shape, len(card.classes), card, options)
    if not isinstance(module, nn.Module):
        raise InputError(
            f"model.name {experiment.model.name!r} must return a torch Module, got "
            f"{type(module).__name__}"
        )
    return module


def build_client(experiment: Experiment) -> Any:
    """Return the client method, or a foreign Flower `ClientApp`."""
    cls, config = _build(experiment, "clients")
    return registry.instantiate(cls, config, "client")


def build_strategy(experiment: Experiment) -> Any:
    """Return the strategy, ours or any of Flower's."""
    cls, config = _build(experiment, "strategies")
    return registry.instantiate(cls, config, "strategy")


def check_fit(strategy: Any, client: Any, experiment: Experiment) -> None:
    """Raise `InputError` if the client method and the strategy do not speak of the same things."""
    from fedsim.client import Client
    from fedsim.strategy import Strategy

    if not isinstance(strategy, Strategy) or not isinstance(client, Client):
        return
    names = f"strategy {experiment.strategy.name!r} and client {experiment.client.name!r}"
    if unmet := sorted(client.needs - strategy.sends):
        raise InputError(
            f"{names} do not fit: the client needs {unmet} in the payload, the strategy sends "
            f"{sorted(strategy.sends)}"
        )
    if unmet := sorted(strategy.needs - client.sends):
        raise InputError(
            f"{names} do not fit: the strategy needs {unmet} in an update, the client sends "
            f"{sorted(client.sends)}"
        )


def is_client_app(client: Any) -> bool:
    """Whether a client is a genuine Flower `ClientApp` rather than one of our methods."""
    from flwr.clientapp import ClientApp

    return isinstance(client, ClientApp)


def complete(experiment: Experiment, base: Path | None, label: str = "") -> Experiment:
    """Return the experiment with all defaults written out, checked against its components.

    The participation and evaluation of the experiment also reach a Flower strategy that samples
    clients itself, unless its own options say otherwise.
    """
    tree = experiment.model_dump()
    tree["strategy"] = _with_sampling(experiment, tree["strategy"], base)
    return registry.complete(load_experiment(tree), base, label)


def _with_sampling(
    experiment: Experiment, section: Mapping[str, Any], base: Path | None
) -> dict[str, Any]:
    section = dict(section)
    try:
        cls = registry.resolve("strategies", section["name"], base)
    except InputError:
        return section  # said better by registry.complete, along with other problems
    known = registry.options(cls)
    population = experiment.partition.clients
    evaluation = experiment.evaluation
    wanted = population if evaluation.clients == "all" else min(evaluation.clients, population)
    evaluated = wanted if evaluation.personal else 0
    if {"fraction_train", "min_train_nodes"} <= set(known):
        defaults = {
            "fraction_train": _fraction(experiment.cohort_size, population),
            "fraction_evaluate": _fraction(evaluated, population),
            "min_train_nodes": 1,
            "min_evaluate_nodes": 1 if evaluated else 0,
            "min_available_nodes": 1,
        }
        section = {**{k: v for k, v in defaults.items() if k in known}, **section}
    for option, value in section.items():
        if isinstance(value, Mapping) and "name" in value:
            section[option] = _with_sampling(experiment, value, base)
    return section


def _fraction(count: int, population: int) -> float:
    """Return a fraction that Flower's ``int(population * fraction)`` turns into `count`."""
    return count / population if count in (0, population) else (count + 0.5) / population
