"""AutoAugment (Cubuk et al., 2019). The policies are torchvision's; the operations and random draws are Dassl's."""

import random

import numpy as np
from PIL import Image, ImageEnhance, ImageOps
from torchvision.transforms import AutoAugment, AutoAugmentPolicy

GREY = (128, 128, 128)  # fills the area from outside the image
LEVELS = 10

# torchvision's operation -> (weakest, strongest) strength.
_RANGES = {
    "ShearX": (0, 0.3),
    "ShearY": (0, 0.3),
    "TranslateX": (0, 150 / 331),
    "TranslateY": (0, 150 / 331),
    "Rotate": (0, 30),
    "Color": (0.0, 0.9),
    "Posterize": (8, 4),
    "Solarize": (256, 0),
    "Contrast": (0.0, 0.9),
    "Sharpness": (0.0, 0.9),
    "Brightness": (0.0, 0.9),
}
_WITHOUT_STRENGTH = {"AutoContrast": ImageOps.autocontrast, "Equalize": ImageOps.equalize, "Invert": ImageOps.invert}


def _either_way(strength: float) -> float:
    return strength * random.choice([-1, 1])


def _apply(operation: str, level: int | None, img: Image.Image, fillcolor: tuple[int, int, int]) -> Image.Image:
    """Apply an operation; ``level`` is 0 to 9."""
    if operation in _WITHOUT_STRENGTH:
        return _WITHOUT_STRENGTH[operation](img)
    strength = float(np.linspace(*_RANGES[operation], LEVELS)[level])
    if operation in ("Color", "Contrast", "Sharpness", "Brightness"):
        return getattr(ImageEnhance, operation)(img).enhance(1 + _either_way(strength))
    if operation == "Posterize":
        return ImageOps.posterize(img, int(np.round(strength)))
    if operation == "Solarize":
        return ImageOps.solarize(img, strength)
    if operation == "Rotate":
        turned = img.convert("RGBA").rotate(strength)
        return Image.composite(turned, Image.new("RGBA", turned.size, (128,) * 4), turned).convert(img.mode)
    width, height = img.size
    if operation == "ShearX":
        coefficients = (1, _either_way(strength), 0, 0, 1, 0)
    elif operation == "ShearY":
        coefficients = (1, 0, 0, _either_way(strength), 1, 0)
    elif operation == "TranslateX":
        coefficients = (1, 0, _either_way(strength * width), 0, 1, 0)
    else:
        coefficients = (1, 0, 0, 0, 1, _either_way(strength * height))
    resample = Image.Resampling.BICUBIC if operation.startswith("Shear") else Image.Resampling.NEAREST
    return img.transform(img.size, Image.Transform.AFFINE, coefficients, resample, fillcolor=fillcolor)


class _Policy:
    """A random pair of operations for each image."""

    found_for: AutoAugmentPolicy

    def __init__(self, fillcolor: tuple[int, int, int] = GREY) -> None:
        self.fillcolor = fillcolor
        self.policies = AutoAugment(self.found_for).policies

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, probability, level in self.policies[random.randint(0, len(self.policies) - 1)]:
            if random.random() < probability:
                img = _apply(operation, level, img, self.fillcolor)
        return img

    def __repr__(self) -> str:
        return f"AutoAugment {self.found_for.value} policy"


class ImageNetPolicy(_Policy):
    found_for = AutoAugmentPolicy.IMAGENET


class CIFAR10Policy(_Policy):
    found_for = AutoAugmentPolicy.CIFAR10


class SVHNPolicy(_Policy):
    found_for = AutoAugmentPolicy.SVHN
