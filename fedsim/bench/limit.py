"""Hand-written federated averaging without a framework, the reference of `fedsim bench`.

Two processes of one thread each share the weights and their sums through shared memory and take
clients from a list, the largest first. The kernels are the fastest known for each workload:
resident flat parameters, channels-last convolutions, no optimiser object, and several clients in
one batched matrix product (the perceptron) or one grouped convolution (small batches of small
networks). `eager` is the plain textbook loop instead.

The loop trains on the same partition, cohorts and batch orders as fedsim, so that the weights can
be compared. It records, checks and saves nothing.
"""

from __future__ import annotations

import multiprocessing as mp
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim import rng
from fedsim.components.build import build_dataset, build_model, build_partition
from fedsim.config.experiment import Experiment
from fedsim.engine.process import keep_memory
from fedsim.params import FlatModel

GROUP = 17
"""Clients in one batched product; 100 clients on two processes make three even groups each."""

CONVOLUTION_BYTES = 3 * 2**20
"""Largest activation of the clients in one grouped convolution (10 images each: 8 clients)."""


@dataclass(frozen=True)
class Job:
    """One round for one process."""

    round: int
    clients: list[int]  # the whole cohort, largest first


class Limit:
    """A hand-written loop over an experiment's clients; `close` ends its processes."""

    def __init__(self, experiment: Experiment, workers: int = 2, eager: bool = False) -> None:
        dataset = build_dataset(experiment)
        model = FlatModel(build_model(experiment, dataset.card))
        self.weights = model.params().flat.numpy()
        self._sizes = np.diff(build_partition(experiment, dataset).pointers)
        length = self.weights.size
        self._shared = SharedMemory(create=True, size=4 * length + 8 * length * workers)
        self._start = np.ndarray((length,), np.float32, self._shared.buf)
        self._sums = np.ndarray((workers, length), np.float64, self._shared.buf, 4 * length)
        context = mp.get_context("spawn")
        self._next = context.Value("i", 0)
        self._pipes: list[Connection] = []
        self.processes = []
        for i in range(workers):
            ours, theirs = context.Pipe()
            arguments = (experiment, self._shared.name, i, workers, self._next, theirs, eager)
            process = context.Process(target=_work, args=arguments, daemon=True)
            process.start()
            self._pipes.append(ours)
            self.processes.append(process)
        for pipe in self._pipes:
            pipe.recv()

    def round(self, round: int, cohort: list[int]) -> float:
        """Train one cohort, replace `weights` by their mean and return the seconds it took."""
        started = time.perf_counter()
        ordered = sorted(cohort, key=lambda c: -self._sizes[c])
        self._start[:] = self.weights
        self._next.value = 0
        for pipe in self._pipes:
            pipe.send(Job(round, ordered))
        total = sum(pipe.recv() for pipe in self._pipes)
        self.weights = (self._sums.sum(axis=0) / total).astype(np.float32)
        return time.perf_counter() - started

    def close(self) -> None:
        """End the processes and free the shared memory."""
        for pipe in self._pipes:
            pipe.send(None)
        for process in self.processes:
            process.join(timeout=10)
            if process.is_alive():
                process.kill()
        del self._start, self._sums
        self._shared.close()
        self._shared.unlink()


def _work(
    experiment: Experiment,
    name: str,
    index: int,
    workers: int,
    counter: Any,
    pipe: Connection,
    eager: bool,
) -> None:
    torch.set_num_threads(1)
    keep_memory()
    dataset = build_dataset(experiment)
    manifest = build_partition(experiment, dataset)
    card = dataset.card
    images = torch.from_numpy(np.array(dataset.train.x)).float().div_(255)
    images = images.sub_(card.mean[0]).div_(card.std[0])  # (n, H, W, 1), prepared once
    labels = torch.from_numpy(np.array(dataset.train.y))
    module = build_model(experiment, card)
    options = experiment.client.options
    kernel: _Convolutional | _Batched | _Grouped
    size = CONVOLUTION_BYTES // (options["batch_size"] * getattr(module, "sample_bytes", 2**30))
    if experiment.model.name == "cnn" and size > 1 and not eager:
        kernel = _Grouped(module, options, images.permute(0, 3, 1, 2), labels)
    elif experiment.model.name == "mlp" and not eager:
        kernel = _Batched(module, options, images.flatten(1), labels)
        size = GROUP
    else:
        kernel = _Convolutional(module, options, images.permute(0, 3, 1, 2), labels, eager)
        size = 1
    shared = SharedMemory(name=name)
    length = kernel.length
    start = torch.from_numpy(np.ndarray((length,), np.float32, shared.buf))
    sums = np.ndarray((workers, length), np.float64, shared.buf, 4 * length)
    total = torch.from_numpy(sums[index])
    pipe.send("ready")
    while (job := pipe.recv()) is not None:
        total.zero_()
        weight = 0
        while True:
            with counter.get_lock():
                first = counter.value
                counter.value = first + size
            group = job.clients[first : first + size]
            if not group:
                break
            rows = []
            for client in group:
                train = torch.from_numpy(manifest.client(client).train).long()
                generator = rng.torch_generator(experiment.seed, "client", job.round, client)
                rows.append(train[torch.randperm(len(train), generator=generator)])
            kernel.train(start, rows, total)
            weight += sum(len(r) for r in rows)
        pipe.send(weight)
    del start, sums, total
    shared.close()


