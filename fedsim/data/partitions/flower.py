"""Any partitioner of Flower Datasets, or one written for it (extra ``flower``)."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

from fedsim.config.references import load_reference
from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment
from fedsim.data.partitions._dealing import check_sizes
from fedsim.errors import InputError, check, nearest


def flower(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    partitioner: str,
    options: dict[str, Any] | None = None,
) -> Assignment:
    """The division that a Flower Datasets partitioner makes, for example DirichletPartitioner.

    `partitioner` is a class of ``flwr_datasets.partitioner`` or ``package.module:Name``; `options`
    are its arguments. Unless given, ``num_partitions`` is the number of clients, ``partition_by``
    is ``label`` and ``seed`` is drawn from `rng`. Its samples come in random order and have the
    columns ``label``, ``row`` and, where the data set has them, ``domain`` and ``owner``.

    Raises:
        InputError: the package is missing; an unknown partitioner; whatever it refuses; a sample
            given twice; a number of partitions that is not the number of clients.
    """
    check_sizes(samples, clients, 1)
    columns = {"row": rng.permutation(len(samples))}
    for name in ("label", "domain", "owner"):
        column = getattr(samples, f"{name}s")
        if column is not None:
            columns[name] = column[columns["row"]]
    cls = _load(partitioner)
    arguments = dict(options or {})
    defaults = {
        "num_partitions": clients,
        "partition_by": "label",
        "seed": int(rng.integers(1 << 31)),
    }
    known = inspect.signature(cls).parameters
    for name in arguments:
        check(name in known, f"partition.options must be among {', '.join(known)}", name)
    arguments = {k: v for k, v in defaults.items() if k in known} | arguments
    try:
        made = cls(**arguments)
        made.dataset = _hub_dataset(columns)
        found = made.num_partitions
        check(
            found == clients,
            f"partition.clients must be {found}, what {partitioner} makes",
            clients,
        )
        parts = [_rows(made.load_partition(i)) for i in range(clients)]
    except InputError:
        raise
    except Exception as error:  # whatever a foreign class raises
        raise InputError(
            f"partition.partitioner {partitioner!r} failed with partition.options "
            f"{options or {}}: {type(error).__name__}: {error}"
        ) from error
    indices = np.concatenate(parts)
    if len(np.unique(indices)) < len(indices):
        raise InputError(f"partition.partitioner {partitioner!r} gives a sample out twice")
    pointers = np.cumsum([0, *map(len, parts)], dtype=np.int64)
    return Assignment(indices.astype(np.int32), pointers)


def _rows(part: Any) -> np.ndarray:
    if "row" not in part.column_names:
        raise InputError(
            "partition.partitioner must divide samples, not columns as vertical partitioners do"
        )
    return np.asarray(part.with_format("numpy")["row"])


def _load(name: str) -> Any:
    try:
        built_in = importlib.import_module("flwr_datasets.partitioner")
    except ImportError as error:
        raise InputError(
            "partition.name 'flower' needs the package flwr-datasets: pip install 'fedsim[flower]'"
        ) from error
    if ":" in name:
        cls = load_reference(name, key="partition.partitioner")
    elif name in built_in.__all__:
        cls = getattr(built_in, name)
    else:
        raise InputError(
            f"partition.partitioner must be one of {', '.join(built_in.__all__)} or "
            f"'package.module:Name', got {name!r}.{nearest(name, built_in.__all__)}"
        )
    is_one = isinstance(cls, type) and issubclass(cls, built_in.Partitioner)
    check(is_one, "partition.partitioner must be a Partitioner of Flower Datasets", name)
    return cls


def _hub_dataset(columns: dict[str, np.ndarray]) -> Any:
    return importlib.import_module("datasets").Dataset.from_dict(columns)
