"""Slow, obvious references: a tiny CLIP, prompts encoded over all 77 positions as CoOp does it, images with prompts."""

import clip
import torch
from clip.clip import _tokenizer as tokenizer
from clip.model import CLIP


def tiny_clip(seed=0, embed_dim=32, width=64, layers=3, vision=(1, 1, 1, 1), resolution=32, vit_width=64):
    """A CLIP with random weights: a ModifiedResNet (tuple of layers) or a ViT (number of layers)."""
    torch.manual_seed(seed)
    vision_width, patch = (8, None) if isinstance(vision, tuple) else (vit_width, 8)
    model = CLIP(embed_dim, resolution, vision, vision_width, patch, 77, 49408, width, width // 64, layers)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:  # biases and norms start at 0 and 1, where mistakes could hide
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


def plain_text_features(model, classnames, ctx, position="end", deep=()):
    """Text features (C, E) of one context (n_ctx, D) or of class-specific ones (C, n_ctx, D).

    deep: contexts (n_ctx, D) that replace the outputs at positions 1 to n_ctx before layers 2, 3, ...
    """
    n_ctx = ctx.shape[-2]
    names = [name.replace("_", " ") for name in classnames]
    tokens = clip.tokenize([" ".join(["X"] * n_ctx) + f" {name}." for name in names])
    embedding = model.token_embedding(tokens).type(model.dtype)
    ctx = ctx.expand(len(names), -1, -1)
    prefix, suffix = embedding[:, :1], embedding[:, 1 + n_ctx :]
    rows = []
    for i, name in enumerate(names):
        length = len(tokenizer.encode(name))
        before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
        rows.append(torch.cat([prefix[i], ctx[i, :before], suffix[i, :length], ctx[i, before:], suffix[i, length:]]))
    x = torch.stack(rows) + model.positional_embedding.type(model.dtype)
    x = through_layers(model.transformer, x, deep, n_ctx)
    x = model.ln_final(x).type(model.dtype)
    x = x[torch.arange(len(names)), tokens.argmax(dim=-1)] @ model.text_projection
    return x / x.norm(dim=-1, keepdim=True)


def plain_image_features(model, images, tokens, deep=()):
    """Unnormalised features (B, E) of a ViT with tokens (n, W) behind the class token, replaced before layers 2 ..."""
    visual = model.visual
    patches = visual.conv1(images.type(model.dtype)).flatten(2).transpose(1, 2)
    class_token = visual.class_embedding.type(model.dtype).expand(len(images), 1, -1)
    x = torch.cat([class_token, patches], dim=1) + visual.positional_embedding.type(model.dtype)
    x = torch.cat([x[:, :1], tokens.type(model.dtype).expand(len(images), -1, -1), x[:, 1:]], dim=1)
    x = through_layers(visual.transformer, visual.ln_pre(x), deep, len(tokens))
    return visual.ln_post(x[:, 0]) @ visual.proj


def through_layers(transformer, x, deep, n):
    """Run all layers on x (B, T, D); before layers 2, 3, ... one of `deep` (n, D) replaces positions 1 to n."""
    for i, block in enumerate(transformer.resblocks):
        if 0 < i <= len(deep):
            x = torch.cat([x[:, :1], deep[i - 1].type(x.dtype).expand(len(x), -1, -1), x[:, 1 + n :]], dim=1)
        x = block(x.permute(1, 0, 2)).permute(1, 0, 2)
    return x
