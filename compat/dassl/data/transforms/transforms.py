"""The transforms of a config: torchvision's and Dassl's, with Dassl's random draws."""

import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    GaussianBlur,
    InterpolationMode,
    Normalize,
    RandomApply,
    RandomCrop,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from torchvision.transforms import functional as F
from yacs.config import CfgNode

from dassl.utils.errors import RegistryError, UserAssertionError
from dassl.utils.registry import check_availability

from .autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}


class Random2DTranslation:
    """With the probability ``p``, resize to 1.125 times the size and crop at random; else resize to the size."""

    def __init__(
        self,
        height: int,
        width: int,
        p: float = 0.5,
        interpolation: InterpolationMode = InterpolationMode.BILINEAR,
    ) -> None:
        self.height = height
        self.width = width
        self.p = p
        self.interpolation = interpolation

    def __call__(self, img: Image.Image) -> Image.Image:
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(F.resize(img, [height, width], self.interpolation), top, left, self.height, self.width)

    def __repr__(self) -> str:
        return f"random translation (size={self.height}x{self.width}, p={self.p})"


class InstanceNormalization:
    """Normalise each channel of a tensor (C, H, W) by its own mean and standard deviation."""

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        values = img.flatten(1)
        mean, std = values.mean(1).view(-1, 1, 1), values.std(1).view(-1, 1, 1)
        return (img - mean) / (std + self.eps)

    def __repr__(self) -> str:
        return "instance normalization"


class Cutout:
    """Set squares of ``length`` pixels at random places of a tensor (C, H, W) to zero (DeVries and Taylor, 2017)."""

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        img = img.clone()
        height, width = img.shape[-2:]
        half = self.length // 2
        for _ in range(self.n_holes):
            y, x = np.random.randint(height), np.random.randint(width)
            img[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img

    def __repr__(self) -> str:
        return f"cutout (n_holes={self.n_holes}, length={self.length})"


class GaussianNoise:
    """With the probability ``p``, add Gaussian noise to a tensor."""

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        if random.uniform(0, 1) > self.p:
            return img
        return img + (torch.randn(img.size()) * self.std + self.mean)

    def __repr__(self) -> str:
        return f"gaussian noise (mean={self.mean}, std={self.std})"


# INPUT.TRANSFORMS -> transform of a PIL image, from cfg.INPUT. They are applied in this order, ...
_ON_IMAGE = {
    "random_translation": lambda node: Random2DTranslation(*node.SIZE),
    "random_crop": lambda node: RandomCrop(node.SIZE, padding=node.CROP_PADDING),
    "random_resized_crop": lambda node: RandomResizedCrop(
        node.SIZE, scale=node.RRCROP_SCALE, interpolation=_interpolation(node)
    ),
    "center_crop": lambda node: CenterCrop(node.SIZE),
    "random_flip": lambda node: RandomHorizontalFlip(),
    "imagenet_policy": lambda node: ImageNetPolicy(),
    "cifar10_policy": lambda node: CIFAR10Policy(),
    "svhn_policy": lambda node: SVHNPolicy(),
    "randaugment": lambda node: RandAugment(node.RANDAUGMENT_N, node.RANDAUGMENT_M),
    "randaugment_fixmatch": lambda node: RandAugmentFixMatch(node.RANDAUGMENT_N),
    "randaugment2": lambda node: RandAugment2(node.RANDAUGMENT_N),
    "colorjitter": lambda node: ColorJitter(
        node.COLORJITTER_B, node.COLORJITTER_C, node.COLORJITTER_S, node.COLORJITTER_H
    ),
    "randomgrayscale": lambda node: RandomGrayscale(node.RGS_P),
    "gaussian_blur": lambda node: RandomApply([GaussianBlur(node.GB_K)], node.GB_P),
}
# ... then these, to the tensor.
_ON_TENSOR = {
    "cutout": lambda node: Cutout(node.CUTOUT_N, node.CUTOUT_LEN),
    "normalize": lambda node: Normalize(node.PIXEL_MEAN, node.PIXEL_STD, inplace=True),  # ToTensor has made a copy
    "gaussian_noise": lambda node: GaussianNoise(node.GN_MEAN, node.GN_STD),
    "instance_norm": lambda node: InstanceNormalization(),
}
AVAI_CHOICES = [*_ON_IMAGE, *_ON_TENSOR]


def build_transform(cfg: CfgNode, is_train: bool = True, choices: Sequence[str] | None = None) -> Compose | None:
    """Build the transform from PIL image to tensor (3, H, W); None with INPUT.NO_TRANSFORM.

    Training: a resize to INPUT.SIZE (unless a random crop is chosen), then all choices in a fixed order. Testing:
    the smaller edge is resized to max(INPUT.SIZE), then a center crop; only normalize and instance_norm apply.

    Args:
        choices: default INPUT.TRANSFORMS.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    node = cfg.INPUT
    choices = tuple(node.TRANSFORMS if choices is None else choices)
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, "transform (INPUT.TRANSFORMS)", UserAssertionError)
    mode = _interpolation(node)
    if is_train:
        crops = "random_crop" in choices or "random_resized_crop" in choices
        steps = [] if crops else [Resize(tuple(node.SIZE), mode)]
        steps += [build(node) for choice, build in _ON_IMAGE.items() if choice in choices]
    else:
        steps = [Resize(max(node.SIZE), mode), CenterCrop(node.SIZE)]
        choices = [choice for choice in choices if choice in ("normalize", "instance_norm")]
    steps.append(ToTensor())
    steps += [build(node) for choice, build in _ON_TENSOR.items() if choice in choices]
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {step}")
    return Compose(steps)


def build_plain_transform(cfg: CfgNode) -> Compose:
    """Build the transform without augmentation: resize to INPUT.SIZE, to tensor, normalised if chosen."""
    steps = [Resize(cfg.INPUT.SIZE, _interpolation(cfg.INPUT)), ToTensor()]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(_ON_TENSOR["normalize"](cfg.INPUT))
    return Compose(steps)


def _interpolation(node: CfgNode) -> InterpolationMode:
    check_availability(node.INTERPOLATION, INTERPOLATION_MODES, "interpolation (INPUT.INTERPOLATION)", RegistryError)
    return INTERPOLATION_MODES[node.INTERPOLATION]
