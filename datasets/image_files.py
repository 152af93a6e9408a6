"""List the images of class folders: one rule for training, prediction and scripts/datasets.py.

An image is a file with an extension of `IMAGE_EXTENSIONS` in a class folder or below it. Links are followed. Listing
opens no file.
"""

import contextlib
import filecmp
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from dassl.data.datasets import Datum
from dassl.utils import read_image
from PIL import Image

from common.errors import UserError, join_truncated, warn
from common.files import OUTPUT_MARK, SPLIT_FOLDER
from common.progress import progress
from common.threads import usable_cores
from datasets.names import check_name

# torchvision's IMG_EXTENSIONS, and other names of formats that Pillow reads.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
ORIENTATION = 274  # the tag of EXIF: 1 is upright
# Our split files, and folders of Python, archive tools, file managers and network storage.
_IGNORED_FOLDERS = {
    *(SPLIT_FOLDER, "__pycache__", "__MACOSX", "@eaDir", "#recycle", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information"),
}


class Content(NamedTuple):
    """Names of the images and folders directly in a folder, sorted."""

    images: list[str]
    folders: list[str]


class ClassFolder(NamedTuple):
    """One folder of images."""

    part: str  # folder between domain and class ("train", "full", ...), or ""
    classname: str
    path: str  # relative to the domain's folder


def read_folder(folder: str | Path) -> Content:
    """List a folder without hidden files, folders of other programs and output of runs."""
    images, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name
            if name[0] == ".":
                continue
            with contextlib.suppress(OSError):  # a link to itself
                if name[name.rfind(".") :].lower() in IMAGE_EXTENSIONS and entry.is_file():
                    images.append(name)
                elif name not in _IGNORED_FOLDERS and entry.is_dir():
                    folders.append(name)
    folders = [name for name in folders if not os.path.exists(os.path.join(folder, name, OUTPUT_MARK))]
    return Content(sorted(images), sorted(folders))


def list_folders(folder: str | Path) -> list[str]:
    return read_folder(folder).folders


def images_below(folder: str | Path) -> list[str]:
    """List the images in a folder and in all folders below it, as sorted paths relative to it."""
    content = read_folder(folder)
    if not content.folders:
        return content.images
    real = Path(os.path.realpath(folder))
    return sorted(_walk(os.fspath(folder), "", frozenset(map(str, (real, *real.parents)))))


def _walk(folder: str, inside: str, above: frozenset[str]) -> Iterator[str]:
    content = read_folder(os.path.join(folder, inside))
    yield from (inside + name for name in content.images)
    for name in content.folders:
        path = f"{inside}{name}/"
        real = os.path.realpath(os.path.join(folder, path))
        if real not in above:  # a link to a folder above would never end
            yield from _walk(folder, path, above | {real})


def class_folders(domain_dir: Path, parts: Iterable[str], class_name: Callable[[str], str]) -> list[ClassFolder]:
    """List the class folders of one domain, in its parts or, for `("",)`, in the domain itself."""
    folders = []
    for part in parts:
        part_dir = domain_dir / part
        if not part_dir.is_dir():
            raise UserError(f"{domain_dir} has no folder {part}, which its layout needs. Extract the set again.")
        seen: dict[str, str] = {}  # folder by class
        for name in list_folders(part_dir):
            check_name(part_dir / name)
            classname = class_name(name)
            if classname in seen:
                both = f"{seen[classname]} and {name}"
                raise UserError(f"{part_dir} has two folders for the class {classname!r}: {both}. Move one away.")
            seen[classname] = name
            folders.append(ClassFolder(part, classname, f"{part}/{name}" if part else name))
    return folders


def same_images(one: str, other: str, at_most: int = 200) -> bool:
    """Whether two folders hold the same images, by names and the contents of some, or one is missing."""
    if not (os.path.isdir(one) and os.path.isdir(other)):
        return True
    paths = images_below(one)
    sample = paths[:: -(-len(paths) // at_most) or 1]
    return paths == images_below(other) and filecmp.cmpfiles(one, other, sample, shallow=False)[0] == sample


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
    """Drop items with images that cannot be decoded, and warn with their names."""
    unreadable = find_unreadable([item.impath for item in items], description)
    if unreadable:
        warn(f"{len(unreadable):,} unreadable images of {description} are skipped: {join_truncated(unreadable)}.")
    return [item for item in items if item.impath not in unreadable]


def warn_of_orientation(paths: Sequence[str], description: str, at_most: int) -> None:
    """Warn if one of `at_most` images, evenly spread, has an EXIF orientation, which is ignored."""
    for path in paths[:: -(-len(paths) // at_most) or 1]:
        with contextlib.suppress(Exception), Image.open(path) as image:  # the run reports damaged files itself
            if Image.Image.getexif(image).get(ORIENTATION, 1) != 1:  # image.getexif() of some formats decodes the image
                warn(
                    f"{description} have an EXIF orientation, {path} for instance. It is ignored, as in Dassl and "
                    "CLIP: images are read as they are stored."
                )
                return
