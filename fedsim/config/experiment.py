"""The experiment file as typed, frozen models.

`load_experiment` reads YAML or a mapping, applies overrides and checks every key of the
platform. What a component (data set, strategy, ...) takes beyond that are its *options*: they
stay as given here and are checked by `fedsim.components.lookup` against the component itself.

Every field's description completes the sentence "<key> must be ...", the one a user is told.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from pydantic_core import PydanticCustomError

_COUNT = "a whole number of at least 1"
_FRACTION = "a number in [0, 1)"

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]
PositiveSeconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Text = Annotated[str, StringConstraints(min_length=1)]


class Model(BaseModel):
    """Base of the experiment file's parts: strict, frozen, and without keys of no field."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    added_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that an experiment's digest leaves out at their default: checkpoints made before there
    were these fields stay those of the same experiment."""


class Section(Model):
    """A named component and its options; ``options`` are the keys the platform does not know."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(description="the name of a component")

    @property
    def options(self) -> dict[str, Any]:
        """The keys beyond the platform's own, as written in the file."""
        return dict(self.model_extra or {})


class Augment(Model):
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


class Evaluation(Model):
    """When and on whom models are evaluated; the last round always is.

    On `validation` nothing reads a test sample: models are scored on all clients' validation
    samples, as options are chosen; `both` has both, to choose a round by. `features` records what
    the generic model's features look like, `across_domains` how each client's model does on every
    domain's test samples. `metrics` are those of the model's scorer that are recorded besides the
    usual ones, such as ``macro-f1`` for classifiers.
    """

    added_fields: ClassVar = frozenset({"metrics"})

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
    def split(self) -> Literal["test", "validation"]:
        """What the values without a further name are of: test or validation samples."""
        return "validation" if self.on == "validation" else "test"

    features: bool = Field(default=False, description="true or false")
    across_domains: bool = Field(default=False, description="true or false")
    metrics: list[Text] = Field(default=[], description="a list of names of metrics")


class Engine(Model):
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


class Screening(Model):
    """What happens to an update that is not fit to be aggregated."""

    policy: Literal["drop", "clip", "abort"] = Field(
        default="drop", description="'drop', 'clip' or 'abort'"
    )
    max_norm: float = Field(default=1e6, gt=0, description="a number above 0")
    min_survivors: Count | Share = Field(
        default=1, description="a count of at least 1 or a fraction of the cohort in (0, 1]"
    )


class Checkpoint(Model):
    """How often the state is saved; the last round always is."""

    every: Count = Field(default=1, description="a whole number of rounds, at least 1")
    min_seconds: float = Field(
        default=2.0, ge=0, allow_inf_nan=False, description="a number of seconds of at least 0"
    )


class Experiment(Model):
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
