"""Image and text towers into one space of unit vectors, for a server and for each kind of client;
their architectures are independent.

    part      towers
    server    image and text
    image     image, and a classifier: of clients with images only
    text      text, and a classifier: of clients with texts only
    pairs     image and text: of clients with pairs

A tower is the body of any model of images or texts, and a linear map to `dim` numbers. Several
architectures for the clients of one kind are further parts: image2, image3, ...
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.data.partition import Modality
from fedsim.data.views import View
from fedsim.errors import check
from fedsim.evaluate.classification import count_heads
from fedsim.evaluate.retrieval import Retrieval
from fedsim.maths.contrastive import info_nce, pcme
from fedsim.models.blocks.body_head import check_images
from fedsim.models.blocks.nested import Model
from fedsim.models.cnn import cnn
from fedsim.models.text import text as bag_of_words
from fedsim.models.text_gru import text_gru
from fedsim.params import protocol
from fedsim.params.filters import under

SERVER, IMAGE, TEXT, PAIRS = "server", "image", "text", "pairs"

KIND_OF = {"image": IMAGE, "text": TEXT, "all": PAIRS}
"""The kind of a client, by the modality that it holds (`fedsim.data.partition.Modality`)."""
RetrievalLoss = Literal["pcme", "infonce"]

_LARGE = Model("cnn", cnn, {"channels": (32, 64), "hidden": 128})
_SMALL = Model("cnn", cnn)
_RECURRENT = Model("text-gru", text_gru)
_WORDS = Model("text", bag_of_words)
Towers = Model | tuple[Model, ...]
"""One model for all clients of a kind, or n, of which client c has number c mod n."""


class Tower(nn.Module):
    """A model's body and a linear map: inputs to vectors (batch, dim), not normalised."""

    def __init__(self, model: Any, dim: int) -> None:
        super().__init__()
        self.body = model.body
        self.project = nn.Linear(model.head.in_features, dim)

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = self.project(self.body(x))
        return projected


class Part(nn.Module):
    """The towers of one party, a classifier over one of them, and the scalars of its loss.

    `scale` and `shift` belong to the soft contrastive loss, `log_temperature` to the symmetric
    cross-entropy; parties with one tower have neither.
    """

    def __init__(self, image: Tower | None, text: Tower | None, dim: int, classes: int = 0) -> None:
        super().__init__()
        self.image, self.text = image, text
        self.head = nn.Linear(dim, classes) if classes else None
        if image is not None and text is not None:
            self.scale = nn.Parameter(torch.tensor(15.0))
            self.shift = nn.Parameter(torch.tensor(15.0))
            self.log_temperature = nn.Parameter(torch.tensor(0.07).log())

    def features(self, x: Tensor) -> Tensor:
        """Return the vectors (batch, dim) of a party with one tower, not normalised."""
        tower = self.image if self.image is not None else self.text
        assert tower is not None
        features: Tensor = tower(x)
        return features

    def images(self, x: Tensor) -> Tensor:
        """Return unit vectors (batch, dim) of images (batch, C, H, W)."""
        assert self.image is not None
        return F.normalize(self.image(x), dim=1)

    def texts(self, tokens: Tensor) -> Tensor:
        """Return unit vectors (batch, dim) of the int64 tokens (batch, L) of texts."""
        assert self.text is not None
        return F.normalize(self.text(tokens), dim=1)


class ImageText(nn.Module):
    """The server's part, which is scored, and those of each kind of client.

    `kinds`, `part_of`, `scores`, `images` and `texts` follow `fedsim.params.protocol`.
    """

    def __init__(
        self, server: Part, clients: Mapping[str, Sequence[Part]], dim: int, fold: int
    ) -> None:
        super().__init__()
        self.server = server
        self.kinds: dict[str, list[str]] = {}
        for kind, parts in clients.items():
            self.kinds[kind] = [_part_name(kind, place) for place in range(len(parts))]
            for name, part in zip(self.kinds[kind], parts, strict=True):
                self.add_module(name, part)
        self.dim = dim
        self.scorer = Retrieval(fold)
        self.frozen: tuple[str, ...] = ()

    def part_of(self, modality: Modality, client: int) -> str:
        """Return the name of a client's part: number client mod n of the n of its kind."""
        names = self.kinds[KIND_OF[modality]]
        return names[client % len(names)]

    def images(self, x: Tensor) -> Tensor:
        """Return the server's unit vectors (batch, dim) of images."""
        return self.server.images(x)

    forward = images

    def texts(self, tokens: Tensor) -> Tensor:
        """Return the server's unit vectors (batch, dim) of texts."""
        return self.server.texts(tokens)

    def scores(self, name: str, view: View, batch_size: int = 512) -> dict[str, float]:
        """Return a part's metrics on a view: recalls, or accuracy and loss of its classifier.

        Raises:
            ValueError: the view is empty.
        """
        part: Part = self.get_submodule(name)  # type: ignore[assignment]
        if part.head is None:
            return self.scorer.tally(part, view, batch_size=batch_size).metrics()
        head = part.head
        reads: protocol.Reads = "texts" if part.image is None else "inputs"
        batches = view.batches(batch_size, reads=reads)
        (counts,) = count_heads(
            part, lambda x: [head(part.features(x))], batches, [head.out_features], view.device
        )
        return counts.metrics()


