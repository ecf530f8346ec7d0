"""Load the final model of a run from its folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from fedsim.config.experiment import Experiment
from fedsim.errors import InputError
from fedsim.params import protocol, tensors_digest
from fedsim.params.filters import under

FILE = "model.safetensors"
FROZEN = "frozen"
"""Key of the file's metadata: the digest of the frozen tensors, which the file leaves out."""

Digest = Callable[[], str | None]


def read_arrays(folder: Path) -> dict[str, Tensor]:
    """Read the final global model's tensors by state-dict name.

    Raises:
        InputError: the run has left no model, or the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        raise InputError(f"run {folder} has left no {FILE}")
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def load_into(module: nn.Module, folder: Path, experiment: Experiment, frozen: Digest) -> None:
    """Load a run's final global model into a module that was built for it (in place).

    `frozen` returns the digest of the frozen tensors for files without it, or None if unknown.

    Raises:
        InputError: as `read_arrays`; the server has only part of a model; or the frozen part has
            changed since.
    """
    arrays = read_arrays(folder)
    is_frozen = under(protocol.frozen(module))
    expected = {name for name in module.state_dict() if not is_frozen(name)}
    if missing := sorted(expected - set(arrays)):
        raise InputError(
            f"run {folder} has no whole global model: {experiment.strategy.name} leaves "
            f"{', '.join(missing[:4])}{', ...' if len(missing) > 4 else ''} with the clients; "
            "arrays() returns what the server has"
        )
    tensors = chain(module.named_parameters(), module.named_buffers())
    frozen_tensors = {name: tensor for name, tensor in tensors if is_frozen(name)}
    digests = (None, tensors_digest(frozen_tensors))
    if frozen_tensors and _recorded(folder, frozen) not in digests:
        sources = " and ".join(weight_sources(experiment.model.options, "model")) or "its seed"
        raise InputError(
            f"run {folder} had other weights in the frozen part of its model than {sources} "
            "gives now"
        )
    module.load_state_dict(arrays, strict=False)  # what is frozen is there already


def _recorded(folder: Path, otherwise: Digest) -> str | None:
    with safetensors.safe_open(folder / FILE, "pt") as file:
        metadata = file.metadata() or {}
    if FROZEN in metadata:
        return str(metadata[FROZEN])
    return otherwise()


def weight_sources(options: Mapping[str, Any], at: str) -> Iterator[str]:
    """Yield the options of a model, and of models in it, that name a source of weights."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            yield from weight_sources(value, f"{at}.{key}")
        elif key in ("weights", "towers") and value is not None:
            yield f"{at}.{key} = {value!r}"
