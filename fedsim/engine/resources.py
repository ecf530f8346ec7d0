"""Resources of a worker that are the same for every client: data set, client method, model."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch

from fedsim import rng
from fedsim.client import ClientContext
from fedsim.components.build import build_augment, build_client, build_dataset, build_model
from fedsim.data.views import ClientData, View
from fedsim.engine.frozen_features import make_stem
from fedsim.engine.isolation import capture_module_state
from fedsim.engine.jobs import Block, ClientJob, WorkerSpec
from fedsim.params import FlatModel


class Resources:
    """What a worker keeps between blocks."""

    def __init__(self, spec: WorkerSpec, device: str) -> None:
        self.experiment = spec.experiment
        self.device = torch.device(device)
        self.dataset = build_dataset(spec.experiment)
        self.client: Any = build_client(spec.experiment)
        card = self.dataset.card
        self.model = FlatModel(build_model(spec.experiment, card), self.device)
        self.initial = self.model.params()
        self.features = make_stem(self.model, self.dataset.train, card)
        self.restore_model = capture_module_state(self.model)
        self._augment = build_augment(spec.experiment)
        self._test_features = make_stem(self.model, self.dataset.test, card)
        self._public_rows = spec.public

    def data(self, job: ClientJob) -> ClientData:
        """Return the client's own views of the data set.

        Where models are evaluated on validation samples, these take the place of the test samples,
        so that nothing can read those.
        """
        indices = job.indices
        if self.experiment.evaluation.on == "validation":
            indices = indices._replace(test=indices.validation, on_test_split=False)
        return ClientData(
            self.dataset.train,
            indices,
            self.dataset.card,
            self.device,
            test_split=self.dataset.test,
            augment=self._augment,
            features=self.features,
            test_features=self._test_features,
        )

    def test_view(self, rows: Any) -> View:
        """Return rows of the test split."""
        card = self.dataset.card
        return View(self.dataset.test, rows, card, self.device, features=self._test_features)

    def train_view(self, rows: Any) -> View:
        """Return rows of the training split, as they are stored."""
        card = self.dataset.card
        return View(self.dataset.train, rows, card, self.device, features=self.features)

    def context(self, block: Block, client: int) -> ClientContext:
        """Return the read-only context that a client method is called with."""
        return ClientContext(
            client_id=client,
            round=block.round,
            seed=self.experiment.seed,
            num_clients=self.experiment.partition.clients,
            num_classes=self.dataset.num_classes,
            model=self.model,
            initial=self.initial,
            device=self.device,
            public=self._public,
        )

    @cached_property
    def _public(self) -> View | None:
        """The samples that the server and all clients know, in the order of the partition."""
        if len(self._public_rows) == 0:
            return None
        return View(self.dataset.train, self._public_rows, self.dataset.card, self.device)

    def seed_globals(self, block: Block, client: int) -> None:
        """Seed torch's global generators for this client and round."""
        address = rng.derive(self.experiment.seed, f"global/{block.kind}", block.round, client)
        rng.seed_generators(self.device, address)
