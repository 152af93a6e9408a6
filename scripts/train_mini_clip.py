"""Train the tiny CLIP of MiniDigits (assets/mini_clip.pt) from nothing, on pictures drawn for it.

    python scripts/train_mini_clip.py [--output assets/mini_clip.pt]

What it learns from: 7,000 pictures of digits in seven styles (painted, chalk, neon, pen, dotted, tiled, carved), all
drawn here from the same stroke skeletons, with captions such as "a photo of a seven." or "a red neon seven.". None of
the four domains of MiniDigits is among them: no typeface, no segments, no pencil sketch, and no handwriting. So the
domains are new to it. Their images are only looked at when training is over, for the table that is printed; but the
settings below (styles, widths, epochs, seed) were chosen among a handful of runs by how much zero-shot accuracy on
display, printed and sketch left for a learned context, so the accuracies there are not those of an untouched test set.
Nothing was chosen by the handwritten domain.

What it makes: a state_dict in the format of OpenAI's CLIP (a ModifiedResNet for 64 px, a text tower of width 64 with
the full vocabulary), fp16, 7.4 MB, for ``clip.model.build_model``.

It takes about three minutes on one core. Everything is seeded and runs on one thread: the same machine with the same
versions of PyTorch, NumPy and Pillow makes the very file that is shipped; another one makes one much like it.
"""

import _repository

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from clip import tokenize
from clip.model import CLIP, build_model
from PIL import Image, ImageDraw, ImageFilter
from torch import Tensor

from common.files import atomic_write
from common.startup import REPOSITORY
from datasets import mini_digits as drawing

SEED = 7
IMAGES = 7000
EPOCHS = 14
PLAIN_EPOCHS = 7  # at first only captions that name nothing but the class: shapes are harder to learn than colours
BATCH_SIZE = 100
LR = 3e-3
WEIGHT_DECAY = 0.05
ARCHITECTURE = {
    "embed_dim": 64,
    "image_resolution": drawing.SIZE,
    "vision_layers": (1, 1, 1, 1),
    "vision_width": 8,
    "vision_patch_size": None,
    "context_length": 77,
    "vocab_size": 49408,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 3,
}
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)

CANVAS = 2 * drawing.SIZE

Colour = Sequence[float] | np.ndarray  # red, green, blue, 0 to 255

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

# Where a pen goes, in percent of a box, from its upper left corner: a digit is one of several variants, a variant some
# strokes (between the slashes), a stroke some points "x,y" with a smooth curve through them.
SKELETONS = (
    (  # zero
        "50,3 20,15 10,50 20,85 50,97 80,85 90,50 80,15 50,3",
    ),
    (  # one
        "50,3 50,97",
        "25,28 55,3 / 55,3 55,97",
        "28,25 52,3 / 52,3 52,97 / 25,97 80,97",
    ),
    (  # two
        "14,28 28,8 52,3 80,14 82,36 50,68 10,96 / 10,96 90,96",
    ),
    (  # three
        "14,16 45,3 80,14 78,36 42,47 / 42,47 82,58 86,82 50,97 10,86",
        "14,5 85,5 / 85,5 42,42 / 42,42 82,54 86,82 50,97 10,86",
    ),
    (  # four
        "26,5 12,60 / 12,60 90,60 / 70,25 66,97",
        "68,3 8,66 / 8,66 94,66 / 68,3 68,97",
    ),
    (  # five
        "84,5 24,5 / 24,5 18,46 / 18,46 50,37 84,50 84,80 50,97 10,86",
    ),
    (  # six
        "76,8 40,16 16,50 18,82 50,97 83,82 80,56 50,46 20,62",
    ),
    (  # seven
        "10,5 90,5 / 90,5 58,45 42,97",
        "10,5 90,5 / 90,5 58,45 42,97 / 32,50 82,50",
    ),
    (  # eight
        "50,47 20,30 26,8 50,3 74,8 80,30 50,47 / 50,47 14,66 20,90 50,97 80,90 86,66 50,47",
    ),
    (  # nine
        "82,34 55,52 20,42 18,16 50,3 78,14 82,34 / 82,34 78,65 60,97",
        "82,34 55,52 20,42 18,16 50,3 78,14 82,34 / 82,34 80,70 52,97 18,88",
    ),
)


