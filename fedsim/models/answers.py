"""Visual question answering on the frozen image and text towers of a finished run.

    logits = W2 relu(W1 (f(image) * f(question)))

Product and classifier are ours: CreamFL's authors evaluate its encoders on questions too, but
publish no model for them (arXiv:2302.08888).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.errors import InputError, check
from fedsim.models.blocks.body_head import check_images
from fedsim.models.blocks.nested import TrainedModel
from fedsim.models.blocks.renormalise import Renormalise
from fedsim.models.image_text import ImageText


class Product(nn.Module):
    """Product of the unit vectors of image and question, then one hidden layer.

    `renormalise` converts images to the statistics that the towers were trained with.
    """

    def __init__(self, towers: Any, dim: int, hidden: int, renormalise: Renormalise) -> None:
        super().__init__()
        self.towers = towers.eval()
        self._renormalise = renormalise
        self.hidden = nn.Linear(dim, hidden)

    def train(self, mode: bool = True) -> Product:
        super().train(mode)
        self.towers.eval()
        return self

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        images, tokens = pair
        with torch.no_grad():
            # Entries of unit vectors are about 1 / sqrt(dim); this scales the product back to 1.
            product = self.towers.images(self._renormalise(images))
            product = product * self.towers.texts(tokens)
            product *= product.shape[1]
        return F.relu(self.hidden(product))


class Answers(nn.Module):
    """A product of frozen towers in `body` and a linear `head`; reads pairs."""

    reads = "pairs"
    frozen = ("body.towers",)

    def __init__(self, body: Product, classes: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(body.hidden.out_features, classes)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        logits: Tensor = self.head(self.body(pair))
        return logits


def answers(
    input_shape: tuple[int, int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    towers: TrainedModel,
    hidden: int = 128,
) -> nn.Module:
    """A classifier of answers to questions about images, on a run's frozen server towers.

    `towers` is the folder of a finished run of the model ``image-text``, on data of the same shapes
    and vocabulary, such as a ``union`` of pairs and questions. `hidden` units are trained.

    Raises:
        InputError: no such run, a run of another model, of other shapes or words, a bad option.
    """
    check_images("answers", input_shape)
    check(hidden >= 1, "hidden must be >= 1", hidden)
    text_shape = None if card is None else card.text_shape
    check(text_shape is not None, "model 'answers' needs images with questions", text_shape)
    assert card is not None
    trained = towers()
    if not isinstance(trained.module, ImageText):
        raise InputError(
            f"model.towers must be a run of the model 'image-text', {towers.folder} is one of "
            f"{trained.model!r}"
        )
    trained_on = trained.card
    for what, expected, actual in (
        ("images", tuple(input_shape), trained_on.input_shape),
        ("texts", text_shape, trained_on.text_shape),
    ):
        check(
            expected == actual,
            f"model.towers must be a run on {what} of the shape {expected}",
            actual,
        )
    if card.vocabulary != trained_on.vocabulary:
        # A token would mean another word.
        raise InputError(
            f"model.towers must be a run on texts of the same vocabulary, and {towers.folder} is "
            f"on {trained.dataset!r} with another one; a union of its pairs and of these "
            "questions has one for both"
        )
    renormalise = Renormalise()
    renormalise.between((card.mean, card.std), (trained_on.mean, trained_on.std))
    towers_of_server = trained.module.server
    body = Product(towers_of_server, trained.module.dim, hidden, renormalise)
    return Answers(body, num_classes)
