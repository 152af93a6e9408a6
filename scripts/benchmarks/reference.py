"""The published procedure, written out plainly: what scripts/benchmark.py measures our path against.

No part of the product, and never made faster: every prompt is encoded over all positions of the text tower; CoCoOp
trains, and SPG tests, one image at a time; validation images are encoded again in each epoch; the independent batch of
stage II is found by walking the training loader from its start to a random position. The networks themselves
(generator, discriminator, meta-net) and CLIP are those of our path, so that only the procedure differs. One
deviation: noise is passed in, so that both sides can be given the same.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import clip
import torch
import torch.nn.functional as F
from clip.clip import _tokenizer as tokenizer
from clip.model import CLIP, Transformer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset

from trainers.modules.cgan import GradientNorms

# Context (n_ctx, D) -> L2-normalised text features (C, E).
TextEncoder = Callable[[Tensor], Tensor]
Batch = dict[str, Any]


class PublishedTextEncoder:
    """CoOp's PromptLearner and TextEncoder for one context, class name at the end (Zhou et al., IJCV 2022).

    Args:
        model: clip.model.CLIP.
        classnames: C names.
        n_ctx: number of context vectors.
        words: fixed ones between them and the class name (MaPLe: "of a").
    """

    def __init__(self, model: CLIP, classnames: Sequence[str], n_ctx: int, words: str = "") -> None:
        self.model, self.n_ctx = model, n_ctx
        names = [name.replace("_", " ") for name in classnames]
        placeholders = " ".join(["X"] * n_ctx + words.split())
        context_length = model.positional_embedding.shape[0]
        self.tokens = torch.cat([clip.tokenize(f"{placeholders} {name}.", context_length) for name in names])
        with torch.no_grad():
            embedding = model.token_embedding(self.tokens)
        self.prefix, self.suffix = embedding[:, :1], embedding[:, 1 + n_ctx :]

    def __call__(self, ctx: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Context (n_ctx, D) -> L2-normalised text features (C, E), over all positions of every prompt.

        Args:
            deep: contexts (n_ctx, D) that take the places of layers' outputs, before layers 2, 3, ...
        """
        ctx = ctx.unsqueeze(0).expand(len(self.tokens), -1, -1)
        x = torch.cat([self.prefix, ctx, self.suffix], dim=1) + self.model.positional_embedding
        x = through_layers(self.model.transformer, x, deep, self.n_ctx)
        x = self.model.ln_final(x)
        x = x[torch.arange(len(x)), self.tokens.argmax(dim=-1)] @ self.model.text_projection
        return x / x.norm(dim=-1, keepdim=True)


def through_layers(transformer: Transformer, x: Tensor, deep: Sequence[Tensor], n: int) -> Tensor:
    """All layers on x (B, T, D); before layers 2, 3, ... one of `deep` (n, D) takes positions 1 to n."""
    x = x.permute(1, 0, 2)
    for i, block in enumerate(transformer.resblocks):
        if 0 < i <= len(deep):
            vectors = deep[i - 1].unsqueeze(1).expand(-1, x.shape[1], -1)
            x = torch.cat([x[:1], vectors, x[1 + n :]])
        x = block(x)
    return x.permute(1, 0, 2)


def initial_context(model: CLIP, words: str = "a photo of a") -> Tensor:
    """Embeddings (n_ctx, D) of the words that contexts start from."""
    return model.token_embedding.weight[tokenizer.encode(words)].detach().clone()


@torch.no_grad()
def image_features(model: CLIP, images: Tensor) -> Tensor:
    """(B, 3, H, W) -> L2-normalised features (B, E)."""
    features = model.encode_image(images)
    return features / features.norm(dim=-1, keepdim=True)


def training_loader(dataset: Dataset, batch_size: int, num_workers: int) -> DataLoader:
    """The published training loader: shuffled, the last incomplete batch dropped, workers started anew each epoch."""
    return DataLoader(dataset, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=num_workers)


# ---- CoOp and stage I ----


def coop_step(
    model: CLIP,
    encoder: TextEncoder,
    ctx: Tensor,
    images_or_features: Tensor,
    labels: Tensor,
    optimizer: Optimizer | None = None,
) -> Tensor:
    """One step of CoOp on a batch: forward, backward, update if there is an optimiser.

    Args:
        ctx: (n_ctx, D) with requires_grad.
        images_or_features: (B, 3, H, W) images, or L2-normalised features (B, E).
        labels: (B,)

    Returns:
        text features (C, E), detached; ctx.grad is set.
    """
    images = images_or_features
    features = image_features(model, images) if images.dim() == 4 else images
    text_features = encoder(ctx)
    loss = F.cross_entropy(model.logit_scale.exp() * features @ text_features.t(), labels)
    ctx.grad = None
    loss.backward()
    if optimizer is not None:
        optimizer.step()
    return text_features.detach()


