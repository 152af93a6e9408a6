"""MiniDigits: 1,600 digits in four domains, 64 px RGB, drawn on first use, the same bytes every time.

The domain handwritten is scikit-learn's scanned digits; printed and sketch use the fonts of matplotlib. Each picture
has its own random generator. Versions of Pillow, FreeType and matplotlib's fonts may change the bytes.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import maximum_filter, minimum_filter
from yacs.config import CfgNode

from common.errors import UserError, warn
from common.files import cache_folder, is_writable, make_output_folder
from common.locks import file_lock
from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
DOMAINS = ("display", "handwritten", "printed", "sketch")
IMAGES_PER_CLASS = 40
SIZE = 64  # pixels, the input of assets/mini_clip.pt
VERSION = 1  # increase it with every change of a picture
VERSION_FILE = ".version"  # in the folder of the images: they are complete

_CANVAS = 2 * SIZE  # drawn at double size and reduced at the end, for smooth edges
_HANDWRITTEN_PX = 48  # the 8 x 8 cells of scikit-learn become 6 px each
_PRINT_FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic"),
)
_SKETCH_FONTS = ("DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "DejaVuSans-BoldOblique")
# Segments of a display: column and row of both ends; a is the top, b upper right, and so on clockwise, g the middle.
_SEGMENTS = {
    "a": ((0, 0), (1, 0)),
    "b": ((1, 0), (1, 1)),
    "c": ((1, 1), (1, 2)),
    "d": ((0, 2), (1, 2)),
    "e": ((0, 1), (0, 2)),
    "f": ((0, 0), (0, 1)),
    "g": ((0, 1), (1, 1)),
}
_LIT_SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")


@DATASET_REGISTRY.register()
class MiniDigits(DomainGeneralizationDataset):
    """Ten digits, 40 images each in four domains; label k is digit k.

    They are drawn into DATASET.ROOT/mini_digits or, if that is not set or read-only, into the user's cache folder.
    """

    domains = list(DOMAINS)
    codes = ["d", "h", "p", "s"]
    classes = list(CLASSES)
    layouts = [Layout("rendered here", "mini_digits", images="images")]
    image_counts = dict.fromkeys(domains, len(classes) * IMAGES_PER_CLASS)

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """The folder that holds mini_digits/images, with all images in it."""
        root = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))) if str(cfg.DATASET.ROOT) else cache_folder()
        if not (_is_drawn(root / "mini_digits/images") or is_writable(root / "mini_digits")):
            warn(f"DATASET.ROOT {root} is read-only, so the images of {cls.__name__} go to {cache_folder()}.")
            root = cache_folder()
        images = root / "mini_digits/images"
        if _is_drawn(images):
            return root
        if not cls.writes:
            raise UserError(f"{cls.__name__}: its images are not in {images} yet. A run draws them.")
        make_output_folder(root)  # it may lie among the domains of a user's folder
        with file_lock(root / "mini_digits/.lock", "draws MiniDigits"):
            if not _is_drawn(images):
                if cfg.VERBOSE:
                    print(f"{cls.__name__}: drawing its images into {images}, once")
                _draw_all(images)
        return root


def _is_drawn(images: Path) -> bool:
    mark = images / VERSION_FILE
    return mark.is_file() and mark.read_text() == str(VERSION)


def _draw_all(images: Path) -> None:
    work = Path(tempfile.mkdtemp(prefix=".images.", dir=images.parent))
    try:
        render(work / "images")
        (work / "images" / VERSION_FILE).write_text(str(VERSION))
        shutil.rmtree(images, ignore_errors=True)  # of another version
        (work / "images").rename(images)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def render(folder: Path) -> None:
    """Write all pictures to `<folder>/<domain>/<class>/<NNN>.png`, in a few seconds."""
    real = handwritten()
    for domain in DOMAINS:
        for label, name in enumerate(CLASSES):
            (folder / domain / name).mkdir(parents=True)
            for number in range(IMAGES_PER_CLASS):
                picture = real[label][number] if domain == "handwritten" else draw(domain, label, number)
                picture.save(folder / domain / name / f"{number:03d}.png")


def draw(domain: str, digit: int, number: int) -> Image.Image:
    """Draw picture `number` of a digit in the domain display, printed or sketch."""
    rng = np.random.default_rng([2404, VERSION, DOMAINS.index(domain), digit, number])
    return {"display": _display, "printed": _printed, "sketch": _sketch}[domain](digit, rng)


def handwritten() -> dict[int, list[Image.Image]]:
    """Enlarge the digits of scikit-learn, dark on paper; return IMAGES_PER_CLASS pictures of each class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    # Every fourth digit, since the file is ordered by writer.
    chosen = {label: digits.images[digits.target == label][::4][:IMAGES_PER_CLASS] for label in range(len(CLASSES))}
    return {label: [_enlarge(cells) for cells in images] for label, images in chosen.items()}


