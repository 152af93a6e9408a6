"""The transforms a configuration describes: torchvision's where Dassl takes them from there."""

import random

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

from dassl.utils.errors import RegistryError, UserAssertionError
from dassl.utils.registry import check_availability

from .autoaugment import CIFAR10Policy, ImageNetPolicy, SVHNPolicy
from .randaugment import RandAugment, RandAugment2, RandAugmentFixMatch

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

AVAI_CHOICES = [
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "imagenet_policy",
    "cifar10_policy",
    "svhn_policy",
    "randaugment",
    "randaugment_fixmatch",
    "randaugment2",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
]

# The classes below give the bits that Dassl's give: they draw from the same generators in the same order (python's,
# NumPy's for Cutout, torch's for the noise itself) and compute in the same order.


class Random2DTranslation:
    """With probability p, resize to 1.125 times the size and crop at random; otherwise resize to the size.

    Args:
        height, width (int): the size in pixels.
        p (float): probability.
        interpolation: torchvision's InterpolationMode.
    """

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
        """From a PIL image of any size to one of (height, width)."""
        if random.uniform(0, 1) > self.p:
            return F.resize(img, [self.height, self.width], self.interpolation)
        height, width = round(self.height * 1.125), round(self.width * 1.125)
        left = round(random.uniform(0, width - self.width))
        top = round(random.uniform(0, height - self.height))
        return F.crop(F.resize(img, [height, width], self.interpolation), top, left, self.height, self.width)

    def __repr__(self) -> str:
        return f"random translation (size={self.height}x{self.width}, p={self.p})"


class InstanceNormalization:
    """Normalise each channel of an image by its own mean and standard deviation.

    Args:
        eps (float): added to the standard deviation.
    """

    def __init__(self, eps: float = 1e-8) -> None:
        self.eps = eps

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """From a tensor (C, H, W) to one of the same shape."""
        values = img.flatten(1)
        mean, std = values.mean(1).view(-1, 1, 1), values.std(1).view(-1, 1, 1)
        return (img - mean) / (std + self.eps)

    def __repr__(self) -> str:
        return "instance normalization"


class Cutout:
    """Set squares at random places to zero (DeVries and Taylor 2017); those at the edge are cut off by it.

    Args:
        n_holes (int): number of squares.
        length (int): their side in pixels, rounded down to an even number.
    """

    def __init__(self, n_holes: int = 1, length: int = 16) -> None:
        self.n_holes = n_holes
        self.length = length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """From a tensor (C, H, W) to a new one."""
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
    """With probability p, add Gaussian noise to each value.

    Args:
        mean, std (float): of the noise, in the units of the tensor.
        p (float): probability.
    """

    def __init__(self, mean: float = 0, std: float = 0.15, p: float = 0.5) -> None:
        self.mean = mean
        self.std = std
        self.p = p

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """From a tensor (C, H, W) to one of the same shape."""
        if random.uniform(0, 1) > self.p:
            return img
        return img + (torch.randn(img.size()) * self.std + self.mean)

    def __repr__(self) -> str:
        return f"gaussian noise (mean={self.mean}, std={self.std})"


def build_transform(cfg, is_train=True, choices=None):
    """Build the transform from PIL image to tensor that INPUT describes.

    Training: a resize to INPUT.SIZE comes first, unless ``random_crop`` or ``random_resized_crop`` is chosen;
    then the chosen augmentations, in a fixed order whatever the order of the choices. Testing: the smaller
    edge is resized to max(INPUT.SIZE), then the center INPUT.SIZE is cropped; of the choices only
    ``normalize`` and ``instance_norm`` apply.

    Args:
        cfg: the configuration.
        is_train (bool): training or testing.
        choices (list of str): names out of AVAI_CHOICES; None: INPUT.TRANSFORMS.

    Returns:
        a callable from a PIL image to a float tensor (3, H, W); None with INPUT.NO_TRANSFORM.

    Raises:
        UserAssertionError: unknown transform.
        RegistryError: unknown interpolation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = tuple(cfg.INPUT.TRANSFORMS if choices is None else choices)
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, "transform (INPUT.TRANSFORMS)", UserAssertionError)
    normalize = Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    build = _build_transform_train if is_train else _build_transform_test
    tfm = build(cfg, choices, "x".join(map(str, cfg.INPUT.SIZE)), normalize)
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in tfm.transforms:
            print(f"+ {step}")
    return tfm


def build_plain_transform(cfg):
    """Build the transform without augmentation: resize to INPUT.SIZE, to tensor, normalised if chosen."""
    steps = [Resize(cfg.INPUT.SIZE, _interpolation(cfg)), ToTensor()]
    if "normalize" in cfg.INPUT.TRANSFORMS:
        steps.append(Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return Compose(steps)


def _interpolation(cfg):
    name = cfg.INPUT.INTERPOLATION
    check_availability(name, INTERPOLATION_MODES, "interpolation (INPUT.INTERPOLATION)", RegistryError)
    return INTERPOLATION_MODES[name]


def _build_transform_train(cfg, choices, target_size, normalize):
    """The transform for training: names out of AVAI_CHOICES, the size as text (not used), and the normalisation."""
    node, size, mode = cfg.INPUT, tuple(cfg.INPUT.SIZE), _interpolation(cfg)
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append(Resize(size, mode))
    # One row a choice, in the order in which they are applied to the PIL image ...
    on_image = {
        "random_translation": lambda: Random2DTranslation(*size),
        "random_crop": lambda: RandomCrop(size, padding=node.CROP_PADDING),
        "random_resized_crop": lambda: RandomResizedCrop(size, scale=node.RRCROP_SCALE, interpolation=mode),
        "center_crop": lambda: CenterCrop(size),
        "random_flip": RandomHorizontalFlip,
        "imagenet_policy": ImageNetPolicy,
        "cifar10_policy": CIFAR10Policy,
        "svhn_policy": SVHNPolicy,
        "randaugment": lambda: RandAugment(node.RANDAUGMENT_N, node.RANDAUGMENT_M),
        "randaugment_fixmatch": lambda: RandAugmentFixMatch(node.RANDAUGMENT_N),
        "randaugment2": lambda: RandAugment2(node.RANDAUGMENT_N),
        "colorjitter": lambda: ColorJitter(
            node.COLORJITTER_B, node.COLORJITTER_C, node.COLORJITTER_S, node.COLORJITTER_H
        ),
        "randomgrayscale": lambda: RandomGrayscale(node.RGS_P),
        "gaussian_blur": lambda: RandomApply([GaussianBlur(node.GB_K)], node.GB_P),
    }
    # ... and to the tensor.
    on_tensor = {
        "cutout": lambda: Cutout(node.CUTOUT_N, node.CUTOUT_LEN),
        "normalize": lambda: normalize,
        "gaussian_noise": lambda: GaussianNoise(node.GN_MEAN, node.GN_STD),
        "instance_norm": InstanceNormalization,
    }
    steps += [build() for choice, build in on_image.items() if choice in choices]
    steps.append(ToTensor())
    steps += [build() for choice, build in on_tensor.items() if choice in choices]
    return Compose(steps)


def _build_transform_test(cfg, choices, target_size, normalize):
    """The transform for testing; arguments as for training."""
    size = tuple(cfg.INPUT.SIZE)
    steps = [Resize(max(size), _interpolation(cfg)), CenterCrop(size), ToTensor()]
    if "normalize" in choices:
        steps.append(normalize)
    if "instance_norm" in choices:
        steps.append(InstanceNormalization())
    return Compose(steps)
