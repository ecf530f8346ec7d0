"""The experiment file as typed, frozen models.

`load_experiment` reads YAML or a mapping, applies overrides and checks every key of the
platform. What a component (data set, strategy, ...) takes beyond that are its *options*: they
stay as given here and are checked by `fedsim.registry` against the component itself.

Every field's description completes the sentence "<key> must be ...", the one a user is told.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fedsim.errors import InputError, nearest
from fedsim.yaml_text import dump_yaml, parse_yaml

_COUNT = "a whole number of at least 1"
_FRACTION = "a number in [0, 1)"

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Section(_Model):
    """A named component and its options; ``options`` are the keys the platform does not know."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(description="the name of a component")

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond the platform's own, as written in the file."""
        return dict(self.model_extra or {})


class Augment(_Model):
    """Random changes of training images, drawn anew for each batch from the client's generator."""

    crop: int = Field(default=0, ge=0, description="a whole number of pixels of at least 0")
    flip: bool = Field(default=False, description="true or false")
    jitter: float = Field(default=0.0, ge=0, lt=1, description=_FRACTION)
    grayscale: float = Field(default=0.0, ge=0, le=1, description="a probability in [0, 1]")
    cutout: int = Field(default=0, ge=0, description="a whole number of pixels of at least 0")
    scale: float = Field(default=0.0, ge=0, lt=1, description=_FRACTION)
    blur: float = Field(default=0.0, ge=0, le=1, description="a probability in [0, 1]")


class DatasetSection(Section):
    """The data set, and which part of its training split there is to divide among clients."""

    share: Share = Field(default=1.0, description="a fraction in (0, 1]")
    imbalance: float = Field(
        default=1.0, ge=1, allow_inf_nan=False, description="a number of at least 1"
    )
    profile: Literal["exponential", "pareto", "step"] = Field(
        default="exponential", description="'exponential', 'pareto' or 'step'"
    )
    largest: Count | None = Field(default=None, description=f"{_COUNT}, or null")
    step_share: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="a fraction in (0, 1), the share of large classes of a step"
    )
    augment: Augment | None = Field(
        default=None, description="a mapping, such as {crop: 4, flip: true}, or null"
    )


class PartitionSection(Section):
    """How the samples are divided among the clients, and each client's among its splits."""

    clients: Count = Field(description=_COUNT)
    validation: float = Field(default=0.1, ge=0, lt=1, description=_FRACTION)
    test: Annotated[float, Field(ge=0, lt=1)] | Literal["matched", "domain", "classes"] = Field(
        default=0.1, description=f"{_FRACTION}, 'matched', 'domain' or 'classes'"
    )

    @model_validator(mode="after")
    def _something_left_to_train_on(self) -> PartitionSection:
        if not isinstance(self.test, str) and self.validation + self.test >= 1:
            raise PydanticCustomError(
                "rule",
                "partition.validation + partition.test must be below 1, got {validation} + {test}",
                {"validation": self.validation, "test": self.test},
            )
        return self


class ClientSection(Section):
    """The client method; its name is the strategy's own unless given."""

    # A narrower parent type would make every other section's name optional as well.
    name: Text | None = Field(default=None, description="the name of a client method, or null")  # type: ignore[assignment]


class Evaluation(_Model):
    """When and on whom models are evaluated; the last round always is.

    On `validation` nothing reads a test sample: models are scored on all clients' validation
    samples, as options are chosen; `both` has both, to choose a round by. `features` records what
    the generic model's features look like, `across_domains` how each client's model does on every
    domain's test samples.
    """

    every: Count = Field(default=1, description="a whole number of rounds, at least 1")
    personal: bool = Field(default=True, description="true or false")
    clients: Annotated[int, Field(ge=0)] | Literal["all"] = Field(
        default=1000, description="a whole number of clients of at least 0, or 'all'"
    )
    batch_size: Count = Field(default=512, description=_COUNT)
    shots: Literal["auto", "cumulative", "count"] | None = Field(
        default="auto", description="'auto', 'cumulative', 'count' or null"
    )
    on: Literal["test", "validation", "both"] = Field(
        default="test", description="'test', 'validation' or 'both'"
    )

    @property
    def split(self) -> str:
        """What the values without a further name are of: test or validation samples."""
        return "validation" if self.on == "validation" else "test"

    features: bool = Field(default=False, description="true or false")
    across_domains: bool = Field(default=False, description="true or false")