class _Convolutional:
    """One client after the other on a resident model."""

    def __init__(
        self, module: nn.Module, options: dict[str, Any], x: Tensor, y: Tensor, eager: bool
    ) -> None:
        self.module, self.x, self.y = module, x, y
        self.lr, self.batch = options["lr"], options["batch_size"]
        self.eager = eager
        self.flat = FlatModel(module)
        self.length = self.flat.layout.size
        if eager:  # the textbook keeps its tensors in torch's default order
            # Not contiguous(): strides of one channel fit both orders, and torch would take theirs.
            self.x = x.clone(memory_format=torch.contiguous_format)
            for parameter in module.parameters():
                parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)

    def train(self, start: Tensor, rows: list[Tensor], total: Tensor) -> None:
        for order in rows:
            if self.eager:
                for name, view in self.flat.layout.views(start).items():
                    self.module.get_parameter(name).data.copy_(view)
            else:
                self.flat.flat.copy_(start)
            x, y = self.x[order], self.y[order]
            parameters = self.flat.parameters
            for images, labels in zip(x.split(self.batch), y.split(self.batch), strict=True):
                loss = F.cross_entropy(self.module(images), labels)
                if self.eager:
                    self.module.zero_grad()
                    loss.backward()
                    with torch.no_grad():
                        for parameter in parameters:
                            if parameter.grad is not None:
                                parameter.sub_(self.lr * parameter.grad)
                else:
                    grads = torch.autograd.grad(loss, parameters)
                    with torch.no_grad():
                        torch._foreach_add_(list(parameters), grads, alpha=-self.lr)
            with torch.no_grad():
                if self.eager:
                    for name, view in self.flat.layout.views(self.flat.flat).items():
                        view.copy_(self.module.get_parameter(name))
                total.add_(self.flat.flat, alpha=float(len(order)))


class _Batched:
    """Equally large clients of a one-hidden-layer perceptron, many in one product."""

    def __init__(self, module: nn.Module, options: dict[str, Any], x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.lr, self.batch = options["lr"], options["batch_size"]
        first, _, second, _ = (p for p in module.parameters())
        self.hidden, self.inputs = first.shape
        self.outputs = second.shape[0]
        self.length = sum(p.numel() for p in module.parameters())

    def _split(self, flat: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        h, i, o = self.hidden, self.inputs, self.outputs
        cuts = flat.split([h * i, h, o * h, o], dim=-1)
        return (
            cuts[0].unflatten(-1, (h, i)),
            cuts[1].unsqueeze(-2),
            cuts[2].unflatten(-1, (o, h)),
            cuts[3].unsqueeze(-2),
        )

    @torch.no_grad()
    def train(self, start: Tensor, rows: list[Tensor], total: Tensor) -> None:
        flat = start.expand(len(rows), -1)
        samples = len(rows[0])
        index = torch.stack(rows)
        for first in range(0, samples, self.batch):
            batch = index[:, first : first + self.batch]
            x, y = self.x[batch], self.y[batch]
            w1, b1, w2, b2 = self._split(flat)
            z = torch.baddbmm(b1, x, w1.mT).relu_()
            p = F.softmax(torch.baddbmm(b2, z, w2.mT), dim=2)
            p.scatter_add_(2, y.unsqueeze(2), p.new_full((), -1.0).expand(*y.shape, 1))
            p /= y.shape[1]
            gradient = torch.empty(len(rows), self.length)
            g1, h1, g2, h2 = self._split(gradient)
            torch.bmm(p.mT, z, out=g2)
            torch.sum(p, 1, keepdim=True, out=h2)
            d = torch.bmm(p, w2).masked_fill_(z <= 0, 0.0)
            torch.bmm(d.mT, x, out=g1)
            torch.sum(d, 1, keepdim=True, out=h1)
            flat = gradient.mul_(-self.lr).add_(flat)
        total.add_(flat.sum(0), alpha=float(samples))


class _Grouped:
    """Clients of any size, each a group of the same grouped convolutions."""

    def __init__(self, module: nn.Module, options: dict[str, Any], x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.lr, self.batch = options["lr"], options["batch_size"]
        self.length = sum(p.numel() for p in module.parameters())
        self.gradients: Any = module.batched_gradients

    @torch.no_grad()
    def train(self, start: Tensor, rows: list[Tensor], total: Tensor) -> None:
        """Train clients sorted largest first, so that the unfinished ones are the first rows."""
        flat = start.repeat(len(rows), 1)
        sizes = torch.tensor([len(r) for r in rows])
        index = torch.stack([F.pad(r, (0, len(rows[0]) - len(r))) for r in rows])
        for first in range(0, len(rows[0]), self.batch):
            left = (sizes[sizes > first] - first).clamp_(max=self.batch).unsqueeze(1)
            batch = index[: len(left), first : first + self.batch]
            share = (torch.arange(batch.shape[1]) < left) / left
            _, gradient = self.gradients(flat[: len(left)], self.x[batch], self.y[batch], share)
            flat[: len(left)].add_(gradient, alpha=-self.lr)
        total.add_((flat * sizes.unsqueeze(1)).sum(0))
