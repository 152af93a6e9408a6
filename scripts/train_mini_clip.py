"""Train the tiny CLIP of MiniDigits (assets/mini_clip.pt), in three minutes on one core.

The script draws 7,000 digits in seven styles, with captions such as "a red neon seven.". No style is a domain of
MiniDigits. But the settings below were chosen among a few runs by zero-shot accuracy on display, printed and sketch, so
these domains are not unseen. The same machine and versions of PyTorch, NumPy and Pillow make the same bytes again.
"""

import _repository

import argparse
import itertools
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip import tokenize
from clip.model import CLIP
from PIL import Image, ImageDraw, ImageFilter
from scipy.interpolate import CubicHermiteSpline
from torch import Tensor

from common.files import atomic_write
from common.startup import REPOSITORY
from datasets import mini_digits as drawing

SEED = 7
IMAGES = 7000
EPOCHS = 14
PLAIN_EPOCHS = 7  # with captions that name the class alone: shapes are harder to learn than colours
BATCH_SIZE = 100
LR = 3e-3
WEIGHT_DECAY = 0.05
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CANVAS = 2 * drawing.SIZE

COLOURS = {
    "red": (205, 35, 35),
    "orange": (240, 135, 25),
    "yellow": (240, 220, 50),
    "green": (40, 160, 60),
    "blue": (45, 80, 205),
    "purple": (130, 50, 165),
    "pink": (245, 140, 185),
    "brown": (120, 75, 40),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}
# Variants of each digit. A variant is strokes between slashes, a stroke is points "x,y" in percent of a box, from the
# upper left corner, and a smooth curve joins them.
SKELETONS = (
    ("50,3 20,15 10,50 20,85 50,97 80,85 90,50 80,15 50,3",),
    ("50,3 50,97", "25,28 55,3 / 55,3 55,97", "28,25 52,3 / 52,3 52,97 / 25,97 80,97"),
    ("14,28 28,8 52,3 80,14 82,36 50,68 10,96 / 10,96 90,96",),
    (
        "14,16 45,3 80,14 78,36 42,47 / 42,47 82,58 86,82 50,97 10,86",
        "14,5 85,5 / 85,5 42,42 / 42,42 82,54 86,82 50,97 10,86",
    ),
    ("26,5 12,60 / 12,60 90,60 / 70,25 66,97", "68,3 8,66 / 8,66 94,66 / 68,3 68,97"),
    ("84,5 24,5 / 24,5 18,46 / 18,46 50,37 84,50 84,80 50,97 10,86",),
    ("76,8 40,16 16,50 18,82 50,97 83,82 80,56 50,46 20,62",),
    ("10,5 90,5 / 90,5 58,45 42,97", "10,5 90,5 / 90,5 58,45 42,97 / 32,50 82,50"),
    ("50,47 20,30 26,8 50,3 74,8 80,30 50,47 / 50,47 14,66 20,90 50,97 80,90 86,66 50,47",),
    (
        "82,34 55,52 20,42 18,16 50,3 78,14 82,34 / 82,34 78,65 60,97",
        "82,34 55,52 20,42 18,16 50,3 78,14 82,34 / 82,34 80,70 52,97 18,88",
    ),
)
# "{d}" is the class name, "{s}" the style, "{c}" the colour. A repeated template is as much more frequent.
PLAIN_TEMPLATES = (
    *("a photo of a {d}.", "a photo of a {d}.", "a picture of a {d}.", "an image of the digit {d}."),
    *("a photo of the number {d}.", "this is a {d}.", "a {d}.", "{d}."),
)
TEMPLATES = (
    *PLAIN_TEMPLATES,
    *("a {s} {d}.", "a {s} {d}.", "a photo of a {s} {d}.", "a {c} {d}.", "a photo of a {c} {d}."),
    *("a {c} {s} {d}.", "a {s} picture of a {c} {d}."),
)


# ---- pictures ----


def pen_path(digit: int, rng: np.random.Generator) -> list[np.ndarray]:
    """The strokes of a digit on the canvas, (N, 2) points each, with an unsteady hand and random proportions."""
    variants = SKELETONS[digit]
    size, shake = np.array([rng.uniform(40, 72), rng.uniform(72, 104)]), rng.uniform(0, 0.05)
    moved: dict[str, np.ndarray] = {}  # strokes with a common point still meet there
    strokes = []
    for stroke in variants[rng.integers(len(variants))].split(" / "):
        spots = [(name, np.array([int(number) / 100 for number in name.split(",")])) for name in stroke.split()]
        points = np.array([moved.setdefault(name, spot + rng.uniform(-shake, shake, 2)) for name, spot in spots])
        points = (points - 0.5) * size + CANVAS / 2
        slopes = np.gradient(points, axis=0)
        if np.array_equal(points[0], points[-1]):
            slopes[[0, -1]] = (points[1] - points[-2]) / 2
        last = len(points) - 1
        strokes.append(CubicHermiteSpline(range(last + 1), points, slopes)(np.linspace(0, last, 10 * last + 1)))
    return strokes


