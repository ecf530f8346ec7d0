"""What ``fedsim show`` prints: a component with its options, or a run and where it stands."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from fedsim.config import show
from fedsim.errors import InputError, nearest
from fedsim.options import REQUIRED, config_class, options, type_name
from fedsim.registry import SECTIONS, resolve


def show_component(section: str, name: str) -> str:
    """Return the description of ``strategy``, ``fedavg`` and its options: type, default, meaning.

    Raises:
        InputError: unknown kind or name.
    """
    kinds = {v: k for k, v in SECTIONS.items()}
    if section not in kinds:
        raise InputError(
            f"a component is shown as KIND:NAME with KIND one of {', '.join(kinds)}, got "
            f"{section!r}.{nearest(section, kinds)}"
        )
    obj = resolve(kinds[section], name, key=section)
    lines = [f"{section} {name}", "", _description(obj), ""]
    found = options(obj)
    if not found:
        return "\n".join([*lines, "no options"])
    comments = _comments(obj)
    rows = [
        (
            option,
            type_name(annotation),
            "required" if default is REQUIRED else show(default),
            comments.get(option, ""),
        )
        for option, (annotation, default) in found.items()
    ]
    table = [("option", "type", "default", ""), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    lines += [
        "  ".join(
            [*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in table
    ]
    return "\n".join(lines)


def _description(obj: Any) -> str:
    module = inspect.getmodule(obj)
    texts = [inspect.getdoc(module) if module else None]
    # A class without a docstring inherits its parent's, which describes another component.
    own = vars(obj).get("__doc__") if isinstance(obj, type) else getattr(obj, "__doc__", None)
    texts.append(inspect.cleandoc(own) if own else None)
    return "\n\n".join(t for t in texts if t) or "(no description)"


def _comments(obj: Any) -> dict[str, str]:
    """Return option -> the comment on its line in the ``Config`` dataclass or its parents."""
    config = config_class(obj)
    comments: dict[str, str] = {}
    for owner in reversed(config.__mro__[:-1] if config else ()):
        try:
            source = inspect.getsource(owner)
        except (OSError, TypeError):
            continue
        for match in re.finditer(r"^\s+(\w+)\s*:[^#\n]*#\s*(.+)$", source, re.MULTILINE):
            comments[match[1]] = match[2].strip()
    return comments


def show_run(folder: Path) -> str:
    """Return a run's configuration, where it stands, and its table of results so far.

    Raises:
        InputError: the folder is not a run.
    """
    from fedsim.config import to_yaml
    from fedsim.progress import format_table
    from fedsim.runs.results import load_run

    run = load_run(folder)
    stands = f"{run.status}, {run.rounds_done} of {run.config.rounds} rounds"
    if run.status != "finished":
        stands += f"; go on with: fedsim resume {folder}"
    return f"{to_yaml(run.config)}\n{stands}\n\n{format_table(run.summary())}"
