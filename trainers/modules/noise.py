"""Noise of the generator that depends on the image, not on the batch."""

from collections.abc import Sequence

import numpy as np
import torch


def image_noise(seed: int, indices: Sequence[int], latent_dim: int, draw: int = 0) -> torch.Tensor:
    """Standard normal noise (B, latent_dim) on the CPU, a function of (seed, draw, image index) alone.

    So test results do not depend on batch size, order, workers or device.

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