def stage1_training(
    model: CLIP, encoder: TextEncoder, ctx: Tensor, optimizer: Optimizer, loader: Iterable[Batch]
) -> None:
    """An epoch of stage I (SPG_CoOp) on a training loader."""
    for batch in loader:
        coop_step(model, encoder, ctx, batch["img"], batch["label"], optimizer)


@torch.no_grad()
def stage1_validation(model: CLIP, encoder: TextEncoder, ctx: Tensor, loader: Iterable[Batch]) -> Tensor:
    """Cosines (N, C) of validation images: images and prompts encoded anew for every batch."""
    return torch.cat([image_features(model, batch["img"]) @ encoder(ctx).t() for batch in loader])


# ---- CoCoOp ----


def cocoop_step(
    model: CLIP, encoder: TextEncoder, ctx: Tensor, meta_net: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """CoCoOp on a batch, image by image (its published batch size is 1); gradients add up to the batch's.

    Args:
        ctx: (n_ctx, D) with requires_grad; meta_net: features (1, E) -> shift of the context (1, D).
        images: (B, 3, H, W); labels: (B,)

    Returns:
        cosines (B, C), detached.
    """
    ctx.grad = None
    meta_net.zero_grad()
    cosines = []
    for image, label in zip(images.split(1), labels.split(1), strict=True):
        feature = image_features(model, image)
        similarity = feature @ encoder(ctx + meta_net(feature)).t()
        loss = F.cross_entropy(model.logit_scale.exp() * similarity, label) / len(images)
        loss.backward()
        cosines.append(similarity.detach())
    return torch.cat(cosines)


# ---- stage II ----


def independent_batch(loader: Iterable[Batch], position: int) -> Batch:
    """The batch at `position`, found by walking the loader from its start."""
    for i, batch in enumerate(loader):
        if i == position:
            return batch
    raise IndexError(f"the loader has no batch {position}")


def stage2_step(
    model: CLIP,
    networks: tuple[nn.Module, nn.Module],
    optimizers: tuple[Optimizer, Optimizer],
    norms: tuple[GradientNorms, GradientNorms] | None,
    batch: Batch,
    independent: Batch,
    prompt_labels: Tensor,
) -> tuple[Tensor, tuple[float, float]]:
    """One step of stage II (SPG, Algorithm 1).

    Args:
        networks, optimizers, norms: each a pair for generator and discriminator; norms None: no gradient clipping.
        batch, independent: dicts with "img" and "domain" (the latter only of `batch`).
        prompt_labels: (number of domains, n_ctx, D).

    Returns:
        generated contexts (B, n_ctx, D), and the losses (L_D, L_G).
    """
    generator, discriminator = networks
    features, other = image_features(model, batch["img"]), image_features(model, independent["img"])
    real, fake = torch.ones(len(features), 1), torch.zeros(len(other), 1)
    generated = generator(other)
    loss_d = F.mse_loss(discriminator(prompt_labels[batch["domain"]], features), real)
    loss_d = loss_d + F.mse_loss(discriminator(generated.detach(), other), fake)
    _update(discriminator, optimizers[1], norms and norms[1], loss_d)
    loss_g = F.mse_loss(discriminator(generated, other), real)
    _update(generator, optimizers[0], norms and norms[0], loss_g)
    return generated.detach(), (loss_d.item(), loss_g.item())


def _update(network: nn.Module, optimizer: Optimizer, norms: GradientNorms | None, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    if norms is not None:
        for name, parameter in network.named_parameters():
            if parameter.grad is not None and parameter.grad.norm() > norms.limit(name):
                torch.nn.utils.clip_grad_norm_([parameter], norms.limit(name))
    optimizer.step()


def stage2_training(
    step: Callable[[Batch, Batch], object], loader: DataLoader, positions: Sequence[int] | None = None
) -> None:
    """An epoch of stage II, or its first steps.

    Args:
        step: called with the batch and the independent batch.
        loader: the training loader.
        positions: where the independent batches are found, one a step; None: at random, for the whole epoch.
    """
    if positions is None:
        positions = [random.randrange(len(loader)) for _ in range(len(loader))]
    for batch, position in zip(loader, positions, strict=False):
        step(batch, independent_batch(loader, position))


@torch.no_grad()
def classify_one_by_one(
    model: CLIP, encoder: TextEncoder, generator: nn.Module, loader: Iterable[Batch], noise: Tensor
) -> Tensor:
    """Cosines (N, C) of a loader's images, each against the prompts that are generated for it.

    Args:
        loader: batches of one image.
        noise: (at least N, latent_dim).
    """
    generator.eval()
    cosines = []
    for batch, z in zip(loader, noise.split(1), strict=False):
        feature = image_features(model, batch["img"])
        cosines.append(feature @ encoder(generator(feature, z)[0]).t())
    return torch.cat(cosines)
