"""The conditional GAN that generates a context from an image feature (SPG, Sec. 3.3), and its noise."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

LEAK = 0.2  # negative slope of every LeakyReLU
BATCH_NORM_EPS = 0.8  # PyTorch's default is 1e-5; the published generators use 0.8


class Generator(nn.Module):
    """G(f, z) -> context (n_ctx, D), for an image feature f (E) and noise z. The state_dict has the published keys."""

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
        """Generate contexts (B, n_ctx, D) with values in (-1, 1).

        Args:
            features: (B, E) L2-normalised image features.
            noise: (B, latent_dim); None draws from the global random generator.
        """
        if noise is None:
            noise = torch.randn(len(features), self.latent_dim, dtype=features.dtype, device=features.device)
        return self.model(torch.cat([noise, features], dim=1)).view(-1, self.n_ctx, self.ctx_dim)


def image_noise(seed: int, indices: Sequence[int], latent_dim: int, draw: int = 0) -> Tensor:
    """Draw standard normal noise (B, latent_dim) on the CPU, as a function of (seed, draw, image index) alone.

    Test results therefore do not depend on batch size, order, workers or device.

    Args:
        indices: B indices of images within their split.
        draw: number of the draw, for several contexts of one image.
    """
    generator = torch.Generator()
    noise = torch.empty(len(indices), latent_dim)
    for row, index in enumerate(indices):
        # SeedSequence makes independent seeds of neighbouring numbers; it takes no negative ones.
        mixed = np.random.SeedSequence([seed % 2**32, draw, int(index)]).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(mixed))
        torch.randn(latent_dim, generator=generator, out=noise[row])
    return noise


class Dropout(nn.Dropout):
    """nn.Dropout that draws its mask from uniform numbers on a CPU, which takes half the time."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or x.is_cuda:
            return super().forward(x)
        return x * ((torch.rand_like(x) >= self.p) * (1 / (1 - self.p)))


class Discriminator(nn.Module):
    """Dis(v, f) -> validity of a context v (n_ctx, D) for an image feature f (E). Least squares need no sigmoid."""

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
        """Validity (B, 1) of prompts (B, n_ctx, D) for features (B, E): near 1 for prompt labels, 0 for generated."""
        return self.model(torch.cat([prompts.flatten(1), features], dim=1))


def _initialise(module):
    if isinstance(module, nn.Linear):
        nn.init.kaiming_uniform_(module.weight, mode="fan_in", nonlinearity="leaky_relu")


@dataclass(frozen=True)
class GradientNorms:
    """Largest gradient norm of each parameter tensor: of weights, of biases, and of those with special names."""

    weight: float
    bias: float
    special: float
    special_names: tuple[str, ...]  # prefixes of names

    def limit(self, name: str) -> float:
        if name.startswith(self.special_names):
            return self.special
        return self.weight if name.endswith("weight") else self.bias


# As published: the discriminator's first and last Linear; the biases of the generator's last BatchNorm and last Linear.
DISCRIMINATOR_SPECIAL = ("model.0.", "model.8.")
GENERATOR_SPECIAL = ("model.9.bias", "model.11.bias")


def clip_gradients(network: nn.Module, norms: GradientNorms) -> None:
    """Clip the gradient of each parameter tensor of a Generator or Discriminator by itself, in place."""
    # Equal to clip_grad_norm_([parameter], limit) for norms above the limit, in a few calls for all parameters. Below
    # the limit, clip_grad_norm_ scales too: its epsilon 1e-6 is larger than the limit 5e-8 of the generator's biases.
    clipped = [(name, p.grad) for name, p in network.named_parameters() if p.grad is not None]
    gradients = [gradient for _, gradient in clipped]
    found = torch.stack(torch._foreach_norm(gradients))
    limits = torch.tensor([norms.limit(name) for name, _ in clipped]).to(found)
    torch._foreach_mul_(gradients, torch.where(found > limits, limits / (found + 1e-6), 1.0).unbind())