def in_encoder(part: str) -> Callable[[str], bool]:
    """Return a test for the names of a part's tower tensors, without classifier and scalars."""
    return under((f"{part}.image", f"{part}.text"))


def retrieval_loss(
    part: Part, x: Tensor, y: Tensor, name: RetrievalLoss, temperature: float | None
) -> Tensor:
    """Return the loss of B pairs of unit vectors x and y (B, dim), with the part's scalars.

    `temperature` replaces the learnt one of the symmetric cross-entropy unless it is None.
    """
    if name == "pcme":
        return pcme(x, y, part.scale, part.shift)
    return info_nce(x, y, part.log_temperature.exp() if temperature is None else temperature)


def image_text(
    input_shape: tuple[int, int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    dim: int = 64,
    fold: int = 1000,
    server_image: Model = _LARGE,
    server_text: Model = _RECURRENT,
    image: Towers = _SMALL,
    text: Towers = _WORDS,
    pairs_image: Towers = _SMALL,
    pairs_text: Towers = _WORDS,
) -> nn.Module:
    """Image and text towers into one space of `dim` numbers, for a server and for clients.

    A tower is the body of the model that its option names, such as ``{name: cnn, channels: [16]}``:
    the server's two, that of clients with images only (`image`), with texts only (`text`), and the
    two of clients with pairs. A client's tower may be a list of n models, of which client c has
    number c mod n; two lists for pairs must have one length. Retrieval is scored among all test
    samples and, if there are more, among `fold` of them at a time.

    Raises:
        InputError: an option out of range, or a data set that is not of image-text pairs.
    """
    check_images("image-text", input_shape)
    text_shape = None if card is None else card.text_shape
    check(
        text_shape is not None,
        "model 'image-text' needs a data set of image-text pairs, such as 'emoji' or 'captions'",
        text_shape,
    )
    assert text_shape is not None
    check(dim >= 1, "dim must be >= 1", dim)
    check(fold >= 1, "fold must be >= 1", fold)
    frozen: list[str] = []

    def tower(model: Model, at: str, shape: tuple[int, ...]) -> Tower:
        module: Any = model(shape, num_classes, card)
        check(
            protocol.linear_head(module) is not None,
            f"model.{model.option or at} must be a model with a linear head after its body",
            model.name,
        )
        inside = [name for name in protocol.frozen(module) if name.startswith("body")]
        frozen.extend(f"{at}.{name}" for name in inside)
        return Tower(module, dim)

    def parts(kind: str, images: Towers | None, texts: Towers | None) -> list[Part]:
        of_images, of_texts = _models(images), _models(texts)
        classes = num_classes if kind in (IMAGE, TEXT) else 0
        members = []
        for place in range(max(len(of_images), len(of_texts))):
            name = _part_name(kind, place)
            x = y = None
            if of_images:
                x = tower(of_images[place % len(of_images)], f"{name}.image", input_shape)
            if of_texts:
                y = tower(of_texts[place % len(of_texts)], f"{name}.text", text_shape)
            members.append(Part(x, y, dim, classes))
        return members

    towers = {"image": image, "text": text, "pairs_image": pairs_image, "pairs_text": pairs_text}
    for name, models in towers.items():
        check(len(_models(models)) > 0, f"{name} must name at least one model", [])
    lengths = len(_models(pairs_image)), len(_models(pairs_text))
    allowed = "pairs_text must list as many models as pairs_image, or one"
    check(len({*lengths} - {1}) < 2, allowed, lengths[1])
    (server,) = parts(SERVER, server_image, server_text)
    clients = {
        IMAGE: parts(IMAGE, image, None),
        TEXT: parts(TEXT, None, text),
        PAIRS: parts(PAIRS, pairs_image, pairs_text),
    }
    module = ImageText(server, clients, dim, fold)
    module.frozen = tuple(frozen)
    return module


def _models(models: Towers | None) -> tuple[Model, ...]:
    if models is None:
        return ()
    return models if isinstance(models, tuple) else (models,)


def _part_name(kind: str, place: int) -> str:
    """Return the name of a kind's part: image, image2, ..."""
    return f"{kind}{place + 1}" if place else kind
