"""Vision transformers with prompt tokens, the backbone frozen or not, by the library transformers.

    tokens = [CLS, prompts, patches];  every layer;  final norm;  head on CLS

Shallow prompts enter the first layer and are carried through as ordinary tokens; deep prompts are
overwritten before each layer (VPT, Jia et al. 2022, arXiv:2203.12119). Prompts have no position.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsim.errors import InputError, check
from fedsim.models import BodyHead, check_images


class Backbone(nn.Module):
    """A transformer's embedding, layers and final norm; with `fixed` it never leaves eval mode."""

    def __init__(self, model: Any, fixed: bool) -> None:
        super().__init__()
        self.model = model
        self._fixed = fixed
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

    def embed(self, x: Tensor) -> Tensor:
        """Return CLS and patch tokens with positions, (batch, 1 + m, l), of x (batch, C, H, W)."""
        resized = tuple(x.shape[-2:]) != _pair(self.model.config.image_size)
        kind = {} if "dinov2" in self.model.config.model_type else {
            "interpolate_pos_encoding": resized
        }  # fmt: skip
        tokens: Tensor = self.model.embeddings(x, **kind)
        return tokens


class PromptedBody(nn.Module):
    """Backbone and prompts; the features are the final CLS token (batch, l)."""

    prompts: nn.Parameter | None

    def __init__(self, backbone: Backbone, prompts: int, deep: bool) -> None:
        super().__init__()
        self.backbone = backbone
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
        return self.from_tokens(self.backbone.embed(x))

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
    """A prompted transformer with a linear head; `frozen` names what is never trained or sent."""

    def __init__(self, body: PromptedBody, num_classes: int, frozen: bool) -> None:
        super().__init__(body, body.width, num_classes)
        self.frozen = ("body.backbone",) if frozen else ()


def vit(
    input_shape: tuple[int, int, int],
    num_classes: int,
    *,
    weights: str | None = None,
    prompts: int = 10,
    deep: bool = False,
    frozen: bool = True,
    patch: int = 4,
    width: int = 96,
    layers: int = 6,
    heads: int = 3,
) -> nn.Module:
    """A vision transformer whose backbone is frozen, with prompt tokens and a linear head.

    `weights` is a folder that transformers reads (``save_pretrained``) or an id of its hub, such as
    google/vit-base-patch16-224-in21k; it then decides `patch`, `width`, `layers` and `heads`.
    Without it the backbone is random. `prompts` tokens are put before the first layer, with `deep`
    others before every layer. With ``frozen: false`` the backbone is trained and sent as well.

    Raises:
        InputError: transformers is not installed, weights that are missing or damaged, an option
            out of range, or images that the patches do not divide.
    """
    check_images("vit", input_shape)
    check(prompts >= 0, "prompts must be >= 0", prompts)
    for name, value in (("patch", patch), ("width", width), ("layers", layers), ("heads", heads)):
        check(value >= 1, f"{name} must be >= 1", value)
    channels, height, columns = input_shape
    try:
        import transformers
    except ImportError as error:
        raise InputError(
            f"model 'vit' needs the package transformers: pip install 'fedsim[vit]' ({error})"
        ) from None
    if weights is None:
        check(width % heads == 0, f"width must be a multiple of heads ({heads})", width)
        check(height == columns, "images must be square without weights", (height, columns))
        model: Any = transformers.ViTModel(
            transformers.ViTConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=4 * width,
                image_size=height,
                patch_size=patch,
                num_channels=channels,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
            ),
            add_pooling_layer=False,
        )
    else:
        model = _load(weights, transformers)
        wanted = int(model.config.num_channels)
        check(wanted == channels, f"the weights in {weights} need {wanted} channels", channels)
    size = _pair(model.config.patch_size)
    for side, piece in zip((height, columns), size, strict=True):
        check(side % piece == 0, f"image sides must be a multiple of the patch ({piece})", side)
    backbone = Backbone(model, fixed=frozen)
    return PromptedViT(PromptedBody(backbone, prompts, deep), num_classes, frozen)


def _load(weights: str, transformers: Any) -> Any:
    local = Path(weights).expanduser()
    if local.exists() and not (local / "config.json").is_file():
        raise InputError(f"{local} holds no model: it has no config.json")
    if not local.exists() and (weights.startswith((".", "/", "~")) or weights.count("/") > 1):
        raise InputError(f"there is no folder {local} with weights of a vision transformer")
    try:
        config = transformers.AutoConfig.from_pretrained(local if local.exists() else weights)
        kind = transformers.ViTModel if config.model_type == "vit" else transformers.AutoModel
        extra = {"add_pooling_layer": False} if config.model_type == "vit" else {}
        model = kind.from_pretrained(local if local.exists() else weights, **extra)
    except (OSError, ValueError, RuntimeError) as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"cannot load the weights {weights!r}: {text}") from error
    if not hasattr(model, "layernorm"):
        raise InputError(
            f"the weights {weights!r} are of a {config.model_type!r} model, not of ViT or DINOv2"
        )
    return model


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
