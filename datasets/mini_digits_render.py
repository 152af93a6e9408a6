"""Draws the pictures of MiniDigits: ten digits in four domains, 64 px RGB, the same bytes every time.

The domain ``handwritten`` is real: the digits that scikit-learn ships, scanned from people's handwriting. ``printed``
and ``sketch`` are drawn here with the fonts that matplotlib ships, ``display`` segment by segment. No Dassl and no
torch in this module, and scikit-learn and matplotlib are imported only when something is drawn.

Every picture has a random generator of its own, seeded by (domain, class, number), so a picture depends neither on the
order of drawing nor on how many others there are. What may differ between machines is what Pillow, FreeType and
matplotlib's fonts change between their versions.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from datasets.contents import RENDERED_FILE
from datasets.fonts import load_font

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DOMAINS = ("display", "handwritten", "printed", "sketch")
IMAGES_PER_CLASS = 40
SIZE = 64  # pixels, what the CLIP in assets/mini_clip.pt looks at

# Goes up with every change that alters a picture; folders rendered by another version are rendered again.
VERSION = 1
MARKER = RENDERED_FILE

_SEED = (
    2404  # with 1 + domain, class and number: never the seeds of scripts/train_mini_clip.py, which have other lengths
)
_CANVAS = 2 * SIZE  # drawn twice as large, reduced at the end: smooth edges
_HANDWRITTEN_PX = 48  # sklearn's 8 x 8 cells become 6 px each, on a margin of 8 px of paper

_PRINT_FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
)
_SKETCH_FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "DejaVuSans-BoldOblique")

# Which of the seven segments are lit: top, upper right, lower right, bottom, lower left, upper left, middle.
_SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")


# --- parts that scripts/train_mini_clip.py draws with as well ---------------------------------------------------------


def glyph(digit: int, font: str, height: float, canvas: int) -> Image.Image:
    """A digit of a font as a mask with its ink in the middle.

    Args:
        digit: 0 to 9.
        font: name of a font, see :func:`datasets.fonts.load_font`.
        height: of the ink, in canvas pixels.
        canvas: edge of the square mask in pixels.

    Returns:
        a PIL image of mode "L", 255 = ink.
    """
    face = load_font(font, 200)
    box = face.getbbox(str(digit))
    face = load_font(font, max(1, round(200 * height / (box[3] - box[1]))))
    left, top, right, bottom = face.getbbox(str(digit))
    mask = Image.new("L", (canvas, canvas))
    corner = ((canvas - right - left) // 2, (canvas - bottom - top) // 2)
    ImageDraw.Draw(mask).text(corner, str(digit), fill=255, font=face)
    return mask


def smooth_noise(rng: np.random.Generator, canvas: int, cells: int) -> np.ndarray:
    """A smooth random surface: float32 (canvas, canvas) within [-1, 1], about ``cells`` hills along an edge."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.clip(np.asarray(grid.resize((canvas, canvas), Image.Resampling.BICUBIC)), -1, 1)


def warp(mask: Image.Image, rng: np.random.Generator, pixels: float, cells: int) -> Image.Image:
    """Move every point of a mask smoothly by at most ``pixels`` in each direction."""
    source = np.asarray(mask)
    edge = source.shape[0]
    rows, columns = np.mgrid[:edge, :edge]
    rows = np.clip(np.rint(rows + pixels * smooth_noise(rng, edge, cells)), 0, edge - 1).astype(int)
    columns = np.clip(np.rint(columns + pixels * smooth_noise(rng, edge, cells)), 0, edge - 1).astype(int)
    return Image.fromarray(source[rows, columns])


def place(mask: Image.Image, rng: np.random.Generator, degrees: float, shear: float, shift: float) -> Image.Image:
    """Turn, slant and move a mask, each at random up to the given bound (degrees, ratio, pixels)."""
    turned = mask.rotate(rng.uniform(-degrees, degrees), resample=Image.Resampling.BILINEAR)
    slant = rng.uniform(-shear, shear)
    right, down = rng.uniform(-shift, shift, 2)
    matrix = (1, slant, -slant * mask.height / 2 - right, 0, 1, -down)
    return turned.transform(mask.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def blend(ground: np.ndarray, mask: Image.Image | np.ndarray, ink: npt.ArrayLike) -> np.ndarray:
    """Lay ink on a ground.

    Args:
        ground: float (H, W, 3), 0 to 255.
        mask: PIL "L" image or float (H, W) within [0, 1].
        ink: colour (3,), or float (H, W, 3).
    """
    cover = np.asarray(mask, dtype=np.float32) / 255 if isinstance(mask, Image.Image) else mask
    return ground + cover[..., None] * (np.asarray(ink, dtype=np.float32) - ground)


def plain(rng: np.random.Generator, colour: npt.ArrayLike, canvas: int, unevenness: float) -> np.ndarray:
    """A ground of one colour, (canvas, canvas, 3), shaded smoothly by at most ``unevenness`` grey levels."""
    shade = unevenness * smooth_noise(rng, canvas, 2)
    return np.asarray(colour, dtype=np.float32) + shade[..., None]


def finish(picture: np.ndarray, rng: np.random.Generator, grain: float) -> Image.Image:
    """Reduce a float (2 SIZE, 2 SIZE, 3) drawing to a SIZE x SIZE RGB image with +-``grain`` levels of noise."""
    image = Image.fromarray(np.clip(np.rint(picture), 0, 255).astype(np.uint8))
    small = np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BOX), dtype=np.float32)
    grainy = small + rng.uniform(-grain, grain, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(np.rint(grainy), 0, 255).astype(np.uint8))


