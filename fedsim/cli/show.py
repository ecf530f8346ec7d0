"""Output of ``fedsim show``: a component and its options, or a run and its status."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsim.components.lookup import SECTIONS, resolve
from fedsim.components.option_types import type_name
from fedsim.components.options import REQUIRED, config_class, options
from fedsim.config.experiment import Experiment, Section
from fedsim.config.yaml import show
from fedsim.data.dataset import Card
from fedsim.errors import InputError, nearest


def show_component(section: str, name: str) -> str:
    """Describe a component, such as the ``strategy`` ``fedavg``, and its options.

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
    if section == "dataset":
        lines += _data(obj)
    return "\n".join([*lines, *_options(obj), *_common(section)])


def _options(obj: Any) -> list[str]:
    declared = options(obj)
    if not declared:
        return ["no options"]
    comments = _comments(obj)
    rows = [
        (
            option,
            type_name(annotation),
            "required" if default is REQUIRED else show(default),
            comments.get(option, ""),
        )
        for option, (annotation, default) in declared.items()
    ]
    table = [("option", "type", "default", ""), *rows]
    widths = [max(len(row[i]) for row in table) for i in range(3)]
    return [
        "  ".join(
            [*(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=False)), row[3]]
        ).rstrip()
        for row in table
    ]


def _common(section: str) -> list[str]:
    """List the keys that every component of this section takes."""
    model = Experiment.model_fields[section].annotation
    if not isinstance(model, type) or not issubclass(model, Section):
        return []
    fields = {k: f for k, f in model.model_fields.items() if k != "name"}
    if not fields:
        return []
    width = max(map(len, fields))
    rows = [f"{key:<{width}}  {field.description}" for key, field in fields.items()]
    return ["", f"keys of every {section}", *rows]


def _data(function: Any) -> list[str]:
    """Describe a data set: the sets that a loader knows, else the one that it loads."""
    module = inspect.getmodule(function)
    sets: Mapping[str, Card] = getattr(module, "SETS", {})
    lines = []
    for name, card in sets.items():
        lines += [f"set {name}", *_card(card), ""]
    if sets:
        return lines
    try:
        dataset = function()
    except (InputError, TypeError) as error:
        if isinstance(error, TypeError):  # it has options without a default
            return []
        cards = [v for v in vars(module).values() if isinstance(v, Card)]
        # The length and vocabulary of texts follow from the files.
        shown = [row for card in cards for row in _card(card) if not row.startswith("input")]
        return [*shown, f"not loaded here: {error}", ""]
    splits = {
        "training": dataset.train,
        "validation": dataset.validation,
        "test": dataset.test,
    }
    counts = ", ".join(f"{len(s):,} {n}" for n, s in splits.items() if s is not None)
    columns = ", ".join(dataset.train.extra) or "none"
    return [*_card(dataset.card), f"samples      {counts}", f"columns      {columns}", ""]


def _card(card: Card) -> list[str]:
    shown = card.classes[:12]
    rest = len(card.classes) - len(shown)
    classes = f"{len(card.classes)}: {', '.join(shown)}" + (f" and {rest} more" if rest else "")
    rows = {
        "title": card.title,
        "kind": card.kind,
        "source": card.source,
        "licence": card.licence,
        "classes": classes,
        "domains": ", ".join(card.domains),
        "input": " x ".join(map(str, card.input_shape)),
        "text": " tokens of ".join(map(str, card.text_shape or ())),
        "about": card.description,
    }
    return [f"{key:<12} {value}" for key, value in rows.items() if value]


def _description(obj: Any) -> str:
    module = inspect.getmodule(obj)
    texts = [inspect.getdoc(module) if module else None]
    # A class without a docstring inherits its parent's, which describes another component.
    text = vars(obj).get("__doc__") if isinstance(obj, type) else getattr(obj, "__doc__", None)
    texts.append(inspect.cleandoc(text) if text else None)
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
    """Describe a run: its configuration, its status and its results so far.

    Raises:
        InputError: the folder is not a run.
    """
    from fedsim.config.reading import to_yaml
    from fedsim.runs.results import load_run
    from fedsim.runs.summary import format_table

    run = load_run(folder)
    status = f"{run.status}, {run.rounds_done} of {run.config.rounds} rounds"
    if run.status != "finished":
        status += f"; resume it with: fedsim resume {folder}"
    return f"{to_yaml(run.config)}\n{status}\n\n{format_table(run.summary())}"
