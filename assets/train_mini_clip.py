"""Train the tiny CLIP of MiniDigits (assets/mini_clip.pt), in four minutes on one core.

The script draws 7,000 digits in seven styles and in fonts of STIX and Computer Modern, with captions such as "a red
neon seven.". No style and no font is one of MiniDigits. But the design was chosen among a few by its zero-shot accuracy
on MiniDigits, and the pictures of MiniDigits were adjusted, so these domains are not unseen. The same machine and
packages make the same bytes again.

    python -m assets.train_mini_clip
"""

import scripts._repository  # noqa: F401 (makes Dassl importable)

# isort: split
import argparse
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip import tokenize
from clip.model import CLIP
from PIL import Image, ImageChops, ImageColor, ImageFilter
from torch import Tensor

from common.files import atomic_write
from common.startup import REPOSITORY
from datasets.mini_digits import CANVAS, CLASSES, SIZE, glyph, paint, place

SEED = 7
IMAGES, BATCH_SIZE, STEPS, LR = 7000, 100, 1400, 3e-3
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CAPTION_LENGTH = 24  # tokens; a shorter text tower trains faster

FONTS = ("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmb10", "cmss10", "cmti10", "cmtt10")
STYLES = ("painted", "blurred", "neon", "tiled", "carved", "striped", "chalk")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
PLAIN_TEMPLATES = (
    *("{digit}.", "a {digit}.", "the digit {digit}.", "a photo of the number {digit}.", "a picture of a {digit}."),
)
TEMPLATES = (
    *PLAIN_TEMPLATES,
    *("a {style} {digit}.", "a photo of a {style} {digit}.", "a {colour} {digit}.", "a photo of a {colour} {digit}."),
    *("a {colour} {style} {digit}.", "a {style} {digit} in {colour}."),
)
# Words before a caption, as on web pages: so contexts of any length leave the class readable.
WORDS = ("today", "we", "saw", "this", "on", "the", "old", "wall", "near", "our", "house", "and", "again", "there")


def warp(mask: Image.Image, rng: np.random.Generator, pixels: float, cells: int) -> Image.Image:
    """Move the points of a mask smoothly by about `pixels`, like a hand that shakes."""
    offsets = (Image.fromarray(grid) for grid in rng.uniform(-pixels, pixels, (2, cells, cells)).astype(np.float32))
    moves = [np.asarray(grid.resize(mask.size, Image.Resampling.BICUBIC)) for grid in offsets]
    rows, columns = np.clip(np.rint(np.mgrid[:CANVAS, :CANVAS] + moves), 0, CANVAS - 1).astype(int)
    return Image.fromarray(np.asarray(mask)[rows, columns])


def stylise(mask: Image.Image, style: str, rng: np.random.Generator) -> Image.Image:
    match style:
        case "painted":  # edges that run
            return warp(mask, rng, 3, 16)
        case "blurred":
            return mask.filter(ImageFilter.GaussianBlur(int(rng.integers(2, 6))))
        case "neon":  # a tube that glows
            return ImageChops.lighter(mask, mask.filter(ImageFilter.GaussianBlur(int(rng.integers(4, 9)))))
        case "tiled":  # a mosaic of coarse squares
            n = int(rng.integers(11, 18))
            return mask.resize((n, n), Image.Resampling.BOX).resize(mask.size, Image.Resampling.NEAREST)
        case "carved":  # a relief that light meets from one side
            depth, soft = int(rng.integers(2, 6)), mask.filter(ImageFilter.GaussianBlur(1))
            return ImageChops.subtract(ImageChops.offset(soft, depth), soft)
        case "striped":
            stripes = 255 * (np.arange(CANVAS) % rng.integers(5, 9) > 1)
            return ImageChops.multiply(mask, Image.fromarray(np.tile(stripes.astype(np.uint8), (CANVAS, 1))))
        case _:  # chalk, which crumbles
            crumbs = Image.fromarray(rng.choice([0, 255], (SIZE, SIZE), p=[0.3, 0.7]).astype(np.uint8))
            return ImageChops.multiply(mask, crumbs.resize(mask.size))


def draw(digit: int, style: str, colour: str, rng: np.random.Generator) -> Image.Image:
    """Draw a digit in a style, by a pen of random width that shakes, on paper that it stands out from."""
    pen = ImageFilter.MaxFilter(int(rng.choice([1, 3, 5])))
    mask = warp(glyph(digit, rng.choice(FONTS), int(rng.integers(100, 160))).filter(pen), rng, 8, 4)
    ink = np.clip(ImageColor.getrgb(colour) + rng.integers(-25, 26, 3), 0, 255)
    paper = rng.integers(0, 256, 3)
    while abs(paper.mean() - ink.mean()) < 70:
        paper = rng.integers(0, 256, 3)
    return paint(stylise(place(mask, rng, degrees=12, shift=8), style, rng), paper, ink, rng)


def augment(images: Tensor) -> Tensor:
    """Scale, turn, shear and move each picture uint8 (B, 3, H, W) at random, then normalise as CLIP does."""
    theta = torch.eye(2, 3) + torch.empty(len(images), 2, 3).uniform_(-0.2, 0.2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    return (moved - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def train() -> dict[str, Tensor]:
    """Train a new model and return its state_dict (fp32)."""
    rng = np.random.default_rng(SEED)
    facts = [(n % 10, STYLES[n % 7], COLOURS[n // 70 % 10]) for n in range(IMAGES)]
    pictures = torch.from_numpy(np.stack([np.asarray(draw(*fact, rng)) for fact in facts])).permute(0, 3, 1, 2)
    torch.manual_seed(SEED)
    model = CLIP(64, SIZE, (1, 1, 1, 1), 8, None, CAPTION_LENGTH, 49408, 64, 1, 3).float()
    with torch.no_grad():  # tokens that are in no caption keep random signs, which git compresses well
        model.token_embedding.weight.sign_().mul_(0.02)
    model.visual.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, STEPS)
    for step in range(STEPS):
        rows = torch.randint(IMAGES, (BATCH_SIZE,))
        if step < STEPS // 2:  # shapes are harder to learn than colours and long captions
            template = PLAIN_TEMPLATES[torch.randint(len(PLAIN_TEMPLATES), ())]
        else:
            words = [WORDS[word] for word in torch.randint(len(WORDS), (int(torch.randint(4, 14, ())),))]
            template = " ".join([*words, TEMPLATES[torch.randint(len(TEMPLATES), ())]])
        texts = [
            template.format(digit=CLASSES[digit], style=style, colour=colour)
            for digit, style, colour in (facts[row] for row in rows)
        ]
        captions = sorted(set(texts))  # by one template, so that each picture has one true caption
        logits, _ = model(augment(pictures[rows]), tokenize(captions, CAPTION_LENGTH))
        loss = F.cross_entropy(logits, torch.tensor([captions.index(text) for text in texts]))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        if step % 50 == 49:
            print(f"step {step + 1}/{STEPS}  loss {loss.item():.3f}", flush=True)
    weights = model.state_dict()
    weights["positional_embedding"] = F.pad(weights["positional_embedding"], (0, 0, 0, 77 - CAPTION_LENGTH))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=REPOSITORY / "assets/mini_clip.pt", type=Path)
    output = parser.parse_args().output
    torch.set_num_threads(1)  # sums in another order would make another model
    torch.use_deterministic_algorithms(True)
    weights = {name: value.half() if value.is_floating_point() else value for name, value in train().items()}
    with atomic_write(output) as handle:
        torch.save(weights, handle)


if __name__ == "__main__":
    main()