# --- pictures ---------------------------------------------------------------------------------------------------------


def curve(points: np.ndarray, steps: int = 10) -> list[tuple[float, float]]:
    """A Catmull-Rom curve through ``points`` (N, 2), as a list of (x, y)."""
    closed = np.array_equal(points[0], points[-1])
    before = points[-2] if closed else 2 * points[0] - points[1]
    after = points[1] if closed else 2 * points[-1] - points[-2]
    p = np.vstack([before, points, after])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None]
    pieces = [
        0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
        for a, b, c, d in zip(p, p[1:], p[2:], p[3:], strict=False)
    ]
    return [tuple(point) for point in np.vstack([*pieces, points[-1:]])]


def pen_path(digit: int, rng: np.random.Generator) -> list[list[tuple[float, float]]]:
    """The strokes of a digit on the canvas, each a list of (x, y), with an unsteady hand and varying proportions."""
    variants = SKELETONS[digit]
    width, height = rng.uniform(40, 72), rng.uniform(72, 104)
    shake = rng.uniform(0, 0.05)
    moved: dict[str, np.ndarray] = {}  # strokes that share a point go on sharing it
    strokes = []
    for stroke in variants[rng.integers(len(variants))].split(" / "):
        spots = [(name, np.array([int(number) / 100 for number in name.split(",")])) for name in stroke.split()]
        points = [moved.setdefault(name, spot + rng.uniform(-shake, shake, 2)) for name, spot in spots]
        strokes.append(curve((np.array(points) - 0.5) * (width, height) + CANVAS / 2))
    return strokes


def pen_mask(digit: int, rng: np.random.Generator, thickness: float) -> Image.Image:
    """A digit drawn with a round pen of ``thickness`` canvas pixels, as an "L" mask."""
    mask = Image.new("L", (CANVAS, CANVAS))
    pen = ImageDraw.Draw(mask)
    half = thickness / 2
    for stroke in pen_path(digit, rng):
        pen.line(stroke, fill=255, width=max(1, round(thickness)))
        for x, y in stroke:
            pen.ellipse((x - half, y - half, x + half, y + half), fill=255)
    return drawing.place(mask, rng, 12, 0.25, 8)


def thick_mask(digit: int, rng: np.random.Generator) -> Image.Image:
    """A digit with a thick body, as an "L" mask."""
    return pen_mask(digit, rng, rng.uniform(10, 22))


def ground_for(colour: Colour, rng: np.random.Generator) -> np.ndarray:
    """A colour that ``colour`` stands out from."""
    while True:
        other = rng.uniform(0, 255, 3)
        if abs(np.mean(other) - np.mean(colour)) > 70:
            return other


