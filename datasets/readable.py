"""Find images that cannot be decoded, and images with an EXIF orientation."""

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from dassl.data.datasets import Datum
from dassl.utils import read_image
from PIL import Image

from common.errors import join_truncated, warn
from common.progress import progress
from common.threads import usable_cores

ORIENTATION = 274  # the tag of EXIF: 1 is upright


def find_unreadable(paths: Sequence[str], description: str) -> dict[str, str]:
    """Decode images; return the reason for each one that cannot be decoded."""
    with ThreadPoolExecutor(usable_cores()) as pool:  # Pillow decodes outside Python's lock
        reasons = pool.map(_why_unreadable, paths)
        reasons = progress(reasons, total=len(paths), description=f"Checking {description}", unit="img")
        return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _why_unreadable(path: str) -> str:
    try:
        read_image(path)
    except Exception as error:  # Pillow raises OSError, SyntaxError, struct.error, ... of damaged files
        return str(error) or type(error).__name__
    return ""


def keep_readable(items: list[Datum], description: str) -> list[Datum]:
    """Drop the items whose image cannot be decoded, with a warning that names them."""
    unreadable = find_unreadable([item.impath for item in items], description)
    if unreadable:
        warn(f"{len(unreadable):,} unreadable images of {description} are skipped: {join_truncated(unreadable)}.")
    return [item for item in items if item.impath not in unreadable]


def warn_of_orientation(paths: Sequence[str], description: str, at_most: int = 64) -> bool:
    """Warn if an image has an EXIF orientation, which is ignored; return whether one has.

    Args:
        at_most: read the headers of this many files, evenly spread.
    """
    for path in paths[:: -(-len(paths) // at_most) or 1]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # the run reports damaged files itself
            if Image.Image.getexif(image).get(ORIENTATION, 1) != 1:  # image.getexif() of some formats decodes the image
                warn(
                    f"{description} have an EXIF orientation, {path} for instance. It is ignored, as in Dassl and "
                    "CLIP: images are read as they are stored."
                )
                return True
    return False
