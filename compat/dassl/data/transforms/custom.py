"""The transforms that torchvision does not have."""

import torch
from torch import nn
from torchvision.transforms import InterpolationMode, RandomCrop
from torchvision.transforms import functional as F


class RandomTranslation(nn.Module):
    """With probability p, resize to 1.125 times ``size`` and crop a random ``size``; otherwise resize to it.

    Args:
        size (tuple of int): (height, width) in pixels.
        p (float): probability.
        interpolation: torchvision's InterpolationMode.
    """

    def __init__(self, size, p=0.5, interpolation=InterpolationMode.BILINEAR):
        super().__init__()
        self.size = tuple(size)
        self.p = p
        self.interpolation = interpolation

    def forward(self, img):
        """From a PIL image of any size to one of ``size``."""
        if torch.rand(()) >= self.p:
            return F.resize(img, self.size, self.interpolation)
        larger = [round(edge * 1.125) for edge in self.size]
        img = F.resize(img, larger, self.interpolation)
        return F.crop(img, *RandomCrop.get_params(img, self.size))


class Cutout(nn.Module):
    """Set squares at random places to zero (DeVries and Taylor 2017); those at the edge are cut off by it.

    Args:
        n_holes (int): number of squares.
        length (int): their side in pixels.
    """

    def __init__(self, n_holes=1, length=16):
        super().__init__()
        self.n_holes = n_holes
        self.length = length

    def forward(self, img):
        """From a tensor (C, H, W) to a new one."""
        img = img.clone()
        height, width = img.shape[-2:]
        for _ in range(self.n_holes):
            top = int(torch.randint(height, ())) - self.length // 2
            left = int(torch.randint(width, ())) - self.length // 2
            img[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return img


class GaussianNoise(nn.Module):
    """With probability p, add Gaussian noise to each value.

    Args:
        mean, std (float): of the noise, in the units of the tensor.
        p (float): probability.
    """

    def __init__(self, mean=0.0, std=0.15, p=0.5):
        super().__init__()
        self.mean = mean
        self.std = std
        self.p = p

    def forward(self, img):
        """From a tensor (C, H, W) to one of the same shape."""
        if torch.rand(()) >= self.p:
            return img
        return img + torch.randn_like(img) * self.std + self.mean


class InstanceNorm(nn.Module):
    """Normalise each channel of an image by its own mean and standard deviation.

    Args:
        eps (float): added to the standard deviation.
    """

    def __init__(self, eps=1e-8):
        super().__init__()
        self.eps = eps

    def forward(self, img):
        """From a tensor (C, H, W) to one of the same shape."""
        std, mean = torch.std_mean(img, dim=(-2, -1), keepdim=True)
        return (img - mean) / (std + self.eps)
