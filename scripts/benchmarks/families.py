"""Families of CLIPs at full size with random weights: do both towers compute what the family's own code does, and how
fast is the text tower?

The own code is clip.model for OpenAI's, transformers for Hugging Face's, open_clip for OpenCLIP's. A context is put
into its text tower by a hook on the token embedding; every prompt runs over all positions.
"""

import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import clip
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor

from scripts.benchmarks.text import (
    CLASSES,
    N_CTX,
    TextAmounts,
    classes_of_reference,
    per_image_row,
    relative_difference,
)
from scripts.benchmarks.timing import Row, difference, median_pair
from trainers.modules.clip.backbone import Backbone, load_backbone
from trainers.modules.prompt_encoder import build_prompt_encoder

TOLERANCE = 1e-5
GOAL = 15  # of causal towers at GOAL_CLASSES classes
GOAL_CLASSES = 65
IMAGES = 4

# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, context_length, vocab_size, and width,
# heads and layers of the text tower.
OPENAIS: dict[str, tuple] = {
    "RN50": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "ViT-B/16": (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12),
    "ViT-L/14": (768, 224, 24, 1024, 14, 77, 49408, 768, 12, 12),
}
# Sections of a config.json; what they leave out is that of ViT-B/32.
HUGGING_FACES: dict[str, Any] = {"text_config": {"eos_token_id": 49407}, "vision_config": {}}
# GELU; a ConvNeXt beside a causal tower; a tower that is not causal.
OPEN_CLIPS = ("ViT-B-32", "convnext_base", "MobileCLIP-S1")


@dataclass
class Pair:
    """A CLIP as we have it and as its own code has it, with the same weights.

    Attributes:
        name: of the family.
        ours: Backbone.
        own: its own model.
        tokenize: texts and a context length -> ids, by its own code.
    """

    name: str
    ours: Backbone
    own: Any
    tokenize: Callable[[list[str], int], Tensor]


class OfTransformers:
    """A CLIPModel with the methods of `clip.model.CLIP`.

    Args:
        model: CLIPModel.
    """

    def __init__(self, model: Any) -> None:
        self.model, self.token_embedding = model, model.text_model.embeddings.token_embedding

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) images -> (B, E) features, not normalised."""
        return self._features(self.model.get_image_features(images))

    def encode_text(self, tokens: Tensor) -> Tensor:
        """(B, L) tokens -> (B, E) features, not normalised."""
        return self._features(self.model.get_text_features(tokens))

    def _features(self, made):
        return getattr(made, "pooler_output", made)  # they alone before its version 5


class OwnTextEncoder:
    """The own text tower of a family, for one context with the class name behind it.

    Args:
        pair: of the family.
        classnames: C names.
    """

    def __init__(self, pair: Pair, classnames: Sequence[str]) -> None:
        self.model, self.text = pair.own, getattr(pair.own, "text", pair.own)
        placeholders = " ".join(["X"] * N_CTX)
        texts = [f"{placeholders} {name.replace('_', ' ')}." for name in classnames]
        self.tokens = pair.tokenize(texts, pair.ours.text.context_length)

    def __call__(self, ctx: Tensor) -> Tensor:
        """Context (n_ctx, D) -> L2-normalised text features (C, E)."""

        def put_in(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
            own = ctx.expand(len(embedded), -1, -1)
            return torch.cat([embedded[:, :1], own, embedded[:, 1 + N_CTX :]], dim=1)

        hook = self.text.token_embedding.register_forward_hook(put_in)
        try:
            return F.normalize(self.model.encode_text(self.tokens), dim=-1)
        finally:
            hook.remove()


def family_rows(amounts: TextAmounts, folder: Path, quick: bool = False) -> Iterator[Row]:
    """Yield the rows of all families: image tower, gradients to a context, text tower by number of classes.

    Args:
        folder: for files of weights, which are gone again after each family.
        quick: one number of classes.
    """
    for pair in families(folder):
        yield image_row(pair, amounts.repeats)
        yield gradient_row(pair, amounts.repeats)
        for n_classes in (GOAL_CLASSES,) if quick else CLASSES:
            yield text_row(pair, n_classes, amounts)


def families(folder: Path) -> Iterator[Pair]:
    """Make each family in turn; those of OpenCLIP only where the package is."""
    for name, sizes in OPENAIS.items():
        yield openai_pair(name, sizes, folder)
    try:
        import transformers  # noqa: F401 (whether it is there)
    except ImportError:
        warnings.warn("transformers is not installed, so Hugging Face's family is left out", stacklevel=1)
    else:
        yield hugging_face_pair(folder, HUGGING_FACES)
    try:
        import open_clip  # noqa: F401 (whether it is there)
    except ImportError:
        warnings.warn("open_clip_torch is not installed, so OpenCLIP's families are left out", stacklevel=1)
        return
    for architecture in OPEN_CLIPS:
        yield open_clip_pair(architecture, folder)


def openai_pair(name: str, sizes: tuple, folder: Path) -> Pair:
    """One of OpenAI's architectures, by way of a file."""
    torch.manual_seed(0)
    model = _with_chance(CLIP(*sizes))
    path = folder / "family.pt"
    torch.save(model.state_dict(), path)
    try:
        return Pair(name, load_backbone(str(path)), model, clip.tokenize)
    finally:
        path.unlink()


