"""Measures of the text tower: alone, in CoOp and CoCoOp, its memory, and how its cost grows."""

import copy
import functools
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

from scripts.benchmarks.classes import DOMAIN_NET, OFFICE_HOME, PACS
from scripts.benchmarks.reference import PublishedTextEncoder, cocoop_step, coop_step, image_features
from scripts.benchmarks.timing import Row, difference, median_pair, median_seconds, peak_memory_gb
from trainers.cocoop import MetaNet
from trainers.modules.cgan import Generator, image_noise
from trainers.modules.prompt_encoder import PromptEncoder

N_CTX = 4
CLASSES = {7: PACS, 65: OFFICE_HOME, 345: DOMAIN_NET}
CLASS_GOALS = {7: 18, 65: 15, 345: 15}
NOISY = 1.15  # a growth is called linear up to this factor, which timings vary by
FEATURES_AT_A_TIME = 100  # TEST.BATCH_SIZE of the configs


@dataclass(frozen=True)
class TextAmounts:
    """How much is measured: per number of classes, the images of ours and of the reference, and more.

    Attributes:
        ours, reference: {C: images}.
        every: {C: n}: the reference encodes every n-th class, and its time is multiplied (it is linear in classes).
        repeats: timed calls; the median counts.
        cocoop: images of a CoCoOp step for ours and the reference.
        memory_batch: images at a time of the inference whose memory is measured.
        growth_images: numbers of cached features.
    """

    ours: dict[int, int]
    reference: dict[int, int]
    every: dict[int, int]
    repeats: int
    cocoop: tuple[int, int]
    memory_batch: int
    growth_images: tuple[int, ...]


FULL = TextAmounts({7: 32, 65: 8, 345: 4}, {7: 4, 65: 2, 345: 1}, {}, 3, (8, 2), 32, (1_000, 10_000, 100_000))
QUICK = TextAmounts({7: 16, 65: 4, 345: 2}, {7: 1, 65: 1, 345: 1}, {345: 5}, 1, (8, 1), 4, (1_000, 2_000, 8_000))