class Engine(_Model):
    """What executes the clients; ``cpus`` and ``gpus`` are a worker's share of a machine."""

    name: Literal["serial", "ray"] = Field(default="ray", description="'serial' or 'ray'")
    workers: Count | None = Field(default=None, description=f"{_COUNT}, or null")
    cpus: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="a number above 0")
    gpus: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="a number of at least 0"
    )
    address: Text | None = Field(default=None, description="the address of a Ray cluster, or null")
    timeout: PositiveSeconds | None = Field(
        default=None, description="a number of seconds above 0, or null"
    )
    max_restarts: int = Field(default=20, ge=0, description="a whole number of at least 0")


class Screening(_Model):
    """What happens to an update that is not fit to be aggregated."""

    policy: Literal["drop", "clip", "abort"] = Field(
        default="drop", description="'drop', 'clip' or 'abort'"
    )
    max_norm: float = Field(default=1e6, gt=0, description="a number above 0")
    min_survivors: Count | Share = Field(
        default=1, description="a count of at least 1 or a fraction of the cohort in (0, 1]"
    )


class Checkpoint(_Model):
    """How often the state is saved; the last round always is."""

    every: Count = Field(default=1, description="a whole number of rounds, at least 1")
    min_seconds: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="a number of seconds of at least 0"
    )


