"""Optional members of a model: what a module may declare about itself, and their defaults.

Any `torch.nn.Module` that maps inputs to logits (batch, classes) can be trained. It may have
further members, recognised by name and without a base class; the protocols below describe them.
Other code reads them through the functions of this module alone, and when a run is set up `check`
refuses a model whose members contradict each other.

    members                            protocol           default
    body, head                         Classifier         methods that need a head refuse the model
    frozen                             Frozen             every tensor is trained and sent
    targets, loss                      OwnLoss            cross-entropy of logits and labels
    reads                              Reads              "inputs"
    scorer                             Scored             accuracy and cross-entropy
    detect                             Detects            methods that need boxes refuse the model
    images, texts                      Embeds             no retrieval
    kinds, part_of, scores             Parted             every client has the whole model
    stem, stem_bytes, stem_identity    Stem               inputs are read anew in every pass
    batched_gradients, sample_bytes    Batched            clients train one at a time
    batched_features, batched_head,    BatchedPasses      FRAug's clients train one at a time
    batched_backward, head_gradients
    save_pretrained                    Exports            no export to a folder of transformers

This lies below `fedsim.models` because lower packages read members too: `fedsim.params` leaves
`frozen` tensors out of a model's vector, `fedsim.data` and `fedsim.evaluate` follow `reads`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from fedsim.errors import InputError
from fedsim.errors import check as require
from fedsim.params.filters import under

Reads = Literal["inputs", "texts", "pairs"]
"""What `forward` takes: the sample's input (batch, C, H, W) or (batch, L); the int64 tokens
(batch, L) of the text that belongs to it; or the tuple of both."""


class Classifier(Protocol):
    """A feature extractor and a linear layer: ``forward(x) = head(body(x))``."""

    body: nn.Module  # inputs to features (batch, d)
    head: nn.Linear  # features to logits (batch, classes)


class Frozen(Protocol):
    """Tensors that are never trained, sent, averaged or kept in checkpoints."""

    frozen: tuple[str, ...]  # names of tensors, or of layers with all that is in them


class OwnLoss(Protocol):
    """A loss of columns of the data set in place of the labels' cross-entropy."""

    targets: tuple[str, ...]  # columns such as boxes and box_labels, in the order of `loss`

    def loss(self, outputs: Any, *columns: Tensor) -> Tensor:
        """Return the loss of a batch, a scalar, given what `forward` returns."""


class Scorer(Protocol):
    """The part of `fedsim.evaluate.scorer.Scorer` that tells one from other objects."""

    headline: ClassVar[str]

    def tally(self, module: nn.Module, view: Any, num_classes: int, batch_size: int = 512) -> Any:
        """Return what is counted on a view."""

    def picture(self, module: nn.Module, dataset: Any) -> Any:
        """Return a picture of test samples, or None."""


class Scored(Protocol):
    """A metric other than accuracy."""

    scorer: Scorer


class Detects(Protocol):
    """Boxes in images, which `fedsim.evaluate.detection` scores."""

    def detect(self, x: Tensor, *, least_score: float, iou: float, most: int) -> Any:
        """Return `boxes` (n, k, 4), `labels` (n, k), -1 for none, and `scores` (n, k), best first.

        Boxes below `least_score` are left out, and of overlapping ones by non-maximum suppression
        at `iou` all but the best; at most `most` candidates of an image are compared.
        """


class Embeds(Protocol):
    """Images and texts in one space, which `fedsim.evaluate.retrieval` scores."""

    def images(self, x: Tensor) -> Tensor:
        """Return unit vectors (batch, d) of images (batch, C, H, W)."""

    def texts(self, tokens: Tensor) -> Tensor:
        """Return unit vectors (batch, d) of the int64 tokens (batch, L) of texts."""


class Parted(Protocol):
    """Children of which the server has one and each client another, by what the client holds."""

    kinds: Mapping[str, Sequence[str]]  # kind of client (image, text, pairs) to names of children

    def part_of(self, modality: str, client: int) -> str:
        """Return the name of a client's child; `modality` is image, text or all."""

    def scores(self, name: str, view: Any, batch_size: int = 512) -> Mapping[str, float]:
        """Return the metrics of one child on a view."""


class Stem(Protocol):
    """A first part without trained tensors, whose outputs are computed once and kept on disk.

    `forward` and `body` accept its outputs in place of inputs (`fedsim.engine.frozen_features`).
    """

    stem_bytes: int  # to keep per split; 0 switches the cache off

    def stem(self, x: Tensor) -> Tensor:
        """Return float32 outputs (batch, ...) of inputs; nothing trained may change them."""

    def stem_identity(self) -> str:
        """Return text that identifies the computation of `stem`, frozen weights aside."""


