"""Environment of a run: versions, machine, source revision."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("fedsim", "torch", "flwr", "ray", "numpy", "safetensors", "scikit-learn")
_SOURCE = Path(__file__).resolve().parents[1]


def describe() -> dict[str, Any]:
    """Return a JSON-able description of this machine, its packages and fedsim's source."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "torch_threads": torch.get_num_threads(),
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        if torch.cuda.is_available()
        else [],
        "git": git_revision(_SOURCE),
    }


def cpu_model() -> str:
    """Return the processor's name."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def git_revision(folder: Path) -> dict[str, Any] | None:
    """Return ``{"revision": sha or None, "dirty": bool}`` of the checkout around `folder`.

    None if git does not track the folder, such as a package installed inside another repository.
    The revision is None before the first commit.
    """
    if not _git(folder, "ls-files", "--", "."):
        return None
    status = _git(folder, "status", "--porcelain=v2", "--branch")
    if status is None:
        return None
    revision, dirty = None, False
    for line in status.splitlines():
        if line.startswith("# branch.oid "):
            name = line.split()[2]
            revision = None if name == "(initial)" else name
        elif not line.startswith("#"):
            dirty = True
    return {"revision": revision, "dirty": dirty}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            # Otherwise `git status` locks the index to refresh it.
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
