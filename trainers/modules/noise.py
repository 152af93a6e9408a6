"""Noise that belongs to an image, not to the moment it is looked at."""

from collections.abc import Sequence

import numpy as np
import torch


def image_noise(seed: int, indices: Sequence[int], latent_dim: int, draw: int = 0) -> torch.Tensor:
    """Standard normal noise, a function of (seed, draw, image index) alone.

    An image gets the same noise whatever the batch size, the order, the workers and the device, so that an
    evaluation result is a property of model and image.

    Args:
        seed: the run's seed (any integer).
        indices: B indices of images within their data set.
        latent_dim: length of each noise vector.
        draw: which of several draws for the same image.

    Returns:
        (B, latent_dim) float32 on the CPU.
    """
    generator = torch.Generator()
    noise = torch.empty(len(indices), latent_dim)
    for row, index in enumerate(indices):
        # SeedSequence mixes the three numbers so that neighbours are independent; it takes no negative ones.
        mixed = np.random.SeedSequence([seed % 2**32, draw, int(index)]).generate_state(1, np.uint64)[0]
        generator.manual_seed(int(mixed))
        torch.randn(latent_dim, generator=generator, out=noise[row])
    return noise