class Batched(Protocol):
    """Training of several clients in one kernel (`fedsim.models.blocks.batched`)."""

    sample_bytes: int  # of the largest activation of one sample

    def batched_gradients(
        self, flat: Tensor, x: Tensor, y: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses (clients,) and gradients (clients, size) at parameters `flat`.

        x is (clients, batch, ...), y and the weights of samples `share` (clients, batch).
        """


class BatchedPasses(Batched, Protocol):
    """The passes that `batched_gradients` consists of, for methods that act between them."""

    def batched_features(self, flat: Tensor, x: Tensor) -> tuple[Tensor, Any]:
        """Return features (clients, batch, d), and what the backward pass needs."""

    def batched_backward(self, flat: Tensor, tape: Any, delta: Tensor, gradient: Tensor) -> None:
        """Write the body's part of `gradient` (clients, size), given that of the features."""

    def batched_head(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Return the heads' weights (clients, classes, d) and biases (clients, classes, 1)."""

    def head_gradients(
        self, flat: Tensor, features: Tensor, y: Tensor, share: Tensor, gradient: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return losses and the gradients of the features; write those of the heads."""


class Exports(Protocol):
    """A pretrained part that can be written as the library transformers reads it."""

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the part into an existing folder."""


_PASSES = ("batched_features", "batched_backward", "batched_head", "head_gradients")
_NEEDS: dict[str, tuple[str, ...]] = {
    "targets": ("loss",),
    "stem_bytes": ("stem", "stem_identity"),
    "part_of": ("scores",),
    **dict.fromkeys(_PASSES, ("batched_gradients", *_PASSES)),
}
"""Methods without which a member has no effect."""


def linear_head(module: nn.Module) -> nn.Linear | None:
    """Return the classifier of a model with `body` and `head`, None for other models."""
    head = getattr(module, "head", None)
    return head if isinstance(head, nn.Linear) and hasattr(module, "body") else None


def frozen(module: nn.Module) -> tuple[str, ...]:
    """Return the names of frozen layers and tensors."""
    return tuple(getattr(module, "frozen", ()))


def targets(module: nn.Module) -> tuple[str, ...]:
    """Return the columns that the model's own loss takes, empty for labels."""
    return tuple(getattr(module, "targets", ()))


def own_loss(module: nn.Module) -> Callable[..., Tensor] | None:
    """Return the model's loss of outputs and target columns, None for a classifier."""
    loss: Callable[..., Tensor] | None = getattr(module, "loss", None)
    return loss if targets(module) else None


def reads(module: nn.Module) -> Reads:
    """Return what the model reads of a sample."""
    kind: Reads = getattr(module, "reads", "inputs")
    return kind


def scorer(module: nn.Module, default: Any) -> Any:
    """Return the model's scorer, or `default`."""
    return getattr(module, "scorer", default)


def detects(module: nn.Module) -> bool:
    """Return whether the model finds boxes."""
    return hasattr(module, "detect")


def exports(module: nn.Module) -> bool:
    """Return whether the model can write its pretrained part."""
    return hasattr(module, "save_pretrained")


def stem(module: Any) -> Stem | None:
    """Return the module as a `Stem`, None if it keeps no outputs."""
    return module if getattr(module, "stem_bytes", 0) else None


def missing(module: nn.Module, members: Iterable[str]) -> list[str]:
    """Return those of the named members that the module lacks."""
    return [name for name in members if not hasattr(module, name)]


def sample_bytes(module: nn.Module, default: int = 1) -> int:
    """Return the bytes of the largest activation of one sample, `default` if unknown."""
    return int(getattr(module, "sample_bytes", default))


def check(module: nn.Module) -> None:
    """Check a model's members against each other.

    Raises:
        InputError: names the model's class, the member and what is allowed.
    """
    owner = type(module).__name__
    for member, methods in _NEEDS.items():
        value = getattr(module, member, None)
        if not isinstance(value, Tensor) and value:
            for method in methods:
                if not callable(getattr(module, method, None)):
                    raise InputError(f"{owner}.{member} needs a method {method!r} beside it")
    for member in ("frozen", "targets"):
        names = getattr(module, member, ())
        several = isinstance(names, Collection) and not isinstance(names, str | Tensor)
        is_names = several and all(isinstance(name, str) for name in names)
        require(is_names, f"{owner}.{member} must be a tuple of names", names)
    tensors = [name for name, _ in chain(module.named_parameters(), module.named_buffers())]
    for name in frozen(module):
        allowed = f"{owner}.frozen must name layers or tensors of the model"
        require(any(map(under((name,)), tensors)), allowed, name)
    allowed = f"{owner}.reads must be one of {', '.join(map(repr, get_args(Reads)))}"
    require(reads(module) in get_args(Reads), allowed, reads(module))
    for member, least in (("stem_bytes", 0), ("sample_bytes", 1)):
        size = getattr(module, member, least)
        is_size = isinstance(size, Real) and float(size).is_integer() and int(size) >= least  # type: ignore[call-overload]
        require(is_size, f"{owner}.{member} must be a whole number >= {least}", size)
    if hasattr(module, "scorer"):
        is_scorer = all(map(partial(hasattr, module.scorer), ("headline", "tally", "picture")))
        allowed = f"{owner}.scorer must be a fedsim.evaluate.Scorer"
        require(is_scorer, allowed, module.scorer)


def check_columns(module: nn.Module, columns: Collection[str]) -> None:
    """Check that a data set with these extra columns has what a model reads and compares with.

    Raises:
        InputError: names the model's class, the member and what is allowed.
    """
    owner = type(module).__name__
    for name in targets(module):
        allowed = f"{owner}.targets must be columns of the data set ({', '.join(columns)})"
        require(name in columns, allowed, name)
    fits = reads(module) == "inputs" or "tokens" in columns
    allowed = f"{owner}.reads must be 'inputs' for a data set without texts beside its inputs"
    require(fits, allowed, reads(module))