def painted(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """Thick, with edges that run, on a ground of patches."""
    mask = drawing.warp(thick_mask(digit, rng), rng, 3, 8)
    ground = drawing.plain(rng, ground_for(colour, rng), CANVAS, 40)
    return drawing.finish(drawing.blend(ground, mask, colour), rng, 10)


def chalk(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """Crumbling strokes on a board."""
    cover = np.asarray(pen_mask(digit, rng, rng.uniform(7, 14)), dtype=np.float32) / 255
    crumbs = rng.random((CANVAS // 2, CANVAS // 2)).repeat(2, 0).repeat(2, 1) < 0.75
    board = np.array([(30, 60, 45), (35, 35, 40), (70, 80, 85)][rng.integers(3)])
    ground = drawing.plain(rng, board, CANVAS, 20)
    return drawing.finish(drawing.blend(ground, cover * crumbs, 0.7 * np.asarray(colour) + 75), rng, 10)


def neon(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A glowing tube in the dark."""
    tube = pen_mask(digit, rng, rng.uniform(4, 9))
    halo = np.asarray(tube.filter(ImageFilter.GaussianBlur(rng.uniform(4, 9))), dtype=np.float32) / 255
    light = 0.75 * np.asarray(colour) + 64
    picture = drawing.blend(drawing.plain(rng, rng.uniform(0, 40, 3), CANVAS, 10), np.clip(1.5 * halo, 0, 1), light)
    return drawing.finish(drawing.blend(picture, tube, 0.4 * light + 150), rng, 4)


def pen(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A thin line on paper."""
    mask = pen_mask(digit, rng, rng.uniform(3, 8))
    paper = drawing.plain(rng, 255 - rng.uniform(0, 50, 3), CANVAS, 10)
    return drawing.finish(drawing.blend(paper, mask, 0.8 * np.asarray(colour)), rng, 5)


def dotted(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A row of dots along the strokes."""
    mask, radius = Image.new("L", (CANVAS, CANVAS)), rng.uniform(2.5, 4.5)
    step = int(rng.integers(2, 4))
    for stroke in pen_path(digit, rng):
        if len(stroke) < 20:  # a straight line
            ends = np.array(stroke)[[0, -1]]
            stroke = list(np.linspace(ends[0], ends[1], 1 + 5 * step))
        for x, y in stroke[::step]:
            ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    mask = drawing.place(mask, rng, 10, 0.2, 8)
    return drawing.finish(drawing.blend(drawing.plain(rng, ground_for(colour, rng), CANVAS, 20), mask, colour), rng, 6)


def tiled(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A mosaic of coarse squares of uneven colour."""
    cells = int(rng.integers(10, 17))
    small = thick_mask(digit, rng).resize((cells, cells), Image.Resampling.BOX)
    cover = np.asarray(small, dtype=np.float32) / 255
    ground = np.asarray(ground_for(colour, rng)) + rng.uniform(-30, 30, (cells, cells, 1))
    picture = drawing.blend(
        ground, np.clip(1.6 * cover, 0, 1), np.asarray(colour) + rng.uniform(-30, 30, (cells, cells, 1))
    )
    tiles = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).resize(
        (CANVAS, CANVAS), Image.Resampling.NEAREST
    )
    return drawing.finish(np.asarray(tiles, dtype=np.float32), rng, 4)


def carved(digit: int, colour: Colour, rng: np.random.Generator) -> Image.Image:
    """A relief lit from one side, in a stone of the colour."""
    relief = thick_mask(digit, rng).filter(ImageFilter.GaussianBlur(rng.uniform(1, 2.5)))
    height = np.asarray(relief, dtype=np.float32) / 255
    shift = int(rng.integers(2, 5))
    light = np.roll(height, (shift, shift), (0, 1)) - np.roll(height, (-shift, -shift), (0, 1))
    stone = (
        drawing.plain(rng, 0.6 * np.asarray(colour) + 45, CANVAS, 15)
        + 15 * drawing.smooth_noise(rng, CANVAS, 30)[..., None]
    )
    return drawing.finish(stone + rng.choice([-1, 1]) * 110 * light[..., None], rng, 8)


STYLES = {
    "painted": painted,
    "chalk": chalk,
    "neon": neon,
    "pen": pen,
    "dotted": dotted,
    "tiled": tiled,
    "carved": carved,
}


def draw_all() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The training set, drawn anew: ``IMAGES`` pictures with equal numbers of every class and style.

    Returns:
        pictures uint8 (N, 3, 64, 64); classes, styles, colours int64 (N,), indices into the names of this module.
    """
    pictures = np.empty((IMAGES, 3, drawing.SIZE, drawing.SIZE), dtype=np.uint8)
    attributes = np.empty((IMAGES, 3), dtype=np.int64)
    names, colours = list(STYLES), list(COLOURS)
    for number in range(IMAGES):
        rng = np.random.default_rng([SEED, number])
        digit, style = number % 10, number // 10 % len(names)
        colour = int(rng.integers(len(colours)))
        ink = np.clip(np.array(COLOURS[colours[colour]]) + rng.uniform(-25, 25, 3), 0, 255)
        pictures[number] = np.asarray(STYLES[names[style]](digit, ink, rng)).transpose(2, 0, 1)
        attributes[number] = digit, style, colour
        if (number + 1) % 3000 == 0:
            print(f"drawn {number + 1:,} of {IMAGES:,} pictures", flush=True)
    classes, styles, chosen = torch.from_numpy(attributes).T
    return torch.from_numpy(pictures), classes, styles, chosen


# --- captions ---------------------------------------------------------------------------------------------------------

# "{d}" is the class name, "{s}" the style, "{c}" the colour. A caption that names no style or no colour is true of
# pictures of any. "A photo of a" comes twice, as the commonest thing that captions say.
PLAIN_TEMPLATES = (
    "a photo of a {d}.",
    "a photo of a {d}.",
    "a picture of a {d}.",
    "an image of the digit {d}.",
    "a photo of the number {d}.",
    "this is a {d}.",
    "a {d}.",
    "{d}.",
)
TEMPLATES = (
    *PLAIN_TEMPLATES,
    "a {s} {d}.",
    "a {s} {d}.",
    "a photo of a {s} {d}.",
    "a {c} {d}.",
    "a photo of a {c} {d}.",
    "a {c} {s} {d}.",
    "a {s} picture of a {c} {d}.",
)


def caption_table() -> tuple[list[str], Tensor, dict[tuple[int, int, int, int], int]]:
    """All captions that can be built, once each.

    Returns:
        texts, list of K strings; ``meaning`` int64 (K, 3): class, style, colour, with -1 where it names none;
        ``choices``: dict (class, style, colour, template index) -> row of the table.
    """
    rows: dict[str, int] = {}
    meaning: list[tuple[int, int, int]] = []
    choices: dict[tuple[int, int, int, int], int] = {}
    for digit, word in enumerate(drawing.CLASSES):
        for style, style_word in enumerate(STYLES):
            for colour, colour_word in enumerate(COLOURS):
                for index, template in enumerate(TEMPLATES):
                    text = template.format(d=word, s=style_word, c=colour_word)
                    if text not in rows:
                        rows[text] = len(rows)
                        meaning.append((digit, style if "{s}" in template else -1, colour if "{c}" in template else -1))
                    choices[digit, style, colour, index] = rows[text]
    return list(rows), torch.tensor(meaning), choices


# --- training ---------------------------------------------------------------------------------------------------------


def new_model() -> CLIP:
    """A CLIP with random weights (fp32), and a token table that compresses well.

    Only tokens that occur in captions are ever trained. The others get random signs times CLIP's 0.02, as varied as
    its normal initialisation, yet one bit a number to whatever stores the file.
    """
    model = CLIP(**ARCHITECTURE)
    table = model.token_embedding.weight
    with torch.no_grad():
        table.copy_(0.02 * (2.0 * torch.randint(0, 2, table.shape) - 1.0))
    model.visual.to(memory_format=torch.channels_last)  # the same numbers, twice as fast on a CPU
    return model.float()


def augment(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> float in [0, 1], each randomly scaled, moved and changed in brightness."""
    count = len(images)
    scale = torch.empty(count, 2).uniform_(0.75, 1.3) * torch.empty(count, 1).uniform_(0.9, 1.1)
    shift = torch.empty(count, 2).uniform_(-0.2, 0.2)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = scale[:, 0], scale[:, 1]
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, [count, 3, drawing.SIZE, drawing.SIZE], align_corners=False)
    moved = F.grid_sample(images.float() / 255, grid, padding_mode="border", align_corners=False)
    gain = torch.empty(count, 1, 1, 1).uniform_(0.8, 1.2)
    return (moved * gain).clamp(0, 1)


def normalize(images: Tensor) -> Tensor:
    """[0, 1] -> CLIP's mean and standard deviation."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def contrastive_loss(image_features: Tensor, text_features: Tensor, scale: Tensor, match: Tensor) -> Tensor:
    """CLIP's symmetric cross-entropy, for batches where a caption can be true of several pictures.

    Args:
        image_features: (B, E), L2-normalised.
        text_features: (K, E), L2-normalised.
        scale: exp(logit_scale).
        match: bool (B, K), which caption is true of which picture; no row and no column is empty.
    """
    logits = scale * image_features @ text_features.t()
    to_text = match / match.sum(1, keepdim=True)
    to_image = match / match.sum(0, keepdim=True)
    return -((to_text * logits.log_softmax(1)).sum(1).mean() + (to_image * logits.log_softmax(0)).sum(0).mean()) / 2


def train() -> dict[str, Tensor]:
    """Train a new model.

    Returns:
        its state_dict (fp32).
    """
    torch.manual_seed(SEED)
    pictures, *columns = draw_all()
    attributes = torch.stack(columns, 1)
    texts, meaning, choices = caption_table()
    tokens = tokenize(texts)
    length = int(tokens.argmax(1).max()) + 1  # the text tower is causal: nothing after [EOS] matters
    tokens = tokens[:, :length]
    print(f"{len(texts):,} captions of at most {length} tokens, {len(tokens.unique()):,} different tokens", flush=True)

    model = new_model()
    for block in model.transformer.resblocks:
        block.attn_mask = block.attn_mask[:length, :length]
    # The optimizer only sees the rows of the token table that occur, which saves most of its work.
    used, tokens_used = tokens.unique(return_inverse=True)
    rows = torch.nn.Parameter(model.token_embedding.weight.detach()[used].clone())
    parameters = [rows] + [p for name, p in model.named_parameters() if name != "token_embedding.weight"]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters[1:] if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [rows] + [p for p in parameters[1:] if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=LR,
    )
    steps = IMAGES // BATCH_SIZE
    warm_up, total = steps, steps * EPOCHS
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda n: min((n + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * n / total)))
    )

    def encode_text(chosen: Tensor) -> Tensor:
        x = F.embedding(tokens_used[chosen], rows) + model.positional_embedding[:length]
        x = model.ln_final(model.transformer(x.permute(1, 0, 2)).permute(1, 0, 2))
        return x[torch.arange(len(chosen)), tokens[chosen].argmax(1)] @ model.text_projection

    start = time.time()
    for epoch in range(EPOCHS):
        total_loss = 0.0
        usable = PLAIN_TEMPLATES if epoch < PLAIN_EPOCHS else TEMPLATES
        for batch in torch.randperm(IMAGES)[: steps * BATCH_SIZE].view(steps, BATCH_SIZE):
            templates = torch.randint(len(usable), (BATCH_SIZE,)).tolist()
            facts = attributes[batch]
            captions = torch.tensor([choices[(*f, t)] for f, t in zip(facts.tolist(), templates, strict=True)]).unique()
            said = meaning[captions]
            match = ((said[None] == -1) | (said[None] == facts[:, None])).all(2)
            image_features = F.normalize(
                model.visual(normalize(augment(pictures[batch])).to(memory_format=torch.channels_last)), dim=1
            )
            text_features = F.normalize(encode_text(captions), dim=1)
            loss = contrastive_loss(image_features, text_features, model.logit_scale.exp(), match)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            scheduler.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=math.log(100))
            total_loss += loss.item()
        spent = time.time() - start
        print(f"epoch {epoch + 1}/{EPOCHS}  loss {total_loss / steps:.3f}  {spent:.0f} s", flush=True)
    with torch.no_grad():
        model.token_embedding.weight[used] = rows
    return model.state_dict()


# --- the result -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def zero_shot(model: CLIP, domain: str, template: str = "a photo of a {}.") -> float:
    """Accuracy in percent of an fp32 CLIP on a domain of MiniDigits."""
    text = F.normalize(model.encode_text(tokenize([template.format(name) for name in drawing.CLASSES])), dim=1)
    if domain == "handwritten":
        drawn = drawing.handwritten()
    else:
        drawn = {d: [drawing.draw(domain, d, n) for n in range(drawing.IMAGES_PER_CLASS)] for d in range(10)}
    images = torch.from_numpy(np.stack([np.asarray(image) for d in drawn for image in drawn[d]])).permute(0, 3, 1, 2)
    labels = torch.tensor([d for d in drawn for _ in drawn[d]])
    features = F.normalize(model.encode_image(normalize(images.float() / 255)), dim=1)
    return 100 * ((features @ text.t()).argmax(1) == labels).float().mean().item()


def main() -> None:
    """Command line: train, write the file, print what it can do."""
    parser = argparse.ArgumentParser(description="Train the tiny CLIP of MiniDigits.")
    parser.add_argument("--output", default=REPOSITORY / "assets" / "mini_clip.pt", type=Path)
    arguments = parser.parse_args()
    # One thread, since sums taken in another order would give another model.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    state_dict = {name: value.half() if value.is_floating_point() else value for name, value in train().items()}
    with atomic_write(arguments.output) as handle:
        torch.save(state_dict, handle)
    print(f"{arguments.output}: {arguments.output.stat().st_size:,} bytes")
    model = build_model(torch.load(arguments.output, weights_only=True)).float()
    for domain in drawing.DOMAINS:
        print(f"zero-shot accuracy on {domain}: {zero_shot(model, domain):.1f} %")


if __name__ == "__main__":
    main()
