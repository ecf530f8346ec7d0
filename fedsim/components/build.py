"""Build the components of an experiment: data set, partition, model, strategy, client method."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedsim import rng
from fedsim.components import configure, lookup, trained
from fedsim.config.experiment import Experiment
from fedsim.config.reading import load_experiment
from fedsim.data.augment import Augmentation
from fedsim.data.dataset import Card, Dataset, Samples
from fedsim.data.local_tests import add_local_tests
from fedsim.data.nested import check_assignment
from fedsim.data.partition import Manifest, build_manifest
from fedsim.data.subsets import long_tail_rows, share_rows
from fedsim.errors import InputError
from fedsim.evaluate.scoring import scorer_of
from fedsim.models.blocks.nested import Trained, TrainedModel, call_model


def _build(experiment: Experiment, kind: str) -> tuple[Any, Any]:
    section = getattr(experiment, lookup.SECTIONS[kind])
    return (
        lookup.resolve(kind, section.name),
        configure.configure(kind, section.name, section.options),
    )


@contextmanager
def _named(section: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Prefix the section to an error that begins with the name of an option."""
    try:
        yield
    except InputError as error:
        if str(error).split(" ", 1)[0] in options:
            raise InputError(f"{section}.{error}") from error
        raise


def _check_type(value: Any, expected: type, words: str, name: str) -> None:
    if not isinstance(value, expected):
        raise InputError(f"{name} must return a {words}, got {type(value).__name__}")


def build_dataset(experiment: Experiment) -> Dataset:
    """Load the experiment's data set."""
    function, options = _build(experiment, "datasets")
    with _named("dataset", options):
        dataset = function(**options)
    _check_type(dataset, Dataset, "fedsim Dataset", f"dataset.name {experiment.dataset.name!r}")
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
    """Divide the training samples among clients, and each client's among its splits.

    A partition that returns a `Manifest` has chosen the held-out samples itself, as rows of the
    training split.
    """
    function, options = _build(experiment, "partitions")
    section = experiment.partition
    generator = rng.numpy_generator(experiment.seed, "partition")
    rows = training_rows(experiment, dataset)
    samples = Samples.of(dataset, rows)
    with _named("partition", options):
        assignment = function(samples, section.clients, generator, **options)
    whole = isinstance(assignment, Manifest)
    available = len(dataset.train) if whole else len(samples)
    check_assignment(assignment, f"partition.name {section.name!r}", section.clients, available)
    if isinstance(assignment, Manifest):
        highest = int(assignment.test_indices.max(initial=-1))
        if highest >= len(dataset.test):
            raise InputError(
                f"partition.name {section.name!r} must refer to the {len(dataset.test)} test "
                f"samples of {dataset.name}, got {highest}"
            )
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


def build_augment(experiment: Experiment) -> Augmentation | None:
    """Return the augmentation of training images, None if there is none."""
    options = experiment.dataset.augment
    return None if options is None else Augmentation(**options.model_dump())


def group_size(experiment: Experiment, client: Any, module: nn.Module) -> int:
    """Return how many clients are trained at once: one where images are augmented."""
    return 1 if experiment.dataset.augment is not None else client.group_size(module)


def build_model(experiment: Experiment, card: Card) -> nn.Module:
    """Build the model with its initial weights, which depend on the experiment's seed alone.

    A function with a third positional parameter gets the data set's card there.
    """
    function, options = _build(experiment, "models")
    options = {
        name: replace(value, load=trained_model) if isinstance(value, TrainedModel) else value
        for name, value in options.items()
    }
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.derive(experiment.seed, "model"))
        with _named("model", options):
            module: nn.Module = call_model(
                function, card.input_shape, len(card.classes), card, options
            )
    _check_type(module, nn.Module, "torch Module", f"model.name {experiment.model.name!r}")
    if metrics := experiment.evaluation.metrics:
        scorer = scorer_of(module)
        if not hasattr(scorer, "choosing"):
            raise InputError(
                f"evaluation.metrics must be [] for model {experiment.model.name!r}: its scorer "
                f"{type(scorer).__name__} is no fedsim.evaluate.Scorer"
            )
        module.scorer = scorer.choosing(metrics)  # type: ignore[assignment]
    return module


def initial_model(experiment: Experiment) -> nn.Module:
    """Build the experiment's model with its initial weights; loads its data set."""
    return build_model(experiment, build_dataset(experiment).card)


def trained_model(folder: str | Path, frozen: trained.Digest = lambda: None) -> Trained:
    """Load the final global model of a run, in evaluation mode, with its data set's card.

    `frozen` returns the digest of the frozen tensors for files without it, or None if unknown.

    Raises:
        InputError: the folder is not a run; as `trained.load_into`.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise InputError(f"there is no run folder {folder}.")
    experiment = load_experiment(folder / "config.yaml")
    card = build_dataset(experiment).card
    module = build_model(experiment, card)
    trained.load_into(module, folder, experiment, frozen)
    return Trained(module.eval(), experiment.model.name, experiment.dataset.name, card)


def build_client(experiment: Experiment) -> Any:
    """Make the client method, or a Flower `ClientApp`."""
    cls, config = _build(experiment, "clients")
    return configure.instantiate(cls, config, "client")


def build_strategy(experiment: Experiment) -> Any:
    """Make the strategy, ours or any of Flower's."""
    cls, config = _build(experiment, "strategies")
    return configure.instantiate(cls, config, "strategy")


def check_fit(strategy: Any, client: Any, experiment: Experiment) -> None:
    """Raise `InputError` unless strategy and client method send each other what they need."""
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