class Experiment(_Model):
    """One experiment with one seed: everything that decides a run's results."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._,=+-]{0,99}$")] = (
        Field(
            description="a folder name: letters, digits and . _ - + = , beginning with a letter "
            "or digit, at most 100 characters"
        )
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="a whole number of at least 0, below 2**63"
    )
    rounds: Count = Field(description=_COUNT)
    dataset: DatasetSection = Field(description="a mapping with a name, such as {name: digits}")
    partition: PartitionSection = Field(
        description="a mapping with a name and clients, such as {name: iid, clients: 20}"
    )
    model: Section = Field(description="a mapping with a name, such as {name: cnn}")
    strategy: Section = Field(description="a mapping with a name, such as {name: fedavg}")
    client: ClientSection = Field(
        default=ClientSection(), description="a mapping of options, such as {epochs: 1, lr: 0.1}"
    )
    participation: Count | Share = Field(
        description="a fraction in (0, 1] or a whole number of clients of at least 1"
    )
    evaluation: Evaluation = Field(
        default=Evaluation(), description="a mapping, such as {every: 10}"
    )
    engine: Engine = Field(
        default=Engine(), description="a mapping, such as {name: ray, workers: 2}"
    )
    screening: Screening = Field(
        default=Screening(), description="a mapping, such as {policy: drop}"
    )
    checkpoint: Checkpoint = Field(
        default=Checkpoint(), description="a mapping, such as {every: 1}"
    )

    @model_validator(mode="after")
    def _cohort_fits(self) -> Experiment:
        clients = self.partition.clients
        if isinstance(self.participation, int) and self.participation > clients:
            raise PydanticCustomError(
                "rule",
                "participation must be at most the number of clients when it is a count, "
                "got {participation} with partition.clients {clients}",
                {"participation": self.participation, "clients": clients},
            )
        survivors = self.screening.min_survivors
        if isinstance(survivors, int) and survivors > self.cohort_size:
            raise PydanticCustomError(
                "rule",
                "screening.min_survivors must be at most the number of clients in a round "
                "({cohort}) when it is a count, got {survivors}",
                {"survivors": survivors, "cohort": self.cohort_size},
            )
        return self

    @property
    def cohort_size(self) -> int:
        """Number of clients sampled a round: the count, or the fraction rounded half up."""
        if isinstance(self.participation, int):
            return self.participation
        # Decimal, since 0.29 * 50 is 14.499999999999998 in binary.
        exact = Decimal(str(self.participation)) * self.partition.clients
        return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


def load_experiment(
    source: str | Path | Mapping[str, Any],
    overrides: Mapping[str, Any] | Sequence[str] = (),
) -> Experiment:
    """Read an experiment from a YAML file or a mapping.

    `overrides` are ``{"client.lr": 0.1}`` or ``["client.lr=0.1"]`` (values parsed as YAML),
    applied in order; each replaces the whole value of its key.

    Raises:
        InputError: one message with a line for each problem found.
    """
    if isinstance(source, Mapping):
        label, data = "experiment", source
    else:
        label, data = str(source), read_mapping(Path(source))
        if is_sweep(data):
            raise InputError(
                f"{label} is a sweep file, not an experiment; run it with: fedsim sweep {label}"
            )
    try:
        tree = _plain(data, "")
        replaced = list(_parse_overrides(overrides))
        for path, value in replaced:
            _replace(tree, path, _plain(value, ".".join(path)))
    except InputError as error:
        raise InputError(f"{label}: {error}") from None
    try:
        return Experiment.model_validate(tree)
    except ValidationError as error:
        problems = _problems(error, tree, [".".join(path) for path, _ in replaced])
    raise InputError(join_problems(label, problems))


def to_yaml(experiment: Experiment) -> str:
    """Return the experiment as YAML with every default written out; `load_experiment` reads it."""
    return dump_yaml(experiment.model_dump())


def digest(experiment: Experiment) -> str:
    """Return the sha256 (hex) of the experiment; equal for equal experiments."""
    text = json.dumps(experiment.model_dump(), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def base_folder(source: str | Path | Mapping[str, Any]) -> Path | None:
    """Return the folder that ``./file.py:Name`` in `source` is relative to; None for a mapping."""
    return None if isinstance(source, Mapping) else Path(source).resolve().parent


def show(value: object) -> str:
    """Return `value` as a message names it: as YAML writes it where Python differs."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def join_problems(label: str, problems: Sequence[str]) -> str:
    """Return one message: ``label: problem``, or a line for each of several."""
    if len(problems) == 1:
        return f"{label}: {problems[0]}"
    return "\n  ".join([f"{label} has {len(problems)} problems:", *problems])


def is_sweep(data: Mapping[str, Any]) -> bool:
    """Whether what a file holds is a sweep rather than an experiment."""
    return "rounds" not in data and ("base" in data or "variants" in data)


def read_mapping(path: Path) -> Mapping[str, Any]:
    """Return what an experiment file or a sweep file holds.

    Raises:
        InputError: there is no such file, or it is not a mapping in YAML.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder, not an experiment file")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        stems = {p.stem: p for p in path.parent.glob("*.y*ml")}
        near = difflib.get_close_matches(path.stem, stems, n=1, cutoff=0.5)
        hint = f" Did you mean {str(stems[near[0]])!r}?" if near else ""
        raise InputError(f"there is no experiment file {path}.{hint}") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} must be text in UTF-8, got the byte {error.object[error.start]:#x} at "
            f"position {error.start}"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    data = parse_yaml(text, str(path))
    if data is None:
        raise InputError(f"{path} is empty: it must hold an experiment (name, rounds, ...)")
    if not isinstance(data, Mapping):
        kind = "a list" if isinstance(data, list) else repr(data)
        raise InputError(f"{path} must hold a mapping (name: ..., rounds: ..., ...), got {kind}")
    return data


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """Return a copy made of dict, list, str, int, float, bool and None only."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if depth > 20:
        raise InputError(f"{key} is nested more than 20 levels deep")
    if isinstance(value, list | tuple):
        return [_plain(v, f"{key}[{i}]", depth + 1) for i, v in enumerate(value)]
    if isinstance(value, Mapping):
        plain = {}
        for k, v in value.items():
            if not isinstance(k, str):
                where = key or "an experiment"
                raise InputError(f"the keys of {where} must be strings, got {k!r}")
            plain[k] = _plain(v, f"{key}.{k}" if key else k, depth + 1)
        return plain
    raise InputError(
        f"{key} must be a number, string, true, false, null, list or mapping, got {value!r}"
    )


