"""Files of MNIST, SVHN, USPS, MNIST-M and Synthetic Digits, with a few images each."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path
from typing import Any

import h5py  # type: ignore[import-untyped]
import numpy as np
from PIL import Image
from scipy.io import savemat


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def flat(n: int, size: int, channels: int | None, first: int) -> np.ndarray:
    """n images; image i is full of the value first + i."""
    shape = (n, size, size) if channels is None else (n, size, size, channels)
    return np.broadcast_to(
        (np.arange(n, dtype=np.uint8) + np.uint8(first)).reshape(-1, *[1] * (len(shape) - 1)), shape
    ).copy()


def mnist(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, data in {
        "train-images-idx3-ubyte": flat(3, 28, None, 10),
        "train-labels-idx1-ubyte": np.array([7, 0, 9]),
        "t10k-images-idx3-ubyte": flat(1, 28, None, 90),
        "t10k-labels-idx1-ubyte": np.array([4]),
    }.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(idx(data)))
    return folder


def mat(path: Path, images: np.ndarray, labels: list[int], **options: Any) -> None:
    """As SVHN: X (32, 32, 3, n), y (n, 1)."""
    savemat(
        path,
        {"X": images.transpose(1, 2, 3, 0), "y": np.array(labels, np.uint8)[:, None]},
        **options,
    )


def svhn(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    train = flat(2, 32, 3, 20)
    train[0, 3, 5] = [200, 100, 50]
    mat(folder / "train_32x32.mat", train, [10, 1], do_compression=True)
    mat(folder / "test_32x32.mat", flat(2, 32, 3, 80), [9, 10])
    return folder


def usps(folder: Path, value: float = 0.5, label: int = 3) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    with h5py.File(folder / "usps.h5", "w") as file:
        x = np.zeros((2, 256), np.float32)
        x[0, 17] = 1
        x[1] = value
        file.create_dataset("train/data", data=x)
        file.create_dataset("train/target", data=np.array([label, 6]))
        file.create_dataset("test/data", data=x[:1])
        file.create_dataset("test/target", data=np.array([5]))
    return folder


def mnist_m(folder: Path) -> Path:
    for part, labels in (("train", [8, 2]), ("test", [1])):
        images = folder / f"mnist_m_{part}"
        images.mkdir(parents=True)
        lines = []
        for i, label in enumerate(labels):
            Image.new("RGB", (32, 32), (i, 50, 60)).save(images / f"{i:08}.png")
            lines.append(f"{i:08}.png {label}\n")
        (folder / f"mnist_m_{part}_labels.txt").write_text("".join(lines))
    return folder


def synth(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    mat(folder / "synth_train_32x32.mat", flat(1, 32, 3, 30), [0])
    mat(folder / "synth_test_32x32.mat", flat(1, 32, 3, 31), [6])
    return folder
