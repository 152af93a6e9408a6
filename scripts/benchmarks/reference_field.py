"""The published procedures of the methods beside SPG, written out plainly, as reference.py has SPG's.

Prompts are encoded over all positions of the text tower, images with all tokens in all layers; DPSPG classifies one
image at a time. The learned networks are those of our path, so that only the procedure differs.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from clip.model import CLIP
from torch import Tensor, nn

from scripts.benchmarks.reference import PublishedTextEncoder, image_features, through_layers

# What a step computed: loss, text features (C, E) and image features (B, E), detached.
Step = tuple[Tensor, Tensor, Tensor]


def prompted_image_features(model: CLIP, images: Tensor, tokens: Tensor, deep: Sequence[Tensor]) -> Tensor:
    """L2-normalised features (B, E) of a ViT with tokens (n, W) behind the class token, replaced before layers 2 ..."""
    visual: Any = model.visual
    patches = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(images), 1, -1), patches], dim=1) + visual.positional_embedding
    x = torch.cat([x[:, :1], tokens.expand(len(images), -1, -1), x[:, 1:]], dim=1)
    x = through_layers(visual.transformer, visual.ln_pre(x), deep, len(tokens))
    return F.normalize(visual.ln_post(x[:, 0]) @ visual.proj, dim=-1)


def maple_step(model: CLIP, encoder: PublishedTextEncoder, learner: Any, images: Tensor, labels: Tensor) -> Step:
    """Forward and backward of MaPLe (Khattak et al., CVPR 2023) on a batch.

    Args:
        learner: trainers.maple.CoupledPrompts.
        images: (B, 3, H, W); labels: (B,)
    """
    learner.zero_grad()
    maps, texts = learner.compound_prompt_projections, learner.compound_prompts_text
    text_features = encoder(learner.ctx, list(texts))
    deep = [linear(vectors) for linear, vectors in zip(maps, texts, strict=True)]
    features = prompted_image_features(model, images, learner.proj(learner.ctx), deep)
    loss = F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), labels)
    loss.backward()
    return loss.detach(), text_features.detach(), features.detach()


def promptsrc_step(
    model: CLIP,
    encoder: PublishedTextEncoder,
    learner: Any,
    images: Tensor,
    labels: Tensor,
    fixed: Tensor,
    weights: tuple[float, float],
) -> Step:
    """Forward and backward of PromptSRC (Khattak et al., ICCV 2023, Eq. 3 to 6) on a batch.

    Args:
        learner: trainers.promptsrc.IndependentPrompts.
        images: (B, 3, H, W); labels: (B,)
        fixed: text features (C, E) of the frozen CLIP.
        weights: of the text features' and of the image features' distances.
    """
    learner.zero_grad()
    scale = model.logit_scale.exp()
    frozen = image_features(model, images)
    zero_shot = scale * frozen @ fixed.t()
    text_features = encoder(learner.ctx, list(learner.deep_ctx))
    features = prompted_image_features(model, images, learner.vctx, list(learner.deep_vctx))
    logits = scale * features @ text_features.t()
    loss = F.cross_entropy(logits, labels)
    loss = loss + weights[0] * (text_features - fixed).abs().mean() + weights[1] * (features - frozen).abs().mean()
    ours, theirs = F.log_softmax(logits, dim=1), F.log_softmax(zero_shot, dim=1)
    loss = loss + F.kl_div(ours, theirs, reduction="sum", log_target=True) / logits.numel()
    loss.backward()
    return loss.detach(), text_features.detach(), features.detach()


def kgcoop_step(
    model: CLIP,
    encoder: PublishedTextEncoder,
    learner: Any,
    features: Tensor,
    labels: Tensor,
    fixed: Tensor,
    weight: float,
) -> Step:
    """Forward and backward of KgCoOp (Yao et al., CVPR 2023, Eq. 4 and 5) on a batch of image features (B, E).

    Args:
        learner: trainers.base.context_trainer.PromptLearner.
        labels: (B,)
        fixed: text features (C, E) of the fixed prompts.
        weight: of their distance.
    """
    learner.zero_grad()
    text_features = encoder(learner.ctx)
    loss = F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), labels)
    loss = loss + weight * (1 - (text_features * fixed).sum(dim=-1).mean())
    loss.backward()
    return loss.detach(), text_features.detach(), features


@torch.no_grad()
def dpspg_one_by_one(
    encoder: PublishedTextEncoder, transformers: Mapping[str, nn.Module], features: Iterable[Tensor], alpha: float
) -> Tensor:
    """DPSPG's cosines (N, C), positive less alpha times negative ones (Zhang et al., ICME 2026), image by image.

    Args:
        transformers: "pos" and "neg": trainers.dpspg.FeatureTransformer, in evaluation mode.
        features: N image features (E).
    """
    cosines = []
    for feature in features:
        by_sign = {}
        for sign, network in transformers.items():
            module: Any = network
            # A sequence of one token, as published, and not what follows from that.
            hidden = module.transformer_encoder(feature.view(1, 1, -1)).flatten()
            by_sign[sign] = encoder(module.fc(hidden).view(encoder.n_ctx, -1)) @ feature
        cosines.append(by_sign["pos"] - alpha * by_sign["neg"])
    return torch.stack(cosines)