def _enlarge(cells):  # 0 is paper, 16 is ink
    small = Image.fromarray(np.rint(255 - cells * (255 / 16)).astype(np.uint8))
    image = Image.new("L", (SIZE, SIZE), 255)
    margin = (SIZE - _HANDWRITTEN_PX) // 2
    image.paste(small.resize((_HANDWRITTEN_PX, _HANDWRITTEN_PX), Image.Resampling.BICUBIC), (margin, margin))
    return image.convert("RGB")


def _printed(digit, rng):
    mask = place(_glyph(digit, rng, _PRINT_FONTS, 52, 96), rng, 10, 0.05, 12)
    mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.5)))
    light = 255 - rng.uniform(0, 45, 3)
    dark = rng.uniform(0, 80, 3)
    paper, ink = (dark, light) if rng.random() < 0.25 else (light, dark)
    return finish(blend(plain(rng, paper, _CANVAS, 10), mask, ink), rng, 6)


def _display(digit, rng):
    width, height = rng.uniform(36, 54), rng.uniform(76, 100)
    thickness, gap = rng.uniform(7, 13), rng.uniform(1, 3)
    left, top = (_CANVAS - width) / 2, (_CANVAS - height) / 2
    columns, rows = (left, left + width), (top, top + height / 2, top + height)
    # Makers differ: the tails of six and nine and the hook of seven are not on every display.
    lit = set(_LIT_SEGMENTS[digit])
    variant = {6: "a", 9: "d", 7: "f"}.get(digit)
    if variant and rng.random() < 0.3:
        lit ^= {variant}
    on, off = Image.new("L", (_CANVAS, _CANVAS)), Image.new("L", (_CANVAS, _CANVAS))
    for name, ends in _SEGMENTS.items():
        start, end = (np.array((columns[column], rows[row])) for column, row in ends)
        ImageDraw.Draw(on if name in lit else off).polygon(_bar(start, end, gap, thickness / 2), fill=255)
    slant = rng.uniform(0, 0.15), *rng.uniform(-8, 8, 2)
    on, off = _slant(on, *slant), _slant(off, *slant)
    if rng.random() < 0.3:  # a liquid crystal, else glowing diodes
        ground = plain(rng, np.array([150, 165, 130]) + rng.uniform(-25, 25, 3), _CANVAS, 12)
        ground = blend(ground, floats(off) * 0.08, (30, 35, 30))
        return finish(blend(ground, on, rng.uniform(10, 50, 3)), rng, 4)
    glow = np.array([(255, 40, 30), (60, 255, 80), (255, 170, 30), (70, 190, 255), (240, 240, 255)][rng.integers(5)])
    ground = plain(rng, rng.uniform(5, 35, 3), _CANVAS, 6)
    ground = blend(ground, floats(off) * rng.uniform(0.05, 0.2), glow)
    halo = floats(on.filter(ImageFilter.GaussianBlur(rng.uniform(4, 9))))
    return finish(blend(blend(ground, 0.6 * halo, glow), on, 0.85 * glow + 0.15 * 255), rng, 4)


def _bar(start, end, gap, half):
    direction = np.sign(end - start)
    start, end, along = start + gap * direction, end - gap * direction, half * direction
    across = along[::-1] * (1, -1)
    corners = (start, start + along + across, end - along + across, end, end - along - across, start + along - across)
    return [tuple(corner) for corner in corners]