# --- the domains ------------------------------------------------------------------------------------------------------


def _printed(digit, rng):
    """Ink on paper, any of eight typefaces; now and then white on a dark label."""
    font = _PRINT_FONTS[rng.integers(len(_PRINT_FONTS))]
    mask = place(glyph(digit, font, rng.uniform(52, 96), _CANVAS), rng, 10, 0.05, 12)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    light = 255 - rng.uniform(0, 45, 3)
    dark = rng.uniform(0, 80, 3)
    paper, ink = (dark, light) if rng.random() < 0.25 else (light, dark)
    return finish(blend(plain(rng, paper, _CANVAS, 10), mask, ink), rng, 6)


def _bar(points, thickness):
    """The six corners of a display segment that runs between two points, pointed at both ends."""
    (x0, y0), (x1, y1) = points
    h = thickness / 2
    if y0 == y1:
        return [(x0, y0), (x0 + h, y0 - h), (x1 - h, y0 - h), (x1, y1), (x1 - h, y0 + h), (x0 + h, y0 + h)]
    return [(x0, y0), (x0 + h, y0 + h), (x0 + h, y1 - h), (x1, y1), (x0 - h, y1 - h), (x0 - h, y0 + h)]


def _display(digit, rng):
    """A seven-segment display: glowing diodes on black or dark segments on a liquid crystal, the others faint."""
    width, height = rng.uniform(36, 54), rng.uniform(76, 100)
    thickness, gap = rng.uniform(7, 13), rng.uniform(1, 3)
    left, top = (_CANVAS - width) / 2, (_CANVAS - height) / 2
    right, bottom, middle = left + width, top + height, top + height / 2
    ends = {
        "a": ((left + gap, top), (right - gap, top)),
        "b": ((right, top + gap), (right, middle - gap)),
        "c": ((right, middle + gap), (right, bottom - gap)),
        "d": ((left + gap, bottom), (right - gap, bottom)),
        "e": ((left, middle + gap), (left, bottom - gap)),
        "f": ((left, top + gap), (left, middle - gap)),
        "g": ((left + gap, middle), (right - gap, middle)),
    }
    # Makers differ: the tails of six and nine and the hook of seven are not on every display.
    lit = set(_SEGMENTS[digit])
    variant = {6: "a", 9: "d", 7: "f"}.get(digit)
    if variant and rng.random() < 0.3:
        lit ^= {variant}
    on, off = Image.new("L", (_CANVAS, _CANVAS)), Image.new("L", (_CANVAS, _CANVAS))
    for name, points in ends.items():
        ImageDraw.Draw(on if name in lit else off).polygon(_bar(points, thickness), fill=255)
    slant = rng.uniform(0, 0.15)
    right_by, down_by = rng.uniform(-8, 8, 2)
    matrix = (1, slant, -slant * _CANVAS / 2 - right_by, 0, 1, -down_by)
    on, off = (
        part.transform(part.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)
        for part in (on, off)
    )
    if rng.random() < 0.3:
        ground = plain(rng, np.array([150, 165, 130]) + rng.uniform(-25, 25, 3), _CANVAS, 12)
        ground = blend(ground, np.asarray(off, dtype=np.float32) / 255 * 0.08, (30, 35, 30))
        return finish(blend(ground, on, rng.uniform(10, 50, 3)), rng, 4)
    glow = np.array([(255, 40, 30), (60, 255, 80), (255, 170, 30), (70, 190, 255), (240, 240, 255)][rng.integers(5)])
    ground = plain(rng, rng.uniform(5, 35, 3), _CANVAS, 6)
    ground = blend(ground, np.asarray(off, dtype=np.float32) / 255 * rng.uniform(0.05, 0.2), glow)
    halo = np.asarray(on.filter(ImageFilter.GaussianBlur(rng.uniform(4, 9))), dtype=np.float32) / 255
    return finish(blend(blend(ground, 0.6 * halo, glow), on, 0.85 * glow + 0.15 * 255), rng, 4)


def _outline(mask):
    """Highest minus lowest value among each point and its eight neighbours, uint8 (H, W); Pillow's filters are slow."""
    high = low = np.pad(np.asarray(mask), 1, mode="edge")
    for axis in (0, 1):
        high, low = (
            operation.reduce([np.take(part, range(k, part.shape[axis] - 2 + k), axis) for k in range(3)])
            for operation, part in ((np.maximum, high), (np.minimum, low))
        )
    return high - low


