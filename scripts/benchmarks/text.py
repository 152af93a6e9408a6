"""The text tower alone, at the size of ViT-B/16, with a context for each image."""

from typing import NamedTuple

import reference
import torch
from clip.model import CLIP

from datasets.benchmarks import SPG_PACS
from scripts.benchmarks.classes import DOMAIN_NET, OFFICE_HOME
from scripts.benchmarks.timing import Row, difference, median_pair
from trainers.modules.prompt_encoder import PromptEncoder

N_CTX = 4
CLASSES = {7: tuple(SPG_PACS.classes), 65: OFFICE_HOME, 345: DOMAIN_NET}
GOALS = {7: 18, 65: 15, 345: 15}


class Amounts(NamedTuple):
    """Images of both sides; the reference encodes every n-th class, and its time is multiplied by n."""

    ours: int
    reference: int
    every: int = 1


FULL = {7: Amounts(32, 4), 65: Amounts(8, 2), 345: Amounts(4, 1)}
QUICK = {7: Amounts(16, 1), 65: Amounts(4, 1), 345: Amounts(2, 1, every=5)}


def random_clip(image_tower: bool = False) -> CLIP:
    """A CLIP of ViT-B/16's size with random weights; with a tiny image tower where only text is measured."""
    tower = {"vision": 12, "resolution": 224, "vit_width": 768, "patch": 16} if image_tower else {}
    return reference.tiny_clip(embed_dim=512, width=512, layers=12, **tower)


@torch.no_grad()
def text_row(model: CLIP, n_classes: int, amounts: Amounts, repeats: int, name: str) -> Row:
    """Time the forward pass for each image."""
    encoder, names = PromptEncoder(model, CLASSES[n_classes], N_CTX), CLASSES[n_classes][:: amounts.every]
    contexts = 0.05 * torch.randn(amounts.ours, N_CTX, encoder.ctx_dim)
    some = contexts[: amounts.reference]
    (ours, features), (theirs, expected) = median_pair(
        lambda: encoder(contexts),
        lambda: torch.stack([reference.plain_text_features(model, names, context) for context in some]),
        repeats,
    )
    scale = n_classes / len(names) / len(some)
    note = f"per image; batch {len(contexts)}, reference {len(some)} on {len(names)} classes"
    gap = difference(features[: len(some), :: amounts.every], expected)
    what = f"text tower, per-image contexts, {n_classes} classes, {name}"
    return Row(what, 1000 * ours / len(contexts), 1000 * theirs * scale, "ms", GOALS[n_classes], gap, note)
