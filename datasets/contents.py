"""What of a folder belongs to a data set: the one rule, for training, prediction and scripts/datasets.py alike.

Images are files with an extension of `IMAGE_EXTENSIONS`, at any depth below a class folder, as in DomainBed and
torchvision's ImageFolder; links are followed. Whatever else lies there is not used, and is kept by reason, so that it
can be told. No file is opened.
"""

import filecmp
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import OUTPUT_MARK

# torchvision's IMG_EXTENSIONS, and other names of what Pillow reads.
IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)
SPLIT_FOLDER = "spg_coop_splits"
RENDERED_FILE = "rendered.json"  # beside the domains of MiniDigits
# What we put beside images ourselves; folders of output have a mark.
_OURS = {SPLIT_FOLDER, RENDERED_FILE, "plan.json", "datasets.json", "report.html"}
# What Python, archive tools, file managers and network storage leave behind, beside hidden folders.
_LEFT_BEHIND = {
    *("__pycache__", "__MACOSX", "@eaDir", "#recycle", "lost+found"),
    *("$RECYCLE.BIN", "System Volume Information"),
}

# Why something is not used.
HIDDEN = "hidden"
LEFT_BEHIND = "left behind by other programs"
NO_IMAGE = "with other extensions"
NOWHERE = "links that lead nowhere"
CIRCLE = "links back to a folder above"
SPECIAL = "neither file nor folder"
BESIDE_CLASSES = "beside the class folders"
BESIDE_PARTS = "beside the folders that are read"
BESIDE_DOMAINS = "beside the domain folders"

_EXTENSIONS = frozenset(IMAGE_EXTENSIONS)

# Paths of what is not used, by reason.
Unused = dict[str, list[str]]


class Content(NamedTuple):
    """What lies directly in a folder, by name.

    Args:
        images: sorted.
        folders: sorted, without those that are not used.
        unused: the rest, by reason.
    """

    images: list[str]
    folders: list[str]
    unused: Unused


def extension(name: str) -> str:
    """The extension of a file name, in lower case and with its dot; "" if it has none."""
    return name[name.rfind(".") :].lower() if "." in name else ""


def read_folder(folder: str | Path) -> Content:
    """What lies directly in a folder.

    Raises:
        UserError: it cannot be read.
    """
    images: list[str] = []
    folders: list[str] = []
    unused: Unused = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                name = entry.name
                if name[0] == ".":
                    unused.setdefault(HIDDEN, []).append(name)
                elif extension(name) in _EXTENSIONS and _holds(entry.is_file):
                    images.append(name)
                elif _holds(entry.is_dir):
                    if name in _LEFT_BEHIND:
                        unused.setdefault(LEFT_BEHIND, []).append(name)
                    elif name not in _OURS and not os.path.exists(os.path.join(entry.path, OUTPUT_MARK)):
                        folders.append(name)
                elif name not in _OURS:
                    unused.setdefault(_why_no_image(entry), []).append(name)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return Content(sorted(images), sorted(folders), {reason: sorted(names) for reason, names in unused.items()})


def _holds(check: Callable[[], bool]) -> bool:
    """What ``entry.is_dir`` or ``entry.is_file`` says; False for a link that leads to itself or nowhere."""
    try:
        return check()
    except OSError:
        return False


def _why_no_image(entry: os.DirEntry) -> str:
    if _holds(entry.is_file):
        return NO_IMAGE
    return NOWHERE if entry.is_symlink() else SPECIAL


def _unreadable(folder: str | Path, error: OSError) -> UserError:
    return UserError(f"Cannot read the folder {folder}: {error.strerror}. Check its permissions.")


def images_below(folder: str | Path, read: Callable[[str | Path], Content] = read_folder) -> tuple[list[str], Unused]:
    """All images in a folder and in the folders below it.

    Args:
        folder: e.g. that of a class.
        read: in place of `read_folder`, one that remembers.

    Returns:
        paths of the images relative to ``folder``, sorted; and such paths of what is not used, by reason.

    Raises:
        UserError: a folder cannot be read.
    """
    content = read(folder)
    if not content.folders:
        return content.images, content.unused
    images: list[str] = []
    unused: Unused = {}
    whole = Path(os.path.realpath(folder))
    above = frozenset(_identity(place) for place in (whole, *whole.parents))
    found = [("", content, above)]  # grows meanwhile
    for inside, content, above in found:  # noqa: B020
        images += [inside + name for name in content.images]
        collect(unused, content.unused, inside)
        for name in content.folders:
            path = os.path.join(folder, inside, name)
            identity = _identity(path)
            if identity in above:
                collect(unused, {CIRCLE: [name]}, inside)
            else:
                found.append((f"{inside}{name}/", read(path), above | {identity}))
    return sorted(images), unused


def _identity(folder: str | Path) -> tuple[int, int]:
    """What is the same for two paths exactly if they lead to one folder."""
    try:
        status = os.stat(folder)
    except OSError as error:
        raise _unreadable(folder, error) from error
    return status.st_dev, status.st_ino


def same_images(one: str, other: str, at_most: int = 200) -> bool:
    """Whether two folders hold the same images, or one of them is gone; of some, evenly spread, contents are compared.

    Args:
        at_most: how many of them.
    """
    if not (os.path.isdir(one) and os.path.isdir(other)):
        return True
    try:
        paths, others = images_below(one)[0], images_below(other)[0]
        return paths == others and all(
            filecmp.cmp(os.path.join(one, path), os.path.join(other, path), shallow=False)
            for path in paths[:: -(-len(paths) // at_most) or 1]
        )
    except (OSError, UserError):  # another user's, for instance
        return False


def collect(unused: Unused, more: Unused, below: str = "") -> None:
    """Add to ``unused`` what is not used in the folder ``below`` ("", or a path that ends in a slash)."""
    for reason, names in more.items():
        unused.setdefault(reason, []).extend(below + name for name in names)


def beside(content: Content, reason: str, read: Iterable[str] = ()) -> Unused:
    """What of a folder that is to hold certain folders alone is not used.

    Args:
        content: of the folder.
        reason: for files, and for folders that are not read.
        read: names of the folders that are.
    """
    names = [*content.images, *content.unused.get(NO_IMAGE, ()), *(set(content.folders) - set(read))]
    unused = {other: list(found) for other, found in content.unused.items() if other != NO_IMAGE}
    return {**unused, reason: sorted(names)} if names else unused


def describe(unused: Unused) -> str:
    """For messages, how many there are of each reason: ``"3 with other extensions (.svg, .txt), 1 hidden"``."""
    parts = []
    for reason, names in sorted(unused.items()):
        kinds = ", ".join(sorted({extension(name.rpartition("/")[2]) or "none" for name in names}))
        parts.append(f"{len(names):,} {reason}" + (f" ({kinds})" if reason == NO_IMAGE else ""))
    return ", ".join(parts)
