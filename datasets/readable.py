"""Which images can be read: each is opened and decoded once."""

from concurrent.futures import ThreadPoolExecutor

from dassl.data.datasets import Datum
from dassl.utils import read_image

from common.messages import some, warn
from common.progress import progress
from common.threads import usable_cores


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


def _is_readable(path):
    try:
        read_image(path)
    except Exception:  # whatever Pillow makes of a damaged file; the user is told which
        return False
    return True