def hugging_face_pair(folder: Path, sections: dict[str, Any]) -> Pair:
    """A CLIPModel of transformers, by way of a folder in its layout."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    model = _with_chance(CLIPModel(CLIPConfig(**sections)))
    place = folder / "family"
    model.save_pretrained(place)
    try:
        return Pair("hf: ViT-B/32", load_backbone(f"hf:{place}"), OfTransformers(model), clip.tokenize)
    finally:
        shutil.rmtree(place)


def open_clip_pair(architecture: str, folder: Path) -> Pair:
    """One of OpenCLIP's architectures, by way of a file."""
    import open_clip

    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _with_chance(open_clip.create_model(architecture))
    path = folder / "family.pt"
    torch.save(model.state_dict(), path)
    try:
        name = f"open_clip:{architecture}"
        return Pair(name, load_backbone(f"{name}@{path}"), model, open_clip.get_tokenizer(architecture))
    finally:
        path.unlink()


def _with_chance(model):
    """A frozen model whose biases and norms are not at 0 and 1, where mistakes could hide."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "logit" not in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@torch.no_grad()
def image_row(pair: Pair, repeats: int) -> Row:
    """Row: the image tower, time per image, difference of normalised features."""
    side = pair.ours.image_size
    images = torch.randn(IMAGES, 3, side, side)
    (ours, found), (theirs, expected) = median_pair(
        lambda: F.normalize(pair.ours.encode_image(images), dim=-1),
        lambda: F.normalize(pair.own.encode_image(images), dim=-1),
        repeats,
    )
    what, gap = f"image tower, {pair.name}", difference(found, expected)
    return Row(what, 1000 * ours / IMAGES, 1000 * theirs / IMAGES, "ms", None, gap, tolerance=TOLERANCE)


def gradient_row(pair: Pair, repeats: int) -> Row:
    """Row: forward and backward of one context and 7 classes, difference of the context's gradients."""
    classnames = CLASSES[7]
    encoder, own = build_prompt_encoder(pair.ours.text, classnames, n_ctx=N_CTX), OwnTextEncoder(pair, classnames)
    weights = torch.randn(len(classnames), pair.ours.feature_size)
    ctx = 0.05 * torch.randn(N_CTX, encoder.ctx_dim)

    def gradient(encode: Callable[[Tensor], Tensor]) -> Tensor:
        start = ctx.clone().requires_grad_()
        return torch.autograd.grad((encode(start) * weights).sum(), start)[0]

    (ours, found), (theirs, expected) = median_pair(lambda: gradient(encoder), lambda: gradient(own), repeats)
    what, gap = f"gradients to a context, 7 classes, {pair.name}", relative_difference(found, expected)
    return Row(what, 1000 * ours, 1000 * theirs, "ms", None, gap, tolerance=TOLERANCE)


@torch.no_grad()
def text_row(pair: Pair, n_classes: int, amounts: TextAmounts) -> Row:
    """Row: forward of the text tower with a context for each image, time per image."""
    encoder = build_prompt_encoder(pair.ours.text, CLASSES[n_classes], n_ctx=N_CTX)
    own = OwnTextEncoder(pair, classes_of_reference(n_classes, amounts))
    goal = GOAL if n_classes == GOAL_CLASSES and pair.ours.text.can_be_cut else None
    return per_image_row(pair.name, encoder, own, n_classes, amounts, goal, "its own code", tolerance=TOLERANCE)
