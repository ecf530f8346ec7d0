"""Assignments of samples to clients, and manifests with held-out samples.

A partition of any number of clients is a few flat arrays: client i owns
``indices[pointers[i]:pointers[i + 1]]``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from fedsim.errors import InputError, check

_DTYPES: dict[str, np.dtype[Any]] = {
    "indices": np.dtype("<i4"),
    "pointers": np.dtype("<i8"),
    "server": np.dtype("<i4"),
    "public": np.dtype("u1"),
    "labelled": np.dtype("u1"),
    "modality": np.dtype("u1"),
    "num_validation": np.dtype("<i4"),
    "num_test": np.dtype("<i4"),
    "test_indices": np.dtype("<i4"),
    "test_pointers": np.dtype("<i8"),
}


_ROLES = ("server", "public", "labelled", "modality")


def _none() -> np.ndarray:
    return np.empty(0, np.int32)


def pointers_of(sizes: np.ndarray) -> np.ndarray:
    """Return the pointers int64 (N+1,) that cut pieces of these sizes (N,)."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])


class ClientIndices(NamedTuple):
    """One client's samples, int32 (k,) views into the manifest, and its role.

    `train` and `validation` are rows of the training split; `test` too, or rows of the test split
    where `on_test_split` says so. `labelled` and `modality` are those of `Assignment`.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    on_test_split: bool = False
    labelled: bool = True
    modality: int = 0


Modality = Literal["all", "image", "text"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)
"""Modalities of a client: the parts of image-text pairs that it holds, by number."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """Samples of clients 0..N-1: `indices` int32 (total,) cut by `pointers` int64 (N+1,).

    `server` int32 (m,) are the samples of the server itself: a public set, or the only labelled
    ones. `public` uint8 (m,) says which of them the clients know too, 1 or 0. `labelled` and
    `modality` uint8 (N,) say whether a client sees the labels of its samples, 1 or 0, and which of
    `MODALITIES` it holds. Empty arrays (the default) stand for 0, 1 and 0 everywhere.

    Raises:
        InputError: arrays that are not such a cut, or negative indices.
    """

    indices: np.ndarray
    pointers: np.ndarray
    server: np.ndarray = field(default_factory=_none, kw_only=True)
    public: np.ndarray = field(default_factory=_none, kw_only=True)
    labelled: np.ndarray = field(default_factory=_none, kw_only=True)
    modality: np.ndarray = field(default_factory=_none, kw_only=True)

    def __post_init__(self) -> None:
        self._set_integers("indices", "pointers", *_ROLES)
        pointers = self.pointers
        check(len(pointers) >= 2, "a partition must have at least 1 client", len(pointers) - 1)
        check(pointers[0] == 0, "pointers must start at 0", int(pointers[0]))
        end, number = int(pointers[-1]), len(self.indices)
        check(end == number, f"pointers must end at the number of indices, {number}", end)
        check(bool((self.sizes >= 0).all()), "pointers must not fall", int(self.sizes.min()))
        if len(self.indices):
            lowest = int(self.indices.min())
            check(lowest >= 0, "indices must be >= 0", lowest)
        if len(self.server):
            check(self.server.min() >= 0, "server must be >= 0", int(self.server.min()))
        last = len(MODALITIES) - 1
        for name, highest, length in (
            ("public", 1, len(self.server)),
            ("labelled", 1, self.num_clients),
            ("modality", last, self.num_clients),
        ):
            values = getattr(self, name)
            fits = len(values) in (0, length)
            check(fits, f"{name} must have {length} values or none", len(values))
            if len(values):
                check(values.max() <= highest, f"{name} must be <= {highest}", int(values.max()))

    def _set_integers(self, *names: str) -> None:
        """Convert the named arrays to the dtypes of the class, refusing any but integer arrays."""
        for name in names:
            array = np.asarray(getattr(self, name))
            is_integer = array.ndim == 1 and array.dtype.kind in "iu"
            check(is_integer, f"{name} must be a 1-d integer array", (array.dtype.str, array.ndim))
            fits = not len(array) or array.max() <= np.iinfo(_DTYPES[name]).max
            check(fits, f"{name} must fit {_DTYPES[name].name}", array.max() if not fits else None)
            object.__setattr__(self, name, np.ascontiguousarray(array, _DTYPES[name]))

    @property
    def num_clients(self) -> int:
        return len(self.pointers) - 1

    @cached_property
    def sizes(self) -> np.ndarray:
        """Samples of each client, int64 (N,)."""
        return np.diff(self.pointers)

    @property
    def public_rows(self) -> np.ndarray:
        """The samples that the server and all clients know, int32 (p,)."""
        return self.server[self.public == 1] if len(self.public) else self.server[:0]

    @cached_property
    def owners(self) -> np.ndarray:
        """The client of each of `indices`, int64 (total,)."""
        return np.repeat(np.arange(self.num_clients), self.sizes)

    def on_rows(self, rows: np.ndarray) -> Assignment:
        """Return the assignment with sample i replaced by ``rows[i]``."""
        return replace(self, indices=rows[self.indices], server=rows[self.server])


@dataclass(frozen=True, eq=False)
class Manifest(Assignment):
    """An assignment whose client slices are ordered train, validation, test.

    `num_validation` and `num_test` are int32 (N,); every client has training samples. With
    `test_pointers` int64 (N+1,) a client's test samples are not of its slice but those that they
    cut out of `test_indices` int32, rows of the data set's test split; clients may share them.
    `num_test` is 0 then.

    Raises:
        InputError: arrays that break this.
    """

    num_validation: np.ndarray
    num_test: np.ndarray
    test_indices: np.ndarray = field(default_factory=_none, kw_only=True)
    test_pointers: np.ndarray = field(default_factory=_none, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set_integers("num_validation", "num_test", "test_indices", "test_pointers")
        for name in ("num_validation", "num_test"):
            counts = getattr(self, name)
            fits = len(counts) == self.num_clients
            check(fits, f"{name} must have {self.num_clients} values", len(counts))
            check(bool((counts >= 0).all()), f"{name} must be >= 0", int(counts.min()))
        lowest = int(self.num_train.min())
        check(lowest >= 1, "every client must keep at least 1 training sample", lowest)
        if self.on_test_split:
            cut = Assignment(self.test_indices, self.test_pointers)
            fits = cut.num_clients == self.num_clients
            check(fits, f"test_pointers must cut {self.num_clients} pieces", cut.num_clients)
            held_out = int(self.num_test.max())
            check(held_out == 0, "num_test must be 0 beside test_pointers", held_out)
        elif len(self.test_indices):
            check(False, "test_indices need test_pointers", len(self.test_indices))

    @property
    def on_test_split(self) -> bool:
        """Whether the clients' test samples are rows of the data set's test split."""
        return len(self.test_pointers) > 0

    @cached_property
    def num_train(self) -> np.ndarray:
        """Training samples of each client, int64 (N,)."""
        return self.sizes - self.num_validation - self.num_test

    def client(self, i: int) -> ClientIndices:
        """Return the samples of client `i` as views.

        Raises:
            IndexError: `i` is not in 0..N-1.
        """
        return self.clients([i])[0]

    def clients(self, ids: Sequence[int]) -> list[ClientIndices]:
        """Return the samples of the clients `ids`, in that order, as views.

        Raises:
            IndexError: an id is not in 0..N-1.
        """
        which = np.asarray(ids, np.int64)
        bad = which[(which < 0) | (which >= self.num_clients)]
        if len(bad):
            raise IndexError(f"client must be in 0..{self.num_clients - 1}, got {bad[0]}")
        # Numbers are taken out of arrays at once: one by one they take longer than the slices.
        stops = self.pointers[which + 1]
        tests = stops - self.num_test[which]
        validations = tests - self.num_validation[which]
        held_out, on_test_split = self.indices, self.on_test_split
        first, last = tests, stops
        if on_test_split:
            held_out = self.test_indices
            first, last = self.test_pointers[which], self.test_pointers[which + 1]
        ones = np.ones(len(which), bool)
        labelled = self.labelled[which] == 1 if len(self.labelled) else ones
        modality = self.modality[which] if len(self.modality) else 0 * which
        starts = self.pointers[which]
        arrays = (starts, validations, tests, first, last, labelled, modality)
        indices = self.indices
        return [
            ClientIndices(
                indices[start:validation],
                indices[validation:test],
                held_out[low:high],
                on_test_split,
                has_labels,
                kind,
            )
            for start, validation, test, low, high, has_labels, kind in zip(
                *(array.tolist() for array in arrays), strict=True
            )
        ]

    def pooled(self) -> Manifest:
        """Return the manifest of one client that trains on all clients' training samples.

        It has no held-out samples; each sample occurs once, in the order of the data set.
        """
        position = np.arange(len(self.indices)) - np.repeat(self.pointers[:-1], self.sizes)
        rows = np.unique(self.indices[position < np.repeat(self.num_train, self.sizes)])
        none = np.zeros(1, np.int32)
        labelled = self.labelled[:0] if self.labelled.all() else none
        return Manifest(rows, np.array([0, len(rows)]), none, none, labelled=labelled)

    def digest(self) -> str:
        """Return the sha256 (hex) of the arrays; equal exactly for equal manifests."""
        digest = hashlib.sha256(b"fedsim manifest 3")
        for name in _DTYPES:
            array = getattr(self, name)
            digest.update(f"/{name}/{len(array)}/".encode())
            digest.update(array.data)
        return digest.hexdigest()

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an uncompressed npz, atomically: `path` holds the old file or the whole new one."""
        path = Path(path)
        descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                np.savez(file, **{name: getattr(self, name) for name in _DTYPES})
                file.flush()
                os.fsync(file.fileno())
            os.chmod(aside, 0o644)  # mkstemp's 0600 would hide the run from other users
            os.replace(aside, path)
        except BaseException:
            os.unlink(aside)
            raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read the file that `save` wrote.

        Raises:
            InputError: no such file, or not a whole manifest.
        """
        try:
            # Opened here, as np.load leaves a damaged npz open.
            with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
                arrays = {name: file[name] for name in _DTYPES}
            return cls(**arrays)
        except FileNotFoundError as error:
            raise InputError(f"there is no partition manifest {os.fspath(path)}") from error
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, TypeError) as error:
            # numpy takes any other file for a pickle, and recommends loading it as one.
            why = "" if "pickle" in str(error) else f": {error}"
            raise InputError(f"{os.fspath(path)} is not a whole partition manifest{why}") from error


def build_manifest(
    assignment: Assignment, validation: float, test: float, rng: np.random.Generator
) -> Manifest:
    """Shuffle every client's samples and hold out the last ones.

    Of n samples the last round(`test` * n) are test samples and those before them
    round(`validation` * n) validation samples, halves rounded up. A holdout that leaves nothing
    to train on is cut until one sample stays: first the test samples, then the validation
    samples. Without holdout the order is kept and nothing is drawn from `rng`.

    Raises:
        InputError: a fraction outside [0, 1), fractions that sum to 1 or more, empty clients.
    """
    for name, fraction in (("validation", validation), ("test", test)):
        check(0 <= fraction < 1, f"partition.{name} must be in [0, 1)", fraction)
    total = validation + test
    check(total < 1, "partition.validation + partition.test must be < 1", total)
    sizes = assignment.sizes
    empty = np.flatnonzero(sizes == 0)
    if len(empty):
        named = ", ".join(map(str, empty[:5])) + (", ..." if len(empty) > 5 else "")
        raise InputError(
            f"every client must have at least 1 sample, but {len(empty)} of "
            f"{assignment.num_clients} have none (clients {named}); use fewer partition.clients "
            "or a partition.min_size of at least 1"
        )
    num_test, num_validation = _rounded(test, sizes), _rounded(validation, sizes)
    excess = np.maximum(num_test + num_validation - (sizes - 1), 0)
    from_test = np.minimum(num_test, excess)
    num_test -= from_test
    num_validation -= excess - from_test
    indices = assignment.indices
    if validation > 0 or test > 0:
        indices = indices[_shuffle_within(sizes, rng)]
    roles = {name: getattr(assignment, name) for name in _ROLES}
    held_out = num_validation.astype(np.int32), num_test.astype(np.int32)
    return Manifest(indices, assignment.pointers, *held_out, **roles)


def _rounded(fraction: float, sizes: np.ndarray) -> np.ndarray:
    # A product meant to be a half may lie just below it in floating point: 0.145 * 100.
    return np.floor(fraction * sizes + (0.5 + 1e-9)).astype(np.int64)


def _shuffle_within(sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the permutation (total,) that shuffles each client's slice and keeps it in place.

    One sort of keys with the client in the upper and 32 random bits in the lower half. The sort
    is stable, as the order of equal keys would otherwise depend on the processor.
    """
    keys = np.repeat(np.arange(len(sizes), dtype=np.uint64) << np.uint64(32), sizes)
    keys |= rng.integers(0, 1 << 32, size=len(keys), dtype=np.uint32)
    return np.argsort(keys, kind="stable")
