"""Load objects by reference: ``pkg.mod:Name`` and ``./file.py:Name``.

Every failure becomes one sentence that names the file and line at fault.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from fedsim.errors import InputError, describe, nearest


def is_file_reference(name: str) -> bool:
    """Whether `name` refers to a Python file: ``<path>.py:<name>``."""
    return name.rpartition(":")[0].endswith(".py")


def load_reference(name: str, base: Path | None = None, key: str = "name") -> Any:
    """Return the object that ``pkg.mod:Name`` or ``<path>.py:Name`` refers to.

    Raises:
        InputError: the module, file or attribute is missing or broken.
    """
    where, _, attribute = name.rpartition(":")
    if not where or not attribute:
        raise InputError(f"{key} must be 'package.module:Name' or './file.py:Name', got {name!r}")
    if is_file_reference(name):
        module = load_file(find_file(name, base, key), key)
    else:
        module = _import(where, name, key)
    try:
        return functools.reduce(getattr, attribute.split("."), module)
    except AttributeError:
        public = [n for n in vars(module) if not n.startswith("_")]
        raise InputError(
            f"{key} is {name!r}, but {where} has no {attribute!r}.{nearest(attribute, public)}"
        ) from None


def absolute_reference(name: str, base: Path | None = None, key: str = "name") -> str:
    """Return `name` with the path of a file reference made absolute; other names unchanged."""
    if not is_file_reference(name):
        return name
    return f"{find_file(name, base, key)}:{name.rpartition(':')[2]}"


def find_file(name: str, base: Path | None, key: str) -> Path:
    """Return the resolved path of a file reference: in `base`, else in the working folder."""
    path = Path(name.rpartition(":")[0]).expanduser()
    folders = [Path.cwd()] if base is None else [base, Path.cwd()]
    tried = list(dict.fromkeys((folder / path).resolve() for folder in folders))
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise InputError(f"{key} is {name!r}, but there is no file {' or '.join(map(str, tried))}")


def load_file(path: Path, key: str = "name") -> ModuleType:
    """Import a Python file under a module name derived from its resolved path.

    The module is kept in ``sys.modules``, where dataclasses and pickle look classes up, and is
    run again only when the file's content has changed.
    """
    path = path.resolve()
    tag = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    module_name = f"fedsim_file_{path.stem}_{tag}"
    content = hashlib.sha256(path.read_bytes()).hexdigest()
    before = sys.modules.get(module_name)
    if before is not None and getattr(before, "__content__", None) == content:
        return before
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{key}: {path} cannot be loaded as a Python file")
    module = importlib.util.module_from_spec(spec)
    vars(module)["__content__"] = content
    sys.modules[module_name] = module
    try:
        # Compiled here, as cached bytecode is matched by the file's time and size: an edit within
        # the same second that keeps the size would be missed.
        exec(compile(path.read_bytes(), str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        sys.modules.pop(module_name)
        if before is not None:
            sys.modules[module_name] = before
        raise InputError(f"{key}: {describe(error, path)}") from error
    return module


def _import(module: str, name: str, key: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise InputError(
                f"{key} is {name!r}, but there is no module {error.name!r} on the Python path "
                f"(a file is given as './{error.name.replace('.', '/')}.py:...')"
            ) from None
        raise InputError(f"{key} is {name!r}: {describe(error)}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{key} is {name!r}: {describe(error)}") from error
