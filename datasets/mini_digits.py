"""MiniDigits: 1,600 digits in four domains, 64 px RGB, drawn on first use, the same bytes every time.

The domain handwritten is scikit-learn's scanned digits; printed and sketch use fonts of matplotlib. Versions of Pillow,
FreeType and the fonts may change the bytes.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from dassl.data.datasets import DATASET_REGISTRY
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps
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
CANVAS = 2 * SIZE  # pictures are drawn at double size and then reduced, for smooth edges
VERSION = 2  # increase it with every change of a picture
VERSION_FILE = ".version"  # in the folder of the images: they are complete
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic")
# Seven segments a to g, each from a corner (column, row) to another, and the lit ones of each digit.
SEGMENTS = ((0, 0, 1, 0), (1, 0, 1, 1), (1, 1, 1, 2), (0, 2, 1, 2), (0, 1, 0, 2), (0, 0, 0, 1), (0, 1, 1, 1))
LIT = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")


@DATASET_REGISTRY.register()
class MiniDigits(DomainGeneralizationDataset):
    """Ten digits in four domains, drawn into DATASET.ROOT, or into the user's cache folder if that is read-only."""

    domains = list(DOMAINS)
    codes = ["d", "h", "p", "s"]
    classes = list(CLASSES)
    layouts = [Layout("rendered here", "mini_digits", images="images")]
    image_counts = dict.fromkeys(domains, len(classes) * IMAGES_PER_CLASS)

    @classmethod
    def data_root(cls, cfg: CfgNode) -> Path:
        """The folder that holds mini_digits/images, with all images in it."""
        root = Path(os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT or cache_folder())))
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
                render(images)
        return root


def _is_drawn(images: Path) -> bool:
    mark = images / VERSION_FILE
    return mark.is_file() and mark.read_text() == str(VERSION)


def render(images: Path) -> None:
    """Replace a folder by all pictures, `<images>/<domain>/<class>/<NNN>.png`, in a few seconds."""
    with tempfile.TemporaryDirectory(prefix=".images.", dir=images.parent) as temporary:
        work = Path(temporary) / "images"
        for domain in DOMAINS:
            for digit, name in enumerate(CLASSES):
                (work / domain / name).mkdir(parents=True)
                for number, picture in enumerate(draw(domain, digit)):
                    picture.save(work / domain / name / f"{number:03d}.png")
        (work / VERSION_FILE).write_text(str(VERSION))
        shutil.rmtree(images, ignore_errors=True)  # of another version
        work.rename(images)


def draw(domain: str, digit: int) -> Iterator[Image.Image]:
    """Draw the pictures of a digit in a domain. Each picture has its own random generator."""
    if domain == "handwritten":
        from sklearn.datasets import load_digits

        cells, labels = load_digits(return_X_y=True)  # 8 x 8 cells, from 0 for paper to 16 for ink, by writer
        for scan in cells[labels == digit].reshape(-1, 8, 8)[::4][:IMAGES_PER_CLASS]:
            ink = Image.fromarray(np.uint8(scan * 15)).resize((48, 48), Image.Resampling.BICUBIC)
            yield ImageOps.invert(ImageOps.expand(ink, (SIZE - 48) // 2)).convert("RGB")
        return
    for number in range(IMAGES_PER_CLASS):
        rng = np.random.default_rng([VERSION, DOMAINS.index(domain), digit, number])
        yield {"display": _display, "printed": _printed, "sketch": _sketch}[domain](digit, rng)


def _display(digit, rng):
    size, thickness = rng.integers((36, 38), (54, 50)), int(rng.integers(8, 14))
    mask, faint = Image.new("L", (CANVAS, CANVAS)), int(rng.integers(5, 25))
    for name, ends in zip("abcdefg", SEGMENTS, strict=True):
        start, end = (np.reshape(ends, (2, 2)) - (0.5, 1)) * size + CANVAS / 2
        gap = np.sign(end - start) * (thickness / 2)
        line = [*(start + gap), *(end - gap)]
        ImageDraw.Draw(mask).line(line, fill=255 if name in LIT[digit] else faint, width=thickness)
    light = rng.permutation([255, rng.integers(256), 50])
    return paint(place(mask, rng, degrees=8, shift=8), rng.integers(0, 40, 3), light, rng)


def _printed(digit, rng):
    mask = place(glyph(digit, rng.choice(FONTS), rng.integers(40, 110)), rng, degrees=25, shift=16)
    paper, ink = rng.permutation([rng.integers(190, 256, 3), rng.integers(0, 90, 3)])
    return paint(mask, paper, ink, rng)


def _sketch(digit, rng):
    shape, pencil = glyph(digit, rng.choice(FONTS), rng.integers(70, 130)), Image.new("L", (CANVAS, CANVAS))
    for _ in range(2):  # nobody hits the same line twice
        outline = place(shape, rng, degrees=6, shift=5).filter(ImageFilter.FIND_EDGES)
        pressure = Image.fromarray(rng.integers(60, 256, (6, 6), np.uint8)).resize(shape.size, Image.Resampling.BICUBIC)
        pencil = ImageChops.lighter(pencil, ImageChops.multiply(outline, pressure))
    return paint(place(pencil, rng, degrees=25, shift=12), rng.integers(150, 250, 3), rng.integers(10, 80, 3), rng)


def glyph(digit: int, font: str, size: int) -> Image.Image:
    """Draw a digit into the middle of a mask, in a font of matplotlib."""
    import matplotlib

    path = f"{matplotlib.get_data_path()}/fonts/ttf/{font}.ttf"
    face = ImageFont.truetype(path, int(size), layout_engine=ImageFont.Layout.BASIC)  # in every Pillow
    mask = Image.new("L", (CANVAS, CANVAS))
    ImageDraw.Draw(mask).text((SIZE, SIZE), str(digit), fill=255, font=face, anchor="mm")
    return mask


def place(mask: Image.Image, rng: np.random.Generator, degrees: float, shift: float) -> Image.Image:
    """Turn and shift a mask, each at random up to a bound."""
    angle, right, down = rng.uniform(-1, 1, 3) * (degrees, shift, shift)
    return mask.rotate(angle, Image.Resampling.BILINEAR, translate=(right, down))


def paint(mask: Image.Image, paper: np.ndarray, ink: np.ndarray, rng: np.random.Generator) -> Image.Image:
    """Reduce a mask to SIZE pixels, lay ink on paper by it, and add grain; paper and ink are colours (3,) or images."""
    cover = np.asarray(mask.resize((SIZE, SIZE), Image.Resampling.BOX))[..., None]
    levels = (paper * (255 - cover) + ink * cover) // 255 + rng.integers(-8, 9, (SIZE, SIZE, 1))
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
