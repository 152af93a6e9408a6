"""RandAugment (Cubuk et al., 2020), RandAugment with random strengths, and FixMatch's augmentation, as in Dassl.

An operation takes a PIL image and a strength. torchvision's RandAugment draws from other random generators.
"""

import random
from collections.abc import Callable
from functools import partial

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]
GREY = (125, 123, 114)  # ImageNet's mean colour, which CutoutAbs fills with


def _either_way(v: float) -> float:
    return -v if random.random() > 0.5 else v


def _affine(img: Image.Image, *coefficients: float) -> Image.Image:
    return img.transform(img.size, Image.Transform.AFFINE, coefficients)


def ShearX(img: Image.Image, v: float) -> Image.Image:
    return _affine(img, 1, _either_way(v), 0, 0, 1, 0)


def ShearY(img: Image.Image, v: float) -> Image.Image:
    return _affine(img, 1, 0, 0, _either_way(v), 1, 0)


def TranslateX(img: Image.Image, v: float) -> Image.Image:
    """``v``: fraction of the width."""
    return _affine(img, 1, 0, _either_way(v) * img.size[0], 0, 1, 0)


def TranslateY(img: Image.Image, v: float) -> Image.Image:
    return _affine(img, 1, 0, 0, 0, 1, _either_way(v) * img.size[1])


def TranslateXabs(img: Image.Image, v: float) -> Image.Image:
    """``v``: pixels."""
    return _affine(img, 1, 0, _either_way(v), 0, 1, 0)


def TranslateYabs(img: Image.Image, v: float) -> Image.Image:
    return _affine(img, 1, 0, 0, 0, 1, _either_way(v))


def Rotate(img: Image.Image, v: float) -> Image.Image:
    return img.rotate(_either_way(v))


def AutoContrast(img: Image.Image, _: float) -> Image.Image:
    return ImageOps.autocontrast(img)


def Invert(img: Image.Image, _: float) -> Image.Image:
    return ImageOps.invert(img)


def Equalize(img: Image.Image, _: float) -> Image.Image:
    return ImageOps.equalize(img)


def Solarize(img: Image.Image, v: float) -> Image.Image:
    return ImageOps.solarize(img, v)


def SolarizeAdd(img: Image.Image, v: float) -> Image.Image:
    brighter = np.clip(np.asarray(img).astype(np.int64) + v, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), 128)


def Posterize(img: Image.Image, v: float) -> Image.Image:
    return ImageOps.posterize(img, int(v))


def _enhance(kind: type, img: Image.Image, v: float) -> Image.Image:
    return kind(img).enhance(v)


Contrast, Color = partial(_enhance, ImageEnhance.Contrast), partial(_enhance, ImageEnhance.Color)
Brightness, Sharpness = partial(_enhance, ImageEnhance.Brightness), partial(_enhance, ImageEnhance.Sharpness)


def CutoutAbs(img: Image.Image, v: float) -> Image.Image:
    """Fill a square of ``v`` pixels with its middle at a random place."""
    width, height = img.size
    x, y = np.random.uniform(width), np.random.uniform(height)
    left, top = int(max(0, x - v / 2)), int(max(0, y - v / 2))
    img = img.copy()
    ImageDraw.Draw(img).rectangle((left, top, min(width, left + v), min(height, top + v)), GREY)
    return img


def Identity(img: Image.Image, _: float) -> Image.Image:
    return img


def randaugment_list() -> list[tuple[Operation, float, float]]:
    """Return RandAugment's operations with their weakest and strongest strength."""
    return [
        (AutoContrast, 0, 1),
        (Equalize, 0, 1),
        (Invert, 0, 1),
        (Rotate, 0, 30),
        (Posterize, 4, 8),
        (Solarize, 0, 256),
        (SolarizeAdd, 0, 110),
        (Color, 0.1, 1.9),
        (Contrast, 0.1, 1.9),
        (Brightness, 0.1, 1.9),
        (Sharpness, 0.1, 1.9),
        (ShearX, 0.0, 0.3),
        (ShearY, 0.0, 0.3),
        (CutoutAbs, 0, 40),
        (TranslateXabs, 0.0, 100),
        (TranslateYabs, 0.0, 100),
    ]


def fixmatch_list(low: float = 0.05, high: float = 0.95) -> list[tuple[Operation, float, float]]:
    """Return FixMatch's operations (Sohn et al., 2020) with the two ends of their strengths."""
    return [
        (AutoContrast, 0, 1),
        (Brightness, low, high),
        (Color, low, high),
        (Contrast, low, high),
        (Equalize, 0, 1),
        (Identity, 0, 1),
        (Posterize, 4, 8),
        (Rotate, -30, 30),
        (Sharpness, low, high),
        (ShearX, -0.3, 0.3),
        (ShearY, -0.3, 0.3),
        (Solarize, 0, 256),
        (TranslateX, -0.3, 0.3),
        (TranslateY, -0.3, 0.3),
    ]


def randaugment_list2() -> list[tuple[Operation, float, float]]:
    operations = fixmatch_list(0.1, 1.9)
    operations.insert(6, (Invert, 0, 1))
    return operations


class RandAugment:
    """``n`` random operations of the strength ``m``, 0 to 30."""

    def __init__(self, n: int = 2, m: float = 10) -> None:
        assert 0 <= m <= 30, f"the strength is {m}; accepted: 0 to 30"
        self.n = n
        self.m = m
        self.augment_list = randaugment_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, self.m / 30 * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment (n={self.n}, m={self.m})"


class RandAugment2:
    """``n`` random operations, each of a random strength and with the probability ``p``."""

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n = n
        self.p = p
        self.augment_list = randaugment_list2()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            if random.random() <= self.p:
                img = operation(img, random.random() * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment2 (n={self.n}, p={self.p})"


class RandAugmentFixMatch:
    """``n`` random operations, each of a random strength."""

    def __init__(self, n: int = 2) -> None:
        self.n = n
        self.augment_list = fixmatch_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, random.random() * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment_fixmatch (n={self.n})"
