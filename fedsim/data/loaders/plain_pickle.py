"""Safe reading of pickles of numpy arrays and plain Python values: no code in them is run."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

# Where numpy arrays and their pieces are looked up by pickles of any numpy and Python version.
_CORE = ("numpy.core.multiarray", "numpy._core.multiarray")
_ALLOWED: dict[tuple[str, str], tuple[str, str]] = {
    **{(module, name): (_CORE[1], name) for module in _CORE for name in ("_reconstruct", "scalar")},
    ("numpy", "ndarray"): ("numpy", "ndarray"),
    ("numpy", "dtype"): ("numpy", "dtype"),
    ("_codecs", "encode"): ("_codecs", "encode"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which arrays do not need")
        return super().find_class(*_ALLOWED[module, name])


def loads(data: bytes) -> Any:
    """Return the value of a pickle; strings of Python 2 come as bytes.

    Only numpy arrays, numbers, strings, bytes, lists, tuples, dicts and None can be created, so
    that files of unknown origin are safe to read.

    Raises:
        pickle.UnpicklingError: a damaged pickle, or one that asks for any other class or function.
    """
    try:
        value = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except pickle.UnpicklingError:
        raise
    except Exception as error:  # a damaged pickle may call the allowed functions wrongly
        raise pickle.UnpicklingError(f"{type(error).__name__}: {error}") from error
    if isinstance(value, np.ndarray) and value.dtype.hasobject:
        raise pickle.UnpicklingError("it holds an array of Python objects")
    return value
