"""The conditional GAN that generates a context from an image feature (SPG, Sec. 3.3)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LEAK = 0.2  # negative slope of every LeakyReLU
BATCH_NORM_EPS = 0.8  # far from PyTorch's 1e-5, but what the published generators were trained with


class Generator(nn.Module):
    """G(f, z) -> context. Keys of the state_dict are the published ones (`model.0.weight`, ...).

    Args:
        feat_dim: E, size of an image feature.
        n_ctx, ctx_dim: shape of a context.
        latent_dim: size of the noise z ~ N(0, I).
    """

    def __init__(self, feat_dim: int, n_ctx: int, ctx_dim: int, latent_dim: int = 100) -> None:
        super().__init__()
        self.n_ctx, self.ctx_dim, self.latent_dim = n_ctx, ctx_dim, latent_dim
        layers: list[nn.Module] = [nn.Linear(latent_dim + feat_dim, 128), nn.LeakyReLU(LEAK)]
        for narrow, wide in ((128, 256), (256, 512), (512, 1024)):
            layers += [nn.Linear(narrow, wide), nn.BatchNorm1d(wide, eps=BATCH_NORM_EPS), nn.LeakyReLU(LEAK)]
        layers += [nn.Linear(1024, n_ctx * ctx_dim), nn.Tanh()]
        self.model = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, features: Tensor, noise: Tensor | None = None) -> Tensor:
        """Generate contexts.

        Args:
            features: (B, E) L2-normalised image features.
            noise: (B, latent_dim); drawn from the global random generator when None.

        Returns:
            (B, n_ctx, D), values in (-1, 1).
        """
        if noise is None:
            noise = torch.randn(len(features), self.latent_dim, dtype=features.dtype, device=features.device)
        return self.model(torch.cat([noise, features], dim=1)).view(-1, self.n_ctx, self.ctx_dim)


class Dropout(nn.Dropout):
    """nn.Dropout, with a mask that on a CPU is drawn in half the time: from uniform numbers, not by Bernoulli's."""

    def forward(self, x: Tensor) -> Tensor:
        """Like nn.Dropout's."""
        if not self.training or x.is_cuda:
            return super().forward(x)
        return x * ((torch.rand_like(x) >= self.p) * (1 / (1 - self.p)))


class Discriminator(nn.Module):
    """Dis(v, f) -> validity of context v for an image with feature f; least-squares, so without a sigmoid.

    Args:
        feat_dim: E, size of an image feature.
        n_ctx, ctx_dim: shape of a context.
    """

    def __init__(self, feat_dim: int, n_ctx: int, ctx_dim: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(n_ctx * ctx_dim + feat_dim, 512),
            nn.LeakyReLU(LEAK),
            nn.Linear(512, 512),
            Dropout(0.4),
            nn.LeakyReLU(LEAK),
            nn.Linear(512, 512),
            Dropout(0.4),
            nn.LeakyReLU(LEAK),
            nn.Linear(512, 1),
        )
        self.apply(_initialise)

    def forward(self, prompts: Tensor, features: Tensor) -> Tensor:
        """Judge contexts.

        Args:
            prompts: (B, n_ctx, D).
            features: (B, E) L2-normalised image features.

        Returns:
            (B, 1), near 1 for contexts taken for prompt labels.
        """
        return self.model(torch.cat([prompts.flatten(1), features], dim=1))


def _initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="leaky_relu")


@dataclass(frozen=True)
class GradientNorms:
    """Largest allowed gradient norm of each parameter tensor, by its role.

    Attributes:
        weight, bias: every parameter but the following.
        special: the parameters named in `special_names`.
        special_names: names (or prefixes ending in ".") within the network's `model`.
    """

    weight: float
    bias: float
    special: float
    special_names: tuple[str, ...]

    def limit(self, name: str) -> float:
        """The limit of the parameter `name` ("model.<index>.<weight or bias>")."""
        if any(name.startswith(special) for special in self.special_names):
            return self.special
        return self.weight if name.endswith("weight") else self.bias


# Which parameters have the third limit, as published: the discriminator's first and last Linear, and the biases
# of the generator's last BatchNorm and last Linear.
DISCRIMINATOR_SPECIAL = ("model.0.", "model.8.")
GENERATOR_SPECIAL = ("model.9.bias", "model.11.bias")


def clip_gradients(network: nn.Module, norms: GradientNorms) -> None:
    """Clip the gradient of each parameter tensor on its own, in place.

    Args:
        network: Generator or Discriminator after a backward pass.
        norms: GradientNorms.
    """
    # The same as clip_grad_norm_([parameter], limit) for each norm above its limit, in a few calls for all of them.
    # Below the limit clip_grad_norm_ is not the identity: its 1e-6 is larger than the limit of the generator's biases.
    clipped = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
    gradients = [gradient for _, gradient in clipped]
    found = torch.stack(torch._foreach_norm(gradients))
    limits = torch.tensor([norms.limit(name) for name, _ in clipped]).to(found)
    torch._foreach_mul_(gradients, torch.where(found > limits, limits / (found + 1e-6), 1.0).unbind())
