"""RandAugment (Cubuk et al., 2020) as Dassl has it, RandAugment with random strengths, and FixMatch's augmentation.

An operation takes an image and a strength. All randomness comes from python's generator, but for the places of
CutoutAbs, which NumPy draws.
"""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Operation = Callable[[Image.Image, float], Image.Image]
GREY = (125, 123, 114)  # that CutoutAbs fills with: the mean colour of ImageNet


def _check(v, low, high):
    assert low <= v <= high, f"the strength is {v}; accepted: {low} to {high}"


def _either_way(v):
    return -v if random.random() > 0.5 else v


def _affine(img, *coefficients):
    return img.transform(img.size, Image.Transform.AFFINE, coefficients)


def ShearX(img: Image.Image, v: float) -> Image.Image:
    """Shear sideways by up to 0.3, either way."""
    _check(v, -0.3, 0.3)
    return _affine(img, 1, _either_way(v), 0, 0, 1, 0)


def ShearY(img: Image.Image, v: float) -> Image.Image:
    """Shear up or down by up to 0.3."""
    _check(v, -0.3, 0.3)
    return _affine(img, 1, 0, 0, _either_way(v), 1, 0)


def TranslateX(img: Image.Image, v: float) -> Image.Image:
    """Move sideways by up to 0.45 of the width, either way."""
    _check(v, -0.45, 0.45)
    return _affine(img, 1, 0, _either_way(v) * img.size[0], 0, 1, 0)


def TranslateXabs(img: Image.Image, v: float) -> Image.Image:
    """Move sideways by so many pixels, either way."""
    _check(v, 0, float("inf"))
    return _affine(img, 1, 0, _either_way(v), 0, 1, 0)


def TranslateY(img: Image.Image, v: float) -> Image.Image:
    """Move up or down by up to 0.45 of the height."""
    _check(v, -0.45, 0.45)
    return _affine(img, 1, 0, 0, 0, 1, _either_way(v) * img.size[1])


def TranslateYabs(img: Image.Image, v: float) -> Image.Image:
    """Move up or down by so many pixels."""
    _check(v, 0, float("inf"))
    return _affine(img, 1, 0, 0, 0, 1, _either_way(v))


def Rotate(img: Image.Image, v: float) -> Image.Image:
    """Rotate by up to 30 degrees, either way."""
    _check(v, -30, 30)
    return img.rotate(_either_way(v))


def AutoContrast(img: Image.Image, _: float) -> Image.Image:
    """Stretch the contrast to the full range."""
    return ImageOps.autocontrast(img)


def Invert(img: Image.Image, _: float) -> Image.Image:
    """The negative."""
    return ImageOps.invert(img)


def Equalize(img: Image.Image, _: float) -> Image.Image:
    """Flatten the histogram."""
    return ImageOps.equalize(img)


def Flip(img: Image.Image, _: float) -> Image.Image:
    """Left for right."""
    return ImageOps.mirror(img)


def Solarize(img: Image.Image, v: float) -> Image.Image:
    """Invert all pixels from the level ``v`` on, 0 to 256."""
    _check(v, 0, 256)
    return ImageOps.solarize(img, v)


def SolarizeAdd(img: Image.Image, addition: float = 0, threshold: int = 128) -> Image.Image:
    """Make the image brighter by ``addition``, then invert all pixels from ``threshold`` on."""
    brighter = np.clip(np.asarray(img).astype(np.int64) + addition, 0, 255).astype(np.uint8)
    return ImageOps.solarize(Image.fromarray(brighter), threshold)


def Posterize(img: Image.Image, v: float) -> Image.Image:
    """Keep so many bits of each level, 4 to 8."""
    _check(v, 4, 8)
    return ImageOps.posterize(img, int(v))


def Contrast(img: Image.Image, v: float) -> Image.Image:
    """0: grey, 1: the same, 2: twice the contrast."""
    _check(v, 0.0, 2.0)
    return ImageEnhance.Contrast(img).enhance(v)


def Color(img: Image.Image, v: float) -> Image.Image:
    """0: no colour, 1: the same, 2: twice the colour."""
    _check(v, 0.0, 2.0)
    return ImageEnhance.Color(img).enhance(v)


def Brightness(img: Image.Image, v: float) -> Image.Image:
    """0: black, 1: the same, 2: twice as bright."""
    _check(v, 0.0, 2.0)
    return ImageEnhance.Brightness(img).enhance(v)


def Sharpness(img: Image.Image, v: float) -> Image.Image:
    """0: blurred, 1: the same, 2: sharpened."""
    _check(v, 0.0, 2.0)
    return ImageEnhance.Sharpness(img).enhance(v)