def random_clip(size: str, image_tower: bool = False, seed: int = 0) -> CLIP:
    """A CLIP with random weights: the text tower of "ViT-B/16" or "RN50" in full size, or a small one ("small").

    Args:
        image_tower: False puts a small image tower in the place of the real one, where only text is measured.
    """
    torch.manual_seed(seed)
    embed = {"ViT-B/16": 512, "RN50": 1024, "small": 32}[size]
    width, layers = (64, 2) if size == "small" else (512, 12)
    vision: tuple = (32, 1, 64, 16)
    if image_tower and size == "ViT-B/16":
        vision = (224, 12, 768, 16)
    elif image_tower and size == "RN50":
        vision = (224, (3, 4, 6, 3), 64, None)
    resolution, vision_layers, vision_width, patch = vision
    model = CLIP(embed, resolution, vision_layers, vision_width, patch, 77, 49408, width, width // 64, layers)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and "logit_scale" not in name:  # biases and norms begin at 0 and 1
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def text_alone(name: str, model: CLIP, n_classes: int, amounts: TextAmounts, goal: float | None = None) -> Row:
    """Row: forward of the text tower with a context for each image, time per image."""
    encoder = PromptEncoder(model, CLASSES[n_classes], N_CTX)
    published = PublishedTextEncoder(model, classes_of_reference(n_classes, amounts), N_CTX)
    return per_image_row(name, encoder, published, n_classes, amounts, goal)


def classes_of_reference(n_classes: int, amounts: TextAmounts) -> tuple[str, ...]:
    """The class names that the reference encodes: all, or every few of them."""
    return CLASSES[n_classes][:: amounts.every.get(n_classes, 1)]


@torch.no_grad()
def per_image_row(
    name: str,
    encoder: PromptEncoder,
    plain: Any,
    n_classes: int,
    amounts: TextAmounts,
    goal: float | None,
    whose: str = "reference",
    **more: Any,
) -> Row:
    """Row: forward of the text tower with a context for each image, time per image.

    Args:
        name: of the tower.
        encoder: ours, of all classes.
        plain: has the `tokens` of `classes_of_reference`, and makes their features (C, E) of one context.
        n_classes: key of CLASSES.
        amounts: how much is measured.
        goal: ratio.
        whose: what the other side is called.
        more: of the Row.
    """
    step, n_reference = amounts.every.get(n_classes, 1), amounts.reference[n_classes]
    contexts = 0.05 * torch.randn(amounts.ours[n_classes], N_CTX, encoder.ctx_dim)
    (ours, features), (theirs, expected) = median_pair(
        lambda: encoder(contexts), lambda: torch.stack([plain(ctx) for ctx in contexts[:n_reference]]), amounts.repeats
    )
    return Row(
        f"text tower, per-image contexts, {n_classes} classes, {name}",
        1000 * ours / len(contexts),
        1000 * theirs * n_classes / len(plain.tokens) / n_reference,
        "ms",
        goal,
        difference(features[:n_reference, ::step], expected),
        f"per image; batch {len(contexts)}, {whose} {n_reference}"
        + (f" on {len(plain.tokens)} classes, scaled" if step > 1 else ""),
        **more,
    )


def coop(
    name: str,
    model: CLIP,
    classnames: Sequence[str],
    amounts: TextAmounts,
    goal: float | None = None,
    batch: int = 32,
) -> Row:
    """Row: forward and backward of the text tower with one shared context (CoOp), time per step."""
    encoder, published = PromptEncoder(model, classnames, N_CTX), PublishedTextEncoder(model, classnames, N_CTX)
    features = F.normalize(torch.randn(batch, model.text_projection.shape[1]), dim=-1)
    labels = torch.arange(batch) % len(classnames)
    ours_ctx = (0.05 * torch.randn(N_CTX, encoder.ctx_dim)).requires_grad_()
    their_ctx = ours_ctx.detach().clone().requires_grad_()

    (ours, found), (theirs, expected) = median_pair(
        lambda: coop_step(model, encoder, ours_ctx, features, labels),
        lambda: coop_step(model, published, their_ctx, features, labels),
        amounts.repeats,
    )
    gap = max(difference(found, expected), relative_difference(ours_ctx.grad, their_ctx.grad))
    what = f"CoOp, forward and backward, {len(classnames)} classes, {name}"
    return Row(what, 1000 * ours, 1000 * theirs, "ms", goal, gap, "per step, image features given")


def relative_difference(ours: Tensor | None, reference: Tensor | None) -> float:
    """Largest difference of two gradients, relative to the largest entry of the reference (at least 1)."""
    if ours is None or reference is None:
        raise ValueError("a side has no gradient")
    return difference(ours, reference) / max(1.0, reference.abs().max().item())


def cocoop(name: str, model: CLIP, classnames: Sequence[str], amounts: TextAmounts, goal: float | None = None) -> Row:
    """Row: a CoCoOp step with its image tower, time per image."""
    n_ours, n_reference = amounts.cocoop
    side = model.visual.input_resolution
    images, labels = torch.randn(n_ours, 3, side, side), torch.arange(n_ours) % len(classnames)
    encoder, published = PromptEncoder(model, classnames, N_CTX), PublishedTextEncoder(model, classnames, N_CTX)
    ctx = (0.05 * torch.randn(N_CTX, encoder.ctx_dim)).requires_grad_()
    meta_net = MetaNet(model.text_projection.shape[1], encoder.ctx_dim)
    their_ctx, their_net = ctx.detach().clone().requires_grad_(), copy.deepcopy(meta_net)

    (ours, found), (theirs, expected) = median_pair(
        lambda: batched_cocoop_step(model, encoder, ctx, meta_net, images, labels),
        lambda: cocoop_step(model, published, their_ctx, their_net, images[:n_reference], labels[:n_reference]),
        amounts.repeats,
    )
    # Gradients can be compared on the same images only.
    batched_cocoop_step(model, encoder, ctx, meta_net, images[:n_reference], labels[:n_reference])
    gaps = [difference(found[:n_reference], expected), relative_difference(ctx.grad, their_ctx.grad)]
    pairs = zip(meta_net.parameters(), their_net.parameters(), strict=True)
    gaps += [relative_difference(ours.grad, theirs.grad) for ours, theirs in pairs]
    what = f"CoCoOp step at batch {n_ours}, {len(classnames)} classes, {name}"
    note = f"per image, image tower included; reference on {n_reference}"
    return Row(what, 1000 * ours / n_ours, 1000 * theirs / n_reference, "ms", goal, max(gaps), note)


def batched_cocoop_step(
    model: CLIP, encoder: PromptEncoder, ctx: Tensor, meta_net: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """Our CoCoOp step: what trainers/cocoop.py does with a batch. Returns cosines (B, C)."""
    ctx.grad = None
    meta_net.zero_grad()
    features = image_features(model, images)
    text_features = encoder(ctx + meta_net(features).unsqueeze(1))
    cosines = torch.einsum("be,bce->bc", features, text_features)
    F.cross_entropy(model.logit_scale.exp() * cosines, labels).backward()
    return cosines.detach()


# ---- memory ----


def memory_rows(amounts: TextAmounts) -> list[Row]:
    """Rows: peak memory with DomainNet's 345 classes at ViT-B/16 size, of processes of their own."""
    batch = amounts.memory_batch
    inference = peak_memory_gb(infer_once, "ViT-B/16", batch)
    training = peak_memory_gb(train_once, "ViT-B/16")
    note = "the whole process, weights of the text tower included"
    return [
        Row(f"peak memory, inference, 345 classes, batch {batch}, ViT-B/16 size", inference, None, "GB", 8, note=note),
        Row("peak memory, CoOp forward and backward, 345 classes, ViT-B/16 size", training, None, "GB", 4, note=note),
    ]


def infer_once(size: str, batch: int) -> None:
    """Encode the prompts of 345 classes for a batch of contexts."""
    encoder = PromptEncoder(random_clip(size), DOMAIN_NET, N_CTX)
    with torch.no_grad():
        encoder(torch.zeros(batch, N_CTX, encoder.ctx_dim))


def train_once(size: str) -> None:
    """A step of CoOp with 345 classes."""
    encoder = PromptEncoder(random_clip(size), DOMAIN_NET, N_CTX)
    encoder(torch.zeros(N_CTX, encoder.ctx_dim, requires_grad=True)).sum().backward()


# ---- growth ----


def growth(
    model: CLIP, amounts: TextAmounts, class_counts: Iterable[int] = (7, 16, 65, 150, 345), batch: int = 32
) -> dict[str, dict[str, Any]]:
    """How time per image grows with the number of classes, and with that of cached features (7 classes).

    Returns:
        dict of two entries, each {"seconds_per_image": {number: s}, "linear_or_better": bool}.
    """
    by_classes = {}
    for n_classes in class_counts:
        predictor = _Predictor(model, DOMAIN_NET[:n_classes])
        features = torch.randn(batch, model.text_projection.shape[1])
        by_classes[n_classes] = median_seconds(functools.partial(predictor, features, 0), 3)[0] / batch

    predictor, by_images = _Predictor(model, PACS), {}
    for n_images in amounts.growth_images:
        by_images[n_images] = _seconds_for_images(predictor, n_images) / n_images
    return {
        "classes": {"seconds_per_image": by_classes, "linear_or_better": at_most_linear(by_classes)},
        "images": {
            "seconds_per_image": by_images,
            # Time per image must not grow at all for the whole to be linear.
            "linear_or_better": max(by_images.values()) <= NOISY * by_images[min(by_images)],
        },
    }


def at_most_linear(cost: dict[int, float]) -> bool:
    """Whether cost {number: s} grows no faster than the number, from each number to the next."""
    numbers = sorted(cost)
    pairs = zip(numbers, numbers[1:], strict=False)
    return all(cost[more] / cost[few] <= NOISY * more / few for few, more in pairs)


class _Predictor:
    """Generator and prompt encoder, as SPG predicts with them."""

    def __init__(self, model: CLIP, classnames: Sequence[str]):
        self.encoder = PromptEncoder(model, classnames, N_CTX)
        feat_dim = model.text_projection.shape[1]
        self.generator = Generator(feat_dim, N_CTX, self.encoder.ctx_dim).eval()

    @torch.no_grad()
    def __call__(self, features: Tensor, first_index: int) -> Tensor:
        noise = image_noise(1, range(first_index, first_index + len(features)), self.generator.latent_dim)
        text_features = self.encoder(self.generator(features, noise))
        return torch.einsum("be,bce->bc", features, text_features)


def _seconds_for_images(predictor: _Predictor, n_images: int) -> float:
    """Time of one pass over features that lie in a memory-mapped file, as cached ones do."""
    feat_dim = predictor.encoder.tower.feature_size
    with tempfile.TemporaryFile() as handle:
        features = np.memmap(handle, np.float32, "w+", shape=(n_images, feat_dim))
        features[:] = np.random.default_rng(0).standard_normal((n_images, feat_dim), np.float32)

        def classify():
            for start in range(0, n_images, FEATURES_AT_A_TIME):
                predictor(torch.from_numpy(np.array(features[start : start + FEATURES_AT_A_TIME])), start)

        return median_seconds(classify, 1)[0]
