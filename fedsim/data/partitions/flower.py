"""Any partitioner of Flower Datasets, or one written for it (extra ``flower``)."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import numpy as np

from fedsim.config.references import load_reference
from fedsim.data.dataset import Samples
from fedsim.data.partition import Assignment, pointers_of
from fedsim.data.partitions._dealing import check_sizes
from fedsim.data.sources import refusing
from fedsim.errors import InputError, check, nearest


def flower(
    samples: Samples,
    clients: int,
    rng: np.random.Generator,
    *,
    partitioner: str,
    options: dict[str, Any] | None = None,
) -> Assignment:
    """The division by a Flower Datasets partitioner, for example DirichletPartitioner.

    `partitioner` is a class of ``flwr_datasets.partitioner`` or ``package.module:Name``; `options`
    are its arguments. By default ``num_partitions`` is the number of clients, ``partition_by`` is
    ``label`` and ``seed`` is drawn from `rng`. It sees the samples in random order, with columns
    ``label``, ``row`` and, where the data set has them, ``domain`` and ``owner``.

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
    seed = int(rng.integers(1 << 31))
    defaults = {"num_partitions": clients, "partition_by": "label", "seed": seed}
    known = inspect.signature(cls).parameters
    for name in arguments:
        check(name in known, f"partition.options must be among {', '.join(known)}", name)
    arguments = {k: v for k, v in defaults.items() if k in known} | arguments
    try:
        instance = cls(**arguments)
        instance.dataset = _hub_dataset(columns)
        number = instance.num_partitions
        requirement = f"partition.clients must be {number}, what {partitioner} makes"
        check(number == clients, requirement, clients)
        rows = [_rows(instance.load_partition(i)) for i in range(clients)]
    except InputError:
        raise
    except Exception as error:  # whatever a foreign class raises
        raise InputError(
            f"partition.partitioner {partitioner!r} failed with partition.options "
            f"{options or {}}: {type(error).__name__}: {error}"
        ) from error
    indices = np.concatenate(rows)
    if len(np.unique(indices)) < len(indices):
        raise InputError(f"partition.partitioner {partitioner!r} gives a sample out twice")
    return Assignment(indices.astype(np.int32), pointers_of(np.array([*map(len, rows)])))


def _rows(partition: Any) -> np.ndarray:
    if "row" not in partition.column_names:
        raise InputError(
            "partition.partitioner must divide samples, not columns as vertical partitioners do"
        )
    return np.asarray(partition.with_format("numpy")["row"])


def _load(name: str) -> Any:
    package = "the package flwr-datasets: pip install 'fedsim[flower]'"
    with refusing(f"partition.name 'flower' needs {package}", ImportError):
        built_in = importlib.import_module("flwr_datasets.partitioner")
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