def Cutout(img: Image.Image, v: float) -> Image.Image:
    """Fill a square at a random place, whose side is up to 0.2 of the width, with grey."""
    _check(v, 0.0, 0.2)
    return CutoutAbs(img, v * img.size[0]) if v > 0 else img


def CutoutAbs(img: Image.Image, v: float) -> Image.Image:
    """Fill a square of so many pixels at a random place with grey; the place is the middle of it."""
    if v < 0:
        return img
    width, height = img.size
    x, y = np.random.uniform(width), np.random.uniform(height)
    left, top = int(max(0, x - v / 2)), int(max(0, y - v / 2))
    img = img.copy()
    ImageDraw.Draw(img).rectangle((left, top, min(width, left + v), min(height, top + v)), GREY)
    return img


def SamplePairing(imgs: Sequence[np.ndarray]) -> Operation:
    """Return the operation that blends an image with one of ``imgs`` (arrays of its shape), of which ``v`` is seen."""

    def blend(img: Image.Image, v: float) -> Image.Image:
        other = Image.fromarray(imgs[np.random.choice(len(imgs))])
        return Image.blend(img, other, v)

    return blend


def Identity(img: Image.Image, v: float) -> Image.Image:
    """The image itself."""
    return img


class Lighting:
    """Noise along the principal components of the colours (Krizhevsky et al., 2012), on tensors (3, H, W).

    Args:
        alphastd (float): standard deviation of the noise; 0: none.
        eigval (list of float): variances of the components (3).
        eigvec (list of list of float): the components, in columns (3, 3).
    """

    def __init__(self, alphastd: float, eigval: Sequence[float], eigvec: Sequence[Sequence[float]]) -> None:
        self.alphastd = alphastd
        self.eigval = torch.tensor(eigval, dtype=torch.float32)
        self.eigvec = torch.tensor(eigvec, dtype=torch.float32)

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """From a tensor (3, H, W) to one of the same shape."""
        if self.alphastd == 0:
            return img
        alpha = torch.empty(3, dtype=img.dtype, device=img.device).normal_(0, self.alphastd)
        shift = (self.eigvec.to(img) * alpha * self.eigval.to(img)).sum(1)
        return img + shift.view(3, 1, 1)


class CutoutDefault:
    """Set a square at a random place of a tensor (C, H, W) to zero, in place; that at the edge is cut off by it.

    Args:
        length (int): its side in pixels, rounded down to an even number.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, img: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        height, width = img.shape[-2:]
        y, x, half = np.random.randint(height), np.random.randint(width), self.length // 2
        img[..., max(y - half, 0) : y + half, max(x - half, 0) : x + half] = 0
        return img


def randaugment_list() -> list[tuple[Operation, float, float]]:
    """Return RandAugment's operations: (operation, weakest, strongest)."""
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


def _with_strengths(low: float, high: float) -> list[tuple[Operation, float, float]]:
    """The operations of FixMatch, whose enhancements go from ``low`` to ``high``."""
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
    """Return RandAugment2's operations: (operation, one end, the other)."""
    operations = _with_strengths(0.1, 1.9)
    operations.insert(6, (Invert, 0, 1))
    return operations


def fixmatch_list() -> list[tuple[Operation, float, float]]:
    """Return FixMatch's operations (Sohn et al., 2020): (operation, one end, the other)."""
    return _with_strengths(0.05, 0.95)


class RandAugment:
    """``n`` random operations, all of the same strength.

    Args:
        n (int): how many.
        m (float): the strength, 0 to 30.
    """

    def __init__(self, n: int = 2, m: float = 10) -> None:
        _check(m, 0, 30)
        self.n = n
        self.m = m
        self.augment_list = randaugment_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        """From a PIL image to one of its size."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, self.m / 30 * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment (n={self.n}, m={self.m})"


class RandAugment2:
    """``n`` random operations, each of a random strength and done with a probability.

    Args:
        n (int): how many.
        p (float): the probability of each.
    """

    def __init__(self, n: int = 2, p: float = 0.6) -> None:
        self.n = n
        self.p = p
        self.augment_list = randaugment_list2()

    def __call__(self, img: Image.Image) -> Image.Image:
        """From a PIL image to one of its size."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            if random.random() <= self.p:
                img = operation(img, random.random() * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment2 (n={self.n}, p={self.p})"


class RandAugmentFixMatch:
    """``n`` random operations, each of a random strength.

    Args:
        n (int): how many.
    """

    def __init__(self, n: int = 2) -> None:
        self.n = n
        self.augment_list = fixmatch_list()

    def __call__(self, img: Image.Image) -> Image.Image:
        """From a PIL image to one of its size."""
        for operation, low, high in random.choices(self.augment_list, k=self.n):
            img = operation(img, random.random() * (high - low) + low)
        return img

    def __repr__(self) -> str:
        return f"randaugment_fixmatch (n={self.n})"