def _sketch(digit, rng):
    mask = place(_glyph(digit, rng, _SKETCH_FONTS, 76, 104), rng, 14, 0.2, 8)
    pencil = np.zeros((_CANVAS, _CANVAS), dtype=np.float32)
    for _ in range(2):  # nobody hits the same line twice
        shape = warp(mask, rng, 4.5, 5)
        pressure = 0.6 + 0.4 * smooth_noise(rng, _CANVAS, 6)
        outline = maximum_filter(shape, 3, mode="nearest") - minimum_filter(shape, 3, mode="nearest")
        pencil = np.maximum(pencil, outline.astype(np.float32) / 255 * pressure)
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


# ---- parts, which scripts/train_mini_clip.py uses too ----


def _glyph(digit, rng, fonts, lowest, highest):
    font, height = fonts[rng.integers(len(fonts))], rng.uniform(lowest, highest)
    _, top, _, bottom = _load_font(font, 200).getbbox(str(digit))
    face = _load_font(font, max(1, round(200 * height / (bottom - top))))
    left, top, right, bottom = face.getbbox(str(digit))
    mask = Image.new("L", (_CANVAS, _CANVAS))
    corner = ((_CANVAS - right - left) // 2, (_CANVAS - bottom - top) // 2)
    ImageDraw.Draw(mask).text(corner, str(digit), fill=255, font=face)
    return mask


@functools.lru_cache(maxsize=512)
def _load_font(name, size):
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)  # in every Pillow


def smooth_noise(rng: np.random.Generator, canvas: int, cells: int) -> np.ndarray:
    """Draw a smooth random surface (canvas, canvas) within [-1, 1], with about `cells` hills along an edge."""
    grid = Image.fromarray(rng.uniform(-1, 1, (cells + 1, cells + 1)).astype(np.float32))
    return np.clip(np.asarray(grid.resize((canvas, canvas), Image.Resampling.BICUBIC)), -1, 1)


def warp(mask: Image.Image, rng: np.random.Generator, pixels: float, cells: int) -> Image.Image:
    """Move the points of a mask smoothly by at most `pixels` in each direction."""
    edge = mask.height
    rows, columns = (
        np.clip(np.rint(axis + pixels * smooth_noise(rng, edge, cells)), 0, edge - 1).astype(int)
        for axis in np.mgrid[:edge, :edge]
    )
    return Image.fromarray(np.asarray(mask)[rows, columns])


def place(mask: Image.Image, rng: np.random.Generator, degrees: float, shear: float, shift: float) -> Image.Image:
    """Rotate, slant and shift a mask, each at random up to a bound (degrees, ratio, pixels)."""
    turned = mask.rotate(rng.uniform(-degrees, degrees), resample=Image.Resampling.BILINEAR)
    return _slant(turned, rng.uniform(-shear, shear), *rng.uniform(-shift, shift, 2))


def _slant(mask, slant, right, down):
    matrix = (1, slant, -slant * mask.height / 2 - right, 0, 1, -down)
    return mask.transform(mask.size, Image.Transform.AFFINE, matrix, resample=Image.Resampling.BILINEAR)


def plain(rng: np.random.Generator, colour: npt.ArrayLike, canvas: int, unevenness: float) -> np.ndarray:
    """Draw a ground (canvas, canvas, 3) of one colour, shaded by at most `unevenness` grey levels."""
    return np.asarray(colour, dtype=np.float32) + unevenness * smooth_noise(rng, canvas, 2)[..., None]


def blend(ground: np.ndarray, mask: Image.Image | np.ndarray, ink: npt.ArrayLike) -> np.ndarray:
    """Lay ink, a colour or (H, W, 3), on a ground (H, W, 3), by a mask image or an array (H, W) within [0, 1]."""
    cover = floats(mask) if isinstance(mask, Image.Image) else mask
    return ground + cover[..., None] * (np.asarray(ink, dtype=np.float32) - ground)


def floats(mask: Image.Image) -> np.ndarray:
    """A mask within [0, 1]."""
    return np.asarray(mask, dtype=np.float32) / 255


def finish(picture: np.ndarray, rng: np.random.Generator, grain: float) -> Image.Image:
    """Reduce a drawing (2 SIZE, 2 SIZE, 3) to SIZE pixels, with noise of +-`grain` levels."""
    small = _image(picture).resize((SIZE, SIZE), Image.Resampling.BOX)
    return _image(np.asarray(small, dtype=np.float32) + rng.uniform(-grain, grain, (SIZE, SIZE, 1)))


def _image(levels):
    return Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
