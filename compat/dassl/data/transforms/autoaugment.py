"""AutoAugment (Cubuk et al., 2019): pairs of operations that a search found to suit a data set.

The tables of pairs are torchvision's; the operations are those of Dassl, which draw from python's generator and
fill with grey.
"""

import random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

GREY = (128, 128, 128)
LEVELS = 10  # strengths that a pair chooses from

# Operation -> (weakest, strongest); None: it has no strength.
_RANGES = {
    "shearX": (0, 0.3),
    "shearY": (0, 0.3),
    "translateX": (0, 150 / 331),
    "translateY": (0, 150 / 331),
    "rotate": (0, 30),
    "color": (0.0, 0.9),
    "posterize": (8, 4),
    "solarize": (256, 0),
    "contrast": (0.0, 0.9),
    "sharpness": (0.0, 0.9),
    "brightness": (0.0, 0.9),
    "autocontrast": None,
    "equalize": None,
    "invert": None,
}
_ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
    "brightness": ImageEnhance.Brightness,
}
_WITHOUT_STRENGTH = {"autocontrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}


def _strength(operation, level):
    ends = _RANGES[operation]
    if ends is None:
        return 0
    strength = np.linspace(*ends, LEVELS)[level]
    return int(np.round(strength)) if operation == "posterize" else float(strength)


def _either_way(strength):
    return strength * random.choice([-1, 1])


def _apply(operation, img, strength, fillcolor):
    if operation in _WITHOUT_STRENGTH:
        return _WITHOUT_STRENGTH[operation](img)
    if operation in _ENHANCERS:
        return _ENHANCERS[operation](img).enhance(1 + _either_way(strength))
    if operation == "posterize":
        return ImageOps.posterize(img, strength)
    if operation == "solarize":
        return ImageOps.solarize(img, strength)
    if operation == "rotate":
        turned = img.convert("RGBA").rotate(strength)
        return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert(img.mode)
    width, height = img.size
    resample = Image.Resampling.BICUBIC if operation.startswith("shear") else Image.Resampling.NEAREST
    coefficients = {
        "shearX": lambda: (1, _either_way(strength), 0, 0, 1, 0),
        "shearY": lambda: (1, 0, 0, _either_way(strength), 1, 0),
        "translateX": lambda: (1, 0, _either_way(strength * width), 0, 1, 0),
        "translateY": lambda: (1, 0, 0, 0, 1, _either_way(strength * height)),
    }[operation]()
    return img.transform(img.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=fillcolor)


class SubPolicy:
    """Two operations, each done with a probability.

    Args:
        p1, p2 (float): the probabilities.
        operation1, operation2 (str): shearX, shearY, translateX, translateY, rotate, color, posterize, solarize,
            contrast, sharpness, brightness, autocontrast, equalize or invert.
        magnitude_idx1, magnitude_idx2 (int): the strengths, 0 to 9; of no meaning to the last three operations.
        fillcolor (tuple of int): of what comes in from outside the image.
    """

    def __init__(
        self,
        p1: float,
        operation1: str,
        magnitude_idx1: int,
        p2: float,
        operation2: str,
        magnitude_idx2: int,
        fillcolor: tuple[int, int, int] = GREY,
    ) -> None:
        self.p1, self.p2 = p1, p2
        self.operation1, self.operation2 = operation1, operation2
        self.magnitude1 = _strength(operation1, magnitude_idx1)
        self.magnitude2 = _strength(operation2, magnitude_idx2)
        self.fillcolor = fillcolor

    def __call__(self, img: Image.Image) -> Image.Image:
        """From a PIL image to one of its size."""
        if random.random() < self.p1:
            img = _apply(self.operation1, img, self.magnitude1, self.fillcolor)
        if random.random() < self.p2:
            img = _apply(self.operation2, img, self.magnitude2, self.fillcolor)
        return img


def _dassl_name(name):
    """torchvision's ShearX is shearX here, its AutoContrast autocontrast."""
    return name[0].lower() + name[1:].replace("Contrast", "contrast")


class _Policy:
    """One pair out of those for a data set, at random, for each image."""

    found_for: AutoAugmentPolicy  # torchvision's name of the data set

    def __init__(self, fillcolor: tuple[int, int, int] = GREY) -> None:
        self.policies = [
            SubPolicy(p1, _dassl_name(name1), level1, p2, _dassl_name(name2), level2, fillcolor)
            for (name1, p1, level1), (name2, p2, level2) in AutoAugment(self.found_for).policies
        ]

    def __call__(self, img: Image.Image) -> Image.Image:
        """From a PIL image to one of its size."""
        return self.policies[random.randint(0, len(self.policies) - 1)](img)

    def __repr__(self) -> str:
        return f"AutoAugment {self.found_for.value} policy"


class ImageNetPolicy(_Policy):
    """AutoAugment for ImageNet; ``fillcolor``: of what comes in from outside the image."""

    found_for = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    """AutoAugment for CIFAR-10; ``fillcolor``: of what comes in from outside the image."""

    found_for = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    """AutoAugment for SVHN; ``fillcolor``: of what comes in from outside the image."""

    found_for = AutoAugmentPolicy.SVHN
