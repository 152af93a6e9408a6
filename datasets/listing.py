"""Lists the image files of a domain, quickly: no file is opened, and large domains are kept in an index."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import atomic_write, is_writable
from datasets.layouts import holds, list_folders

IMAGE_EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp"),
    *(".gif", ".tif", ".tiff", ".ppm", ".pgm"),
)

INDEX_VERSION = 1
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
            classname = class_name(name)
            if classname in seen:
                raise UserError(
                    f"{part_dir} has two folders for the class {classname!r}: {seen[classname]} and {name}. "
                    "Merge them or move one away."
                )
            seen[classname] = name
            folders.append(ClassFolder(part, classname, f"{part}/{name}" if part else name))
    return folders


def list_images(
    domain_dir: Path, folders: Sequence[ClassFolder], index_file: Path | None = None
) -> dict[ClassFolder, list[str]]:
    """Names of the image files in each class folder.

    Image files are told by their extension, in any letter case; hidden files, folders, and links that lead
    nowhere are left out.

    Args:
        domain_dir: folder of the domain.
        folders: see :func:`class_folders`.
        index_file: where the names in large domains are kept, with the modification time of each class
            folder: a folder whose time differs is listed anew, and an index that cannot be read is made anew. None: no
            index is read or written.

    Returns:
        the names of each folder's images, sorted.

    Raises:
        UserError: a folder cannot be read.
    """
    old = _read_index(index_file) if index_file else {}
    new, images = {}, {}
    for folder in folders:
        path = os.path.join(domain_dir, folder.path)
        now, mtime = time.time_ns(), os.stat(path).st_mtime_ns
        known_mtime, known_names = old.get(folder.path, (None, None))
        names = images[folder] = known_names if known_mtime == mtime else _image_names(path)
        if known_mtime == mtime or mtime < now - INDEX_MIN_AGE_NS:
            new[folder.path] = [mtime, names]
    n_images = sum(map(len, images.values()))
    if index_file and new != old and n_images >= INDEX_MIN_IMAGES and is_writable(index_file.parent):
        # A full disk is no reason to stop: the index only saves time.
        with contextlib.suppress(OSError), atomic_write(index_file, "w") as handle:
            json.dump({"version": INDEX_VERSION, "folders": new}, handle, separators=(",", ":"))
    return images


def _image_names(path):
    try:
        with os.scandir(path) as entries:
            return sorted(
                entry.name
                for entry in entries
                if entry.name.lower().endswith(IMAGE_EXTENSIONS)
                and not entry.name.startswith(".")
                and holds(entry.is_file)
            )
    except OSError as error:
        raise UserError(f"Cannot read the folder {path}: {error.strerror}. Check its permissions.") from error


def _read_index(path):
    """Dict from the path of a class folder to its [modification time, names]; empty without a sound index."""
    try:
        content = json.loads(Path(path).read_bytes())
        folders = content["folders"]
        sound = content["version"] == INDEX_VERSION and all(
            isinstance(mtime, int) and isinstance(names, list) and set(map(type, names)) <= {str}
            for mtime, names in folders.values()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return folders if sound else {}
