"""A `clip.model.CLIP` from weights by OpenAI's names, for all families that compute nearly the same."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from clip.model import CLIP, ModifiedResNet, QuickGELU, VisionTransformer
from torch import Tensor, nn

HEAD_WIDTH = 64  # of OpenAI's towers
ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}


@dataclass(frozen=True)
class Kind:
    """How a tower computes, as far as its weights do not say it; the defaults are OpenAI's.

    Attributes:
        activation: of its MLPs, one of ACTIVATIONS.
        heads: of its attention; None: one for each 64 of its width.
        eps: of its layer norms.
    """

    activation: str = "quick_gelu"
    heads: int | None = None
    eps: float = 1e-5


def build_clip(weights: dict[str, Tensor], image: Kind | None = None, text: Kind | None = None) -> CLIP:
    """A CLIP with these weights, shared where they are in single precision.

    MLPs may have any width.

    Args:
        weights: by OpenAI's names, all of them and no others.
        image, text: how the towers compute; of a ResNet the heads of its attention pool alone.

    Raises:
        KeyError, RuntimeError, AssertionError, ZeroDivisionError, IndexError: they do not make a CLIP.
    """
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    image, text = image or Kind(), text or Kind()
    # On the meta device nothing is initialised, which takes most of the time that a large CLIP takes to build.
    with torch.device("meta"):
        model = _empty_clip(weights, text)
        # CLIP's own constructor knows no image tower with other heads.
        model.visual = _empty_image_tower(weights, image)
    model.load_state_dict(weights, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model.eval()


def build_image_tower(weights: dict[str, Tensor], kind: Kind) -> VisionTransformer | ModifiedResNet:
    """The image tower of a CLIP alone, with its weights, all by OpenAI's names, which begin with "visual."."""
    with torch.device("meta"):
        tower = _empty_image_tower(weights, kind)
    tower.load_state_dict({key.removeprefix("visual."): value.float() for key, value in weights.items()}, assign=True)
    return tower.eval()


def computes(weights: dict[str, Tensor], image: Kind | None = None, text: Kind | None = None) -> str:
    """What towers of these kinds do otherwise than OpenAI's would with these weights (see `Facts.computes`)."""
    image, text = image or Kind(), text or Kind()
    default = Kind()
    if image.heads == _default_image_heads(weights):
        image = replace(image, heads=None)
    if not _has_vit(weights):
        image = replace(image, activation=default.activation, eps=default.eps)  # a ResNet has neither
    if text.heads == weights["ln_final.weight"].shape[0] // HEAD_WIDTH:
        text = replace(text, heads=None)
    found = {"image": image, "text": text}
    return "; ".join(f"{tower} {kind}" for tower, kind in found.items() if kind != default)


def activation_of(block: Any) -> str:
    """The name in ACTIVATIONS of a block's activation, or that of its class."""
    activation = block.mlp.gelu
    if isinstance(activation, nn.GELU):
        return "gelu_tanh" if activation.approximate == "tanh" else "gelu"
    name = type(activation).__name__
    return "quick_gelu" if name == "QuickGELU" else name


def _has_vit(weights):
    return "visual.proj" in weights


def _default_image_heads(weights):
    if _has_vit(weights):
        return weights["visual.conv1.weight"].shape[0] // HEAD_WIDTH
    return weights["visual.layer1.0.conv1.weight"].shape[0] * 32 // HEAD_WIDTH


def _empty_clip(weights, kind):
    """A CLIP of the weights' sizes, read off as OpenAI's build_model does it, with no image tower to speak of."""
    embed_dim = weights["text_projection"].shape[1]
    context_length, width = weights["positional_embedding"].shape
    vocabulary = weights["token_embedding.weight"].shape[0]
    layers = len({key.split(".")[2] for key in weights if key.startswith("transformer.resblocks")})
    heads = kind.heads or width // HEAD_WIDTH
    model = CLIP(embed_dim, 1, 1, HEAD_WIDTH, 1, context_length, vocabulary, width, heads, layers)
    _adapt(model, weights, "transformer.resblocks", kind)
    return model


def _empty_image_tower(weights, kind):
    heads = kind.heads or _default_image_heads(weights)
    if _has_vit(weights):
        width, patch = weights["visual.conv1.weight"].shape[0], weights["visual.conv1.weight"].shape[-1]
        layers = [key for key in weights if key.startswith("visual.") and key.endswith(".attn.in_proj_weight")]
        grid = round((weights["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        embed_dim = weights["visual.proj"].shape[1]
        tower = VisionTransformer(patch * grid, patch, width, len(layers), heads, embed_dim)
        _adapt(tower, weights, "visual.transformer.resblocks", kind)
        return tower
    counts = [len({key.split(".")[2] for key in weights if key.startswith(f"visual.layer{n}")}) for n in (1, 2, 3, 4)]
    width = weights["visual.layer1.0.conv1.weight"].shape[0]
    positions = weights["visual.attnpool.positional_embedding"].shape[0]
    grid = round((positions - 1) ** 0.5)
    assert grid**2 + 1 == positions
    return ModifiedResNet(tuple(counts), weights["visual.attnpool.c_proj.weight"].shape[0], heads, grid * 32, width)


def _adapt(tower, weights, prefix, kind):
    """Give a tower's blocks their activation, MLPs as wide as the weights have them, and all its norms their eps."""
    for i, block in enumerate(tower.transformer.resblocks):
        hidden, width = weights[f"{prefix}.{i}.mlp.c_fc.weight"].shape
        if hidden != block.mlp.c_fc.out_features:
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        block.mlp.gelu = ACTIVATIONS[kind.activation]()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = kind.eps
