"""Templates of ``fedsim new``: a working strategy or client method, and its test."""

from __future__ import annotations

import ast
import importlib.util
import keyword
import re
from pathlib import Path

from fedsim.components.lookup import SECTIONS, names
from fedsim.errors import InputError, check_choice, os_errors_as

_STRATEGY = '''"""{cls}: say here what the rule does, and cite its source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsim import Params, ServerContext, Strategy, Update
from fedsim.errors import check
from fedsim.strategy import mean_update


@dataclass
class State:
    """Everything kept between rounds, and saved in checkpoints."""

    model: Params  # global weights


class {cls}(Strategy):
    """FedAvg with a server learning rate: w <- w + lr (mean of the clients' weights - w)."""

    weighted_mean = True  # the rule needs only the weighted mean: workers may average for it

    @dataclass(frozen=True)
    class Config:
        lr: float = 1.0  # > 0; strategy.lr in an experiment file

        def __post_init__(self) -> None:
            check(self.lr > 0, "lr must be > 0", self.lr)

    def init(self, params: Params, ctx: ServerContext) -> State:
        return State(params)

    def aggregate(
        self, state: State, updates: Sequence[Update]
    ) -> tuple[State, dict[str, float]]:
        step = (mean_update(updates)["model"] - state.model) * self.config.lr
        return State(state.model + step), {{"update_norm": step.norm()}}
'''

_CLIENT = '''"""{cls}: say here what the clients do, and cite its source."""

from __future__ import annotations

from dataclasses import dataclass

from fedsim import Fit, LocalSGD
from fedsim.errors import check
from torch import Tensor


class {cls}(LocalSGD):
    """Local SGD that pulls the weights to the start of the round: gradient + mu (w - w_start)."""

    @dataclass(frozen=True)
    class Config(LocalSGD.Config):
        mu: float = 0.01  # >= 0; client.mu in an experiment file

        def __post_init__(self) -> None:
            super().__post_init__()
            check(self.mu >= 0, "mu must be >= 0", self.mu)

    def gradient(self, fit: Fit, grads: list[Tensor]) -> list[Tensor]:
        start = fit.payload["model"]
        return [
            g + self.config.mu * (w - start[name].to(w.device))
            for g, w, name in zip(grads, fit.parameters, fit.names, strict=True)
        ]
'''

_TEST = '''"""Tests of {module}.py; run them with pytest."""

from pathlib import Path

import fedsim
from fedsim.testing import check_{kind}

HERE = Path(__file__).resolve().parent
EXPERIMENT = {{
    "name": "{name}",
    "rounds": 5,
    "dataset": {{"name": "digits"}},
    "partition": {{"name": "dirichlet", "clients": 8, "alpha": 1.0}},
    "model": {{"name": "mlp", "hidden": [32]}},
    "client": {{"epochs": 2, "batch_size": 16, "lr": 0.1}},
    "participation": 1.0,
    "engine": {{"name": "serial"}},
}}
OWN = f"{{HERE}}/{module}.py:{cls}"


def run(out: Path, own: dict) -> fedsim.Run:
    return fedsim.run(EXPERIMENT, set=own, out=out)


def test_it_keeps_what_the_platform_relies_on() -> None:
    check_{kind}(OWN)


def test_it_learns(tmp_path: Path) -> None:
    result = run(tmp_path, {own})
    assert result.status == "finished"
    assert result.final["test/generic/accuracy"] > 0.5


def test_{limit}_is_fedavg(tmp_path: Path) -> None:
    """A rule should reduce to what it extends; keep a test like this one."""
    ours = run(tmp_path / "ours", {reduced}).arrays()
    plain = run(tmp_path / "plain", {plain}).arrays()
    assert all(bool((ours[name] - plain[name]).abs().max() < 1e-4) for name in plain)
'''

_KINDS = {
    "strategy": (
        _STRATEGY,
        {
            "own": '{"strategy.name": OWN, "strategy.lr": 0.9}',
            "reduced": '{"strategy.name": OWN, "strategy.lr": 1.0}',
            "plain": '{"strategy.name": "fedavg"}',
            "limit": "a_learning_rate_of_one",
        },
    ),
    "client": (
        _CLIENT,
        {
            "own": '{"strategy.name": "fedavg", "client.name": OWN, "client.mu": 0.01}',
            "reduced": '{"strategy.name": "fedavg", "client.name": OWN, "client.mu": 0.0}',
            "plain": '{"strategy.name": "fedavg"}',
            "limit": "no_pull",
        },
    ),
}


def write_new(kind: str, name: str, folder: Path) -> list[Path]:
    """Write ``<name>.py`` and ``test_<name>.py``; return their paths.

    Raises:
        InputError: an unknown kind; a name that no module can have, that a component or module has
            already, or whose class would shadow a name in its own code; a file that exists; or a
            folder that is not writable. Nothing has been written then.
    """
    check_choice("the kind", kind, _KINDS)
    module = name.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", module) or keyword.iskeyword(module):
        raise InputError(
            "NAME must be lower-case letters, digits, - and _, beginning with a letter, and no "
            f"word of Python, got {name!r}"
        )
    cls = "".join(part.capitalize() for part in module.split("_") if part)
    template, words = _KINDS[kind]
    if cls in (used := _names_in(template)) or keyword.iskeyword(cls):
        raise InputError(
            f"the class of {name!r} would be named {cls}, a name that the {kind}'s code uses "
            f"itself ({', '.join(sorted(used))}) or a word of Python; choose another name"
        )
    texts = {
        folder / f"{module}.py": template.format(cls=cls),
        folder / f"test_{module}.py": _TEST.format(
            kind=kind, module=module, name=name, cls=cls, **words
        ),
    }
    for path in texts:
        if path.exists():
            raise InputError(f"{path} exists already; choose another name or another folder")
    kinds = {section: kind for kind, section in SECTIONS.items()}
    if name in names(kinds[kind]):
        raise InputError(f"{name!r} is a {kind} that fedsim has already; choose another name")
    if importlib.util.find_spec(module) is not None:
        raise InputError(f"{module}.py would hide the module {module!r}; choose another name")
    try:
        with os_errors_as(InputError, f"cannot write in {folder.resolve()}"):
            for path, text in texts.items():
                path.write_text(text, encoding="utf-8")
    except InputError:
        for path in texts:
            path.unlink(missing_ok=True)
        raise
    return list(texts)


def _names_in(template: str) -> set[str]:
    """Return the names of classes that the code of a template defines, imports or uses."""
    nodes = list(ast.walk(ast.parse(template.format(cls="_"))))
    used = {node.name for node in nodes if isinstance(node, ast.ClassDef | ast.alias)}
    used |= {node.id for node in nodes if isinstance(node, ast.Name)}
    return {name for name in used if name[0].isupper()}