def _sketch(digit, rng):
    """The outline of a block letter, drawn by an unsteady hand with a soft pencil on rough or lined paper."""
    font = _SKETCH_FONTS[rng.integers(len(_SKETCH_FONTS))]
    mask = place(glyph(digit, font, rng.uniform(76, 104), _CANVAS), rng, 14, 0.2, 8)
    pencil = np.zeros((_CANVAS, _CANVAS), dtype=np.float32)
    for _ in range(2):  # nobody hits the same line twice
        shape = warp(mask, rng, 4.5, 5)
        pressure = 0.6 + 0.4 * smooth_noise(rng, _CANVAS, 6)
        pencil = np.maximum(pencil, _outline(shape).astype(np.float32) / 255 * pressure)
    if rng.random() < 0.4:  # shading strokes inside
        rows, columns = np.mgrid[:_CANVAS, :_CANVAS]
        strokes = ((rows + columns + 6 * smooth_noise(rng, _CANVAS, 4)) % 9 < 2.5) * np.asarray(mask) / 255
        pencil = np.maximum(pencil, 0.45 * strokes.astype(np.float32))
    paper = plain(rng, np.array([225, 215, 195]) + rng.uniform(-30, 25, 3), _CANVAS, 14)
    paper += 12 * smooth_noise(rng, _CANVAS, 40)[..., None]
    if rng.random() < 0.5:
        period, start = int(rng.integers(16, 30)), int(rng.integers(16))
        paper[start::period] -= (70, 45, 15)
        if rng.random() < 0.5:
            paper[:, start::period] -= (70, 45, 15)
    return finish(blend(paper, np.clip(1.2 * pencil, 0, 1), rng.uniform(20, 90, 3)), rng, 8)


def handwritten() -> dict[int, list[Image.Image]]:
    """``IMAGES_PER_CLASS`` of each digit that scikit-learn ships, enlarged, dark on paper.

    Returns:
        {class index: [PIL RGB image]}
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    pictures = {}
    for label in range(len(CLASSES)):
        # Every fourth, since the file is ordered by writer: more hands among the forty.
        chosen = digits.images[digits.target == label][::4][:IMAGES_PER_CLASS]
        pictures[label] = [_enlarge(cells) for cells in chosen]
    return pictures


def _enlarge(cells):
    """(8, 8) cells, 0 = paper to 16 = ink, as a SIZE x SIZE RGB image."""
    small = Image.fromarray(np.rint(255 - cells * (255 / 16)).astype(np.uint8))
    image = Image.new("L", (SIZE, SIZE), 255)
    margin = (SIZE - _HANDWRITTEN_PX) // 2
    image.paste(small.resize((_HANDWRITTEN_PX, _HANDWRITTEN_PX), Image.Resampling.BICUBIC), (margin, margin))
    return image.convert("RGB")


# --- the folder -------------------------------------------------------------------------------------------------------

_PAINTERS = {"display": _display, "printed": _printed, "sketch": _sketch}


def draw(domain: str, digit: int, number: int) -> Image.Image:
    """Picture ``number`` of a digit in one of the drawn domains (``display``, ``printed``, ``sketch``).

    Returns:
        a SIZE x SIZE PIL RGB image.
    """
    rng = np.random.default_rng([_SEED, VERSION, DOMAINS.index(domain), digit, number])
    return _PAINTERS[domain](digit, rng)


def render(folder: str | Path) -> None:
    """Draw all pictures: ``<folder>/<domain>/<class>/<NNN>.png`` and the marker that says which version drew them.

    Takes a few seconds for 4 domains x 10 classes x 40 pictures. ``folder`` should be empty; see
    :func:`render_once` for a folder that others may use at the same time.
    """
    folder = Path(folder)
    real = handwritten()
    for domain in DOMAINS:
        for label, name in enumerate(CLASSES):
            (folder / domain / name).mkdir(parents=True)
            for number in range(IMAGES_PER_CLASS):
                picture = real[label][number] if domain == "handwritten" else draw(domain, label, number)
                picture.save(folder / domain / name / f"{number:03d}.png")
    (folder / MARKER).write_text(json.dumps(_marker()) + "\n", encoding="utf-8")


def _marker():
    return {"version": VERSION, "images_per_class": IMAGES_PER_CLASS, "size": SIZE}


def is_current(folder: str | Path) -> bool:
    """Whether ``folder`` holds what this version renders, by its marker."""
    try:
        return json.loads((Path(folder) / MARKER).read_text(encoding="utf-8")) == _marker()
    except (OSError, ValueError):
        return False


def render_once(folder: str | Path) -> None:
    """See to it that ``folder`` holds the pictures of this version, whoever else is doing the same.

    The pictures are drawn into a temporary folder beside it, which then takes its place by renaming, so ``folder`` is
    never there half done. Of several processes one wins and the others throw their identical work away.

    Raises:
        OSError: the place is read-only or full.
    """
    folder = Path(folder)
    if is_current(folder):
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh = work / "fresh"
        render(fresh)
        for attempt in range(5):
            if is_current(folder):
                return
            # A folder cannot replace one that has something in it: what another version drew steps aside first.
            with contextlib.suppress(FileNotFoundError):
                folder.rename(work / f"stale{attempt}")
            try:
                fresh.rename(folder)
                return
            except OSError:  # most likely another process was quicker
                if attempt == 4:
                    raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
