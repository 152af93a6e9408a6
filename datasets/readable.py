"""Which images can be read: each is opened and decoded once. And which are read otherwise than viewers show them."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dassl.data.datasets import Datum
from dassl.utils import read_image
from PIL import Image

from common.errors import some, warn
from common.progress import progress
from common.threads import usable_cores

ORIENTATION = 274  # the tag of EXIF: 1 is upright


def keep_readable(items: list[Datum], description: str) -> list[Datum]:
    """The items whose image can be decoded; the others are named in a warning.

    Args:
        items: items of a split.
        description: what they are, for progress bar and warning.
    """
    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow decodes outside Python's lock
        found = pool.map(_is_readable, [item.impath for item in items])
        readable = list(progress(found, total=len(items), description=f"Checking {description}", unit="img"))
    unreadable = [item.impath for item, good in zip(items, readable, strict=True) if not good]
    if unreadable:
        warn(f"{len(unreadable):,} unreadable images of {description} are skipped: {some(unreadable)}.")
    return [item for item, good in zip(items, readable, strict=True) if good]


def warn_of_orientation(paths: Sequence[str], description: str, at_most: int = 64) -> bool:
    """Warn if an image has an EXIF orientation, which is ignored; returns whether one has.

    Args:
        paths: files, of which the headers of some are read.
        description: of the images, for the warning.
        at_most: how many of them, evenly spread.
    """
    for path in paths[:: -(-len(paths) // at_most) or 1]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # a damaged one is reported where it is used
            if Image.Image.getexif(image).get(ORIENTATION, 1) != 1:  # not its own method, which may decode
                warn(
                    f"{description} have an EXIF orientation, {path} for instance. It is ignored, as in Dassl and "
                    "CLIP: images are read as they are stored."
                )
                return True
    return False


def _is_readable(path):
    try:
        read_image(path)
    except Exception:  # whatever Pillow makes of a damaged file; the user is told which
        return False
    return True
