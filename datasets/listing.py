"""Lists the image files of a domain, quickly: no file is opened, and large domains are kept in an index."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from common.errors import UserError
from common.files import atomic_write, is_writable
from datasets.contents import (
    BESIDE_CLASSES,
    BESIDE_PARTS,
    NOWHERE,
    Content,
    Unused,
    beside,
    collect,
    images_below,
    read_folder,
)
from datasets.layouts import list_folders
from datasets.names import check_name

INDEX_VERSION = 2
INDEX_MIN_IMAGES = 10_000  # below, listing the folders takes no longer than reading an index
# A file that comes within the same tick of the file system's clock leaves the time of its folder as it was: a
# folder changed this shortly before it was listed is not trusted to the index.
INDEX_MIN_AGE_NS = 2 * 10**9


class ClassFolder(NamedTuple):
    """One folder of images.

    Args:
        part: folder between domain and class ("train", "full", ...), or "".
        classname: name of the class, normalised.
        path: relative to the domain's folder, as it is on disk.
    """

    part: str
    classname: str
    path: str


def class_folders(domain_dir: Path, parts: Iterable[str], class_name: Callable[[str], str]) -> list[ClassFolder]:
    """The class folders of one domain.

    Args:
        domain_dir: folder of the domain.
        parts: folders between domain and class, or ``("",)``.
        class_name: from the name of a folder to the name of its class.

    Returns:
        the folders, sorted by path within each part.

    Raises:
        UserError: a part is missing; two folders are the same class.
    """
    folders = []
    for part in parts:
        part_dir = domain_dir / part
        if not part_dir.is_dir():
            raise UserError(
                f"{domain_dir} has no folder {part!r}; this layout needs {', '.join(map(repr, parts))} in "
                "each domain. Extract the set again."
            )
        seen: dict[str, str] = {}  # folder by class
        for name in list_folders(part_dir):
            check_name(part_dir / name)
            classname = class_name(name)
            if classname in seen:
                raise UserError(
                    f"{part_dir} has two folders for the class {classname!r}: {seen[classname]} and {name}. "
                    "Merge them or move one away."
                )
            seen[classname] = name
            folders.append(ClassFolder(part, classname, f"{part}/{name}" if part else name))
    return folders


class Listed(NamedTuple):
    """What there is in the class folders of one domain.

    Args:
        images: of each folder the paths of its images, relative to it and sorted.
        unused: paths of what is not used, relative to the domain's folder, by reason.
    """

    images: dict[ClassFolder, list[str]]
    unused: Unused


def list_images(domain_dir: Path, folders: Sequence[ClassFolder], index_file: Path | None = None) -> Listed:
    """List the images in each class folder, those in folders below it included, by the rule of `datasets.contents`.

    Args:
        domain_dir: folder of the domain.
        folders: see :func:`class_folders`.
        index_file: where the contents of large domains are kept, with the modification time of each folder: a
            folder whose time differs is listed anew, and an index that cannot be read is made anew. None: no
            index is read or written.

    Returns:
        the images, and what is not used in the class folders.

    Raises:
        UserError: a folder cannot be read.
    """
    index = _Index(domain_dir, index_file)
    images: dict[ClassFolder, list[str]] = {}
    unused: Unused = {}
    for folder in folders:
        images[folder], ignored = images_below(os.path.join(domain_dir, folder.path), index.read)
        collect(unused, ignored, f"{folder.path}/")
    index.write(sum(map(len, images.values())))
    return Listed(images, unused)


def beside_classes(domain_dir: Path, parts: Iterable[str]) -> Unused:
    """What lies beside the class folders of one domain: paths relative to its folder, by reason.

    Args:
        domain_dir: folder of the domain.
        parts: see :func:`class_folders`.

    Raises:
        UserError: a folder cannot be read.
    """
    parts = [part for part in parts if part and (domain_dir / part).is_dir()]
    if not parts:
        content = read_folder(domain_dir)
        return beside(content, BESIDE_CLASSES, content.folders)
    unused = beside(read_folder(domain_dir), BESIDE_PARTS, parts)
    for part in parts:
        collect(unused, beside_classes(domain_dir / part, ()), f"{part}/")
    return unused


class _Index:
    """What lies in the folders of one domain, as it was when they were last changed.

    Args:
        domain_dir: folder of the domain.
        path: of the index; None: none is read or written.
    """

    def __init__(self, domain_dir: Path, path: Path | None) -> None:
        self.path, self.start = path, len(os.path.join(domain_dir, ""))
        self.old = _read_index(path) if path else {}
        self.new: dict[str, list[Any]] = {}  # path of a folder -> [modification time, images, folders, unused]

    def read(self, folder: str | Path) -> Content:
        """What lies in a folder, which is looked at only where it has changed."""
        path = os.fspath(folder)
        try:
            now, mtime = time.time_ns(), os.stat(path).st_mtime_ns
        except OSError:
            return read_folder(path)  # which says what is wrong
        key = path[self.start :]
        known_mtime, *known = self.old.get(key, [None])
        content = Content(*known) if known_mtime == mtime else read_folder(path)
        # Where a link leads nowhere, something may come to be there without a change here.
        if known_mtime == mtime or (mtime < now - INDEX_MIN_AGE_NS and NOWHERE not in content.unused):
            self.new[key] = [mtime, *content]
        return content

    def write(self, n_images: int) -> None:
        """Keep what was read, where there are images enough and it is not kept already."""
        if self.path is None or self.new == self.old or n_images < INDEX_MIN_IMAGES:
            return
        if is_writable(self.path.parent):
            # A full disk is no reason to stop: the index only saves time.
            with contextlib.suppress(OSError), atomic_write(self.path, "w") as handle:
                json.dump({"version": INDEX_VERSION, "folders": self.new}, handle, separators=(",", ":"))


def _read_index(path: Path) -> dict[str, list[Any]]:
    """From the path of a folder to its [modification time, *Content]; empty without a sound index."""
    try:
        content = json.loads(path.read_bytes())
        folders = content["folders"]
        sound = content["version"] == INDEX_VERSION and all(_is_sound(*entry) for entry in folders.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return folders if sound else {}


def _is_sound(mtime: object, images: list[str], folders: list[str], unused: Unused) -> bool:
    listed = (images, folders, *unused.values())
    return isinstance(mtime, int) and all(
        isinstance(names, list) and set(map(type, names)) <= {str} for names in listed
    )