def pen_mask(digit: int, rng: np.random.Generator, thinnest: float, thickest: float) -> Image.Image:
    """A mask of a digit, drawn with a round pen of random thickness in canvas pixels."""
    thickness = rng.uniform(thinnest, thickest)
    mask, half = Image.new("L", (CANVAS, CANVAS)), thickness / 2
    pen = ImageDraw.Draw(mask)
    for stroke in pen_path(digit, rng):
        pen.line(stroke.ravel().tolist(), fill=255, width=max(1, round(thickness)))
        for x, y in stroke.tolist():
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return drawing.place(mask, rng, 12, 0.25, 8)


def contrast(colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour that another one stands out from."""
    while True:
        other = rng.uniform(0, 255, 3)
        if abs(other.mean() - colour.mean()) > 70:
            return other


def painted(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A thick digit with edges that run, on patches."""
    mask = drawing.warp(pen_mask(digit, rng, 10, 22), rng, 3, 8)
    ground = drawing.plain(rng, contrast(colour, rng), CANVAS, 40)
    return drawing.finish(drawing.blend(ground, mask, colour), rng, 10)


def chalk(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Crumbling strokes on a board."""
    cover = drawing.floats(pen_mask(digit, rng, 7, 14))
    crumbs = rng.random((CANVAS // 2, CANVAS // 2)).repeat(2, 0).repeat(2, 1) < 0.75
    board = [(30, 60, 45), (35, 35, 40), (70, 80, 85)][rng.integers(3)]
    ground = drawing.plain(rng, board, CANVAS, 20)
    return drawing.finish(drawing.blend(ground, cover * crumbs, 0.7 * colour + 75), rng, 10)


def neon(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A glowing tube in the dark."""
    tube = pen_mask(digit, rng, 4, 9)
    halo = drawing.floats(tube.filter(ImageFilter.GaussianBlur(rng.uniform(4, 9))))
    light = 0.75 * colour + 64
    picture = drawing.blend(drawing.plain(rng, rng.uniform(0, 40, 3), CANVAS, 10), np.clip(1.5 * halo, 0, 1), light)
    return drawing.finish(drawing.blend(picture, tube, 0.4 * light + 150), rng, 4)


def pen(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A thin line on paper."""
    mask = pen_mask(digit, rng, 3, 8)
    paper = drawing.plain(rng, 255 - rng.uniform(0, 50, 3), CANVAS, 10)
    return drawing.finish(drawing.blend(paper, mask, 0.8 * colour), rng, 5)


def dotted(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Dots along the strokes."""
    mask, radius, step = Image.new("L", (CANVAS, CANVAS)), rng.uniform(2.5, 4.5), int(rng.integers(2, 4))
    for stroke in pen_path(digit, rng):
        if len(stroke) < 20:  # a straight line
            stroke = np.linspace(stroke[0], stroke[-1], 1 + 5 * step)
        for x, y in stroke[::step].tolist():
            ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    mask = drawing.place(mask, rng, 10, 0.2, 8)
    return drawing.finish(drawing.blend(drawing.plain(rng, contrast(colour, rng), CANVAS, 20), mask, colour), rng, 6)


def tiled(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A mosaic of coarse squares of uneven colour."""
    n = int(rng.integers(10, 17))
    cover = drawing.floats(pen_mask(digit, rng, 10, 22).resize((n, n), Image.Resampling.BOX))
    ground = contrast(colour, rng) + rng.uniform(-30, 30, (n, n, 1))
    ink = colour + rng.uniform(-30, 30, (n, n, 1))
    cells = Image.fromarray(np.clip(drawing.blend(ground, np.clip(1.6 * cover, 0, 1), ink), 0, 255).astype(np.uint8))
    tiles = cells.resize((CANVAS, CANVAS), Image.Resampling.NEAREST)
    return drawing.finish(np.asarray(tiles, dtype=np.float32), rng, 4)


def carved(digit: int, colour: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """A relief in a stone of the colour, lit from one side."""
    height = drawing.floats(pen_mask(digit, rng, 10, 22).filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5))))
    shift = int(rng.integers(2, 5))
    light = np.roll(height, (shift, shift), (0, 1)) - np.roll(height, (-shift, -shift), (0, 1))
    stone = drawing.plain(rng, 0.6 * colour + 45, CANVAS, 15)
    stone = stone + 15 * drawing.smooth_noise(rng, CANVAS, 30)[..., None]
    return drawing.finish(stone + rng.choice([-1, 1]) * 110 * light[..., None], rng, 8)


STYLES = (painted, chalk, neon, pen, dotted, tiled, carved)


def draw_all() -> tuple[Tensor, Tensor]:
    """Draw pictures uint8 (N, 3, 64, 64); returns them and their (class, style, colour) numbers (N, 3)."""
    pictures, facts, colours = [], [], list(COLOURS.values())
    for number in range(IMAGES):
        rng = np.random.default_rng([SEED, number])
        digit, style, colour = number % 10, number // 10 % len(STYLES), int(rng.integers(len(colours)))
        ink = np.clip(np.array(colours[colour]) + rng.uniform(-25, 25, 3), 0, 255)
        pictures.append(np.asarray(STYLES[style](digit, ink, rng)))
        facts.append((digit, style, colour))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), torch.tensor(facts)


# ---- training ----


def caption_table() -> tuple[list[str], Tensor]:
    """K different captions, and their numbers by class, style, colour and template, (10, 7, 10, T)."""
    numbers: dict[str, int] = {}
    names = itertools.product(drawing.CLASSES, [style.__name__ for style in STYLES], COLOURS, TEMPLATES)
    texts = [template.format(d=digit, s=style, c=colour) for digit, style, colour, template in names]
    table = torch.tensor([numbers.setdefault(text, len(numbers)) for text in texts])
    return list(numbers), table.view(len(drawing.CLASSES), len(STYLES), len(COLOURS), len(TEMPLATES))


def augment(images: Tensor) -> Tensor:
    """Scale, move and brighten each picture uint8 (B, 3, H, W) at random, then normalise as CLIP does."""
    n = len(images)
    scale = torch.empty(n, 2).uniform_(0.75, 1.3) * torch.empty(n, 1).uniform_(0.9, 1.1)
    theta = torch.cat([torch.diag_embed(scale), torch.empty(n, 2).uniform_(-0.2, 0.2).unsqueeze(2)], dim=2)
    grid = F.affine_grid(theta, [n, 3, drawing.SIZE, drawing.SIZE], align_corners=False)
    moved = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    moved = (moved * torch.empty(n, 1, 1, 1).uniform_(0.8, 1.2)).clamp(0, 1)
    return (moved - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def train() -> dict[str, Tensor]:
    """Train a new model and return its state_dict (fp32)."""
    torch.manual_seed(SEED)
    pictures, facts = draw_all()
    texts, table = caption_table()
    tokens = tokenize(texts)
    length = int(tokens.argmax(1).max()) + 1  # the text tower is causal: nothing after [EOS] matters
    tokens = tokens[:, :length]

    model = CLIP(64, drawing.SIZE, (1, 1, 1, 1), 8, None, 77, 49408, 64, 1, 3)
    all_rows = model.token_embedding.weight
    with torch.no_grad():  # tokens that are in no caption keep random signs, which take one bit a number in an archive
        all_rows.copy_(0.02 * (2.0 * torch.randint(0, 2, all_rows.shape) - 1.0))
    model.visual.to(memory_format=torch.channels_last)  # twice as fast on a CPU
    model.float()
    for block in model.transformer.resblocks:
        block.attn_mask = block.attn_mask[:length, :length]
    # The optimiser gets only the used rows of the token table, which saves most of its work.
    used, tokens_used = tokens.unique(return_inverse=True)
    rows = torch.nn.Parameter(all_rows.detach()[used].clone())
    others = [p for name, p in model.named_parameters() if name != "token_embedding.weight"]
    groups = [
        {"params": [p for p in others if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [rows] + [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer, n_steps = torch.optim.AdamW(groups, lr=LR), IMAGES // BATCH_SIZE
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / n_steps, 0.5 * (1 + math.cos(math.pi * n / (n_steps * EPOCHS))))
    )

    def encode_text(chosen: Tensor) -> Tensor:
        x = F.embedding(tokens_used[chosen], rows) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
        return x[torch.arange(len(chosen)), tokens[chosen].argmax(1)] @ model.text_projection

    for epoch in range(EPOCHS):
        total_loss, n_templates = 0.0, len(PLAIN_TEMPLATES if epoch < PLAIN_EPOCHS else TEMPLATES)
        for batch in torch.randperm(IMAGES)[: n_steps * BATCH_SIZE].view(n_steps, BATCH_SIZE):
            true = table[tuple(facts[batch].T)]  # all true captions of each picture (B, T)
            chosen = torch.randint(n_templates, (BATCH_SIZE, 1))
            captions = true.gather(1, chosen).unique()
            match = (true.unsqueeze(2) == captions).any(1)  # (B, K); a caption can be true of several pictures
            images = augment(pictures[batch]).to(memory_format=torch.channels_last)
            image_features, text_features = F.normalize(model.visual(images)), F.normalize(encode_text(captions))
            logits = model.logit_scale.exp() * image_features @ text_features.t()
            to_text, to_image = match / match.sum(1, keepdim=True), match / match.sum(0, keepdim=True)
            loss = (to_text * logits.log_softmax(1)).sum(1).mean() + (to_image * logits.log_softmax(0)).sum(0).mean()
            loss = -loss / 2
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_([rows, *others], 1.0)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            total_loss += loss.item()
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {total_loss / n_steps:.3f}", flush=True)
    with torch.no_grad():
        all_rows[used] = rows
    return model.state_dict()


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", default=REPOSITORY / "assets/mini_clip.pt", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would make another model
    torch.use_deterministic_algorithms(True)
    state_dict = {name: value.half() if value.is_floating_point() else value for name, value in train().items()}
    with atomic_write(arguments.output) as handle:
        torch.save(state_dict, handle)


if __name__ == "__main__":
    main()
