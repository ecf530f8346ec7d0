"""Serialisation of values to one file and back, bit for bit, without pickle.

A value is split into named tensors and a JSON skeleton (`fedsim.runs.encoding`). Both go into one
safetensors file, whose metadata hold the skeleton, the version of this format and a SHA-256 of
every byte.
"""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import numpy as np
import torch

from fedsim.errors import RunFailed
from fedsim.runs.encoding import CODES, decode, encode

__all__ = ["VERSION", "Damaged", "check_seal", "decode", "encode", "from_bytes", "to_bytes"]

VERSION = 1
"""Version of the file format; newer files are refused."""

_DTYPES = {code: dtype for dtype, code in CODES.items()}
_SEAL = b'"sha256":"'
_BLANK = b"0" * 64


class Damaged(ValueError):
    """The bytes differ from those written: torn, truncated or changed."""


def to_bytes(value: Any, name: str = "state") -> bytes:
    """Serialise `value` to the bytes of a sealed safetensors file.

    Raises:
        TypeError: see `encode`.
    """
    tensors, skeleton = encode(value, name)
    header: dict[str, Any] = {
        "__metadata__": {
            "format": "fedsim",
            "version": str(VERSION),
            "sha256": _BLANK.decode(),
            "skeleton": json.dumps(skeleton, separators=(",", ":"), allow_nan=False),
        }
    }
    buffers: list[memoryview] = []
    offset = 0
    for key, tensor in tensors.items():
        end = offset + tensor.numel() * tensor.element_size()
        header[key] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        if end > offset:
            buffers.append(tensor.reshape(-1).view(torch.uint8).numpy().data)
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = bytearray(struct.pack("<Q", len(text)) + text)
    digest = hashlib.sha256(head)
    for buffer in buffers:
        digest.update(buffer)
    start = head.index(_SEAL) + len(_SEAL)
    head[start : start + 64] = digest.hexdigest().encode()
    return b"".join([head, *buffers])


def from_bytes(data: bytes, *, verify: bool = True) -> Any:
    """Return the value that `to_bytes` serialised.

    `verify=False` skips the checksum, for bytes that never left memory.

    Raises:
        Damaged: the bytes differ from those written.
        RunFailed: they were written by a newer fedsim, or see `decode`.
    """
    header = _read_header(data)
    if verify:
        check_seal(data)
    start = 8 + struct.unpack_from("<Q", data)[0]
    tensors = {}
    for key, entry in header.items():
        if key == "__metadata__":
            continue
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        if end > begin:
            # A copy into torch's own memory: aligned, so that kernels behave as before saving.
            source = np.frombuffer(data, np.uint8, end - begin, start + begin)
            tensor.view(-1).view(torch.uint8).numpy()[:] = source
        tensors[key] = tensor
    return decode(tensors, json.loads(header["__metadata__"]["skeleton"]))


def _read_header(data: bytes) -> dict[str, Any]:
    """Return the safetensors header after checking format and version.

    Raises:
        Damaged: it cannot be read.
        RunFailed: it was written by a newer fedsim.
    """
    try:
        length = struct.unpack_from("<Q", data)[0]
        if length > len(data) - 8:
            raise Damaged("it is truncated")
        header = json.loads(bytes(data[8 : 8 + length]))
        metadata = header["__metadata__"]
        version = int(metadata["version"])
        known = metadata["format"] == "fedsim"
    except Damaged:
        raise
    except (struct.error, ValueError, KeyError, TypeError):
        raise Damaged("its header cannot be read") from None
    if not known:
        raise Damaged("it was not written by fedsim")
    if version > VERSION:
        # A flipped bit in the version must not be taken for a newer program.
        check_seal(data)
        raise RunFailed(
            f"written by a newer fedsim (file format {version}, this one reads up to {VERSION})"
        )
    return header


def check_seal(data: bytes) -> None:
    """Raise `Damaged` unless every byte is as written by `to_bytes`."""
    position = data.find(_SEAL, 0, len(data))
    if position < 0:
        raise Damaged("its checksum is missing")
    start = position + len(_SEAL)
    view = memoryview(data)
    digest = hashlib.sha256(view[:start])
    digest.update(_BLANK)
    digest.update(view[start + 64 :])
    if digest.hexdigest().encode() != bytes(view[start : start + 64]):
        raise Damaged("its checksum does not match")