def _parse_overrides(
    overrides: Mapping[str, Any] | Sequence[str],
) -> Iterator[tuple[list[str], Any]]:
    if isinstance(overrides, str):
        overrides = [overrides]
    if isinstance(overrides, Mapping):
        pairs = list(overrides.items())
    else:
        pairs = []
        for text in overrides:
            key, equals, value = text.partition("=")
            if not equals:
                raise InputError(f"an override must be KEY=VALUE, got {text!r}")
            pairs.append((key.strip(), parse_yaml(value, f"override {key.strip()}")))
    for key, value in pairs:
        path = key.split(".") if isinstance(key, str) else [""]
        if not all(path):
            raise InputError(
                f"an override's key must be names joined by dots, such as client.lr, got {key!r}"
            )
        yield path, value


def _replace(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for depth, name in enumerate(path[:-1], start=1):
        tree = tree.setdefault(name, {})
        if not isinstance(tree, dict):
            parent = ".".join(path[:depth])
            raise InputError(
                f"cannot override {'.'.join(path)}: {parent} is {show(tree)}, not a mapping"
            )
    tree[path[-1]] = value


def _problems(
    error: ValidationError, tree: Mapping[str, Any], overridden: Sequence[str]
) -> list[str]:
    """Return one sentence a key; of a union's errors on one key only the first is told."""
    problems: dict[str, str] = {}
    for e in error.errors(include_url=False):
        if e["type"] == "rule":
            problems.setdefault(e["msg"], e["msg"])
            continue
        path, model, description = _locate(e["loc"])
        key = ".".join(path)
        if key in problems:
            continue
        parent: Any = tree
        for name in path[:-1]:
            parent = parent[name]
        if e["type"] == "extra_forbidden":
            names = list(model.model_fields)
            owner = ".".join(path[:-1]) or "an experiment"
            problems[key] = (
                f"{key} is not a key of {owner} (got {show(parent[path[-1]])}); allowed are "
                f"{', '.join(names)}.{nearest(path[-1], names)}"
            )
        elif path[-1] not in parent:
            problems[key] = f"{key} is missing: it must be {description}"
            if issubclass(model, Section):  # where a misspelt key looks like an option
                options = [k for k in parent if k not in model.model_fields]
                for near in difflib.get_close_matches(path[-1], options, n=1, cutoff=0.5):
                    problems[key] += f"; is {near!r} meant for it?"
        else:
            problems[key] = f"{key} must be {description}, got {show(parent[path[-1]])}"
        if any(key == o or key.startswith(f"{o}.") for o in overridden):
            problems[key] += " (from an override)"
    return list(problems.values())


def _locate(loc: Sequence[int | str]) -> tuple[list[str], type[BaseModel], str]:
    """Return the key path, the model that owns its last name, and that field's description.

    A location also names the members of unions; it is cut at the first name that is no field.
    """
    owner: type[BaseModel] = Experiment
    path: list[str] = []
    model: type[BaseModel] | None = Experiment
    description = ""
    for name in map(str, loc):
        if model is None:
            break
        owner = model
        path.append(name)
        field = model.model_fields.get(name)
        description = (field.description if field else "") or ""
        annotation = field.annotation if field else None
        candidates = get_args(annotation) or (annotation,)
        model = next(
            (c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None
        )
    return path, owner, description
