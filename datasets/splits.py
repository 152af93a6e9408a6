"""Which images of a domain train and which validate: published split files, or a seeded rule.

A split file is ``{"train": [[impath, label, domain_index, classname], ...], "val": [...], "test": [...]}``
with impath relative to the data root. Of a path that is read, only domain, part, class and what is below the class
count: a file that was made in one layout serves in the others, whatever order of classes its labels have. ``test``
repeats ``val``, as in the published files, and is not read: the test set of a target domain is all its
images.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Container, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import atomic_write
from datasets.layouts import TRAIN, VAL
from datasets.listing import ClassFolder

# Part of every split that is made; never the SEED of a run, so that all methods and seeds share one split.
SPLIT_SEED = 1


class Image(NamedTuple):
    """One image of a domain.

    Args:
        folder: the class folder that it is in.
        name: its path in there, which is just its file name unless it lies in a folder of its own.
    """

    folder: ClassFolder
    name: str


class Entry(NamedTuple):
    """One path of a split file, taken apart into folders (part "" if there is none) and file name.

    It is taken apart as if the image lay in its class folder itself; :func:`_readings` has the others.
    """

    path: str
    domain: str
    part: str
    class_folder: str
    name: str


def seeded_split(
    images: Mapping[ClassFolder, list[str]],
    parts: Mapping[str, str],
    domain: str,
    split_sizes: Callable[[int], tuple[int, int]],
) -> tuple[list[Image], list[Image]]:
    """Split the images of one domain class by class, depending on nothing but names.

    Within a class, images are drawn in the order of a hash of domain, part, class and file name. So
    neither the order of listing nor the version of Python matters, and a few images more or less do not stir
    the others.

    Args:
        images: names of the images in each folder, see :func:`datasets.listing.list_images`.
        parts: use of each part, see :class:`datasets.layouts.Layout`.
        domain: full name of the domain.
        split_sizes: from the number of images in a folder to those for training and validation.

    Returns:
        train and val, each in order of class, part and name.
    """
    train: list[Image] = []
    val: list[Image] = []
    for folder, names in sorted(images.items(), key=lambda item: (item[0].classname, item[0].part)):
        for_train: list[str] = []
        for_val: list[str] = []
        if parts[folder.part] == TRAIN:
            for_train = names
        elif parts[folder.part] == VAL:
            for_val = names
        else:
            drawn = _shuffled(names, f"{SPLIT_SEED}/{domain}/{folder.part}/{folder.classname}/")
            n_train, n_val = split_sizes(len(names))
            for_train, for_val = sorted(drawn[:n_train]), sorted(drawn[n_train : n_train + n_val])
        train += [Image(folder, name) for name in for_train]
        val += [Image(folder, name) for name in for_val]
    return train, val


def _shuffled(names, seed):
    return sorted(names, key=lambda name: hashlib.sha256((seed + name).encode("utf-8", "surrogateescape")).digest())


def write_split(path: Path, train: list[list], val: list[list]) -> None:
    """Write a split file, one image a line.

    Args:
        path: the file.
        train, val: rows [impath, label, domain_index, classname].
    """
    rows = {"train": train, "val": val, "test": val}
    lists = (f'"{key}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]" for key, items in rows.items())
    with atomic_write(path, "w") as handle:
        handle.write("{\n" + ",\n".join(lists) + "\n}\n")


def read_split(path: Path, parts: Container[str] = ()) -> tuple[list[Entry], list[Entry]]:
    """Read a split file.

    Args:
        path: the file.
        parts: names of the folders that may lie between domain and class.

    Returns:
        train and val.

    Raises:
        UserError: the file cannot be read, is not JSON, or lacks something.
    """
    mend = "Move it away to get a new split, or fetch it again."
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"The split file {path} is not JSON ({error}). {mend}") from error
    except OSError as error:
        raise UserError(f"Cannot read the split file {path}: {error.strerror}. {mend}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("train", "val")):
        raise UserError(f'The split file {path} is not {{"train": [...], "val": [...], ...}}. {mend}')

    def entry(key, number, row):
        taken_apart = _entry(row, parts)
        if taken_apart is None:
            raise UserError(
                f"The split file {path}: {key}[{number}] is {json.dumps(row)[:200]}, but must be "
                f"[impath, label, domain_index, classname] with an impath .../<domain>/<class>/<file>. {mend}"
            )
        return taken_apart

    train, val = ([entry(key, number, row) for number, row in enumerate(content[key])] for key in ("train", "val"))
    return train, val


def _entry(row: object, parts: Container[str]) -> Entry | None:
    """The :class:`Entry` of one row of a split file, or None if the row is not what it must be."""
    if not isinstance(row, list) or list(map(type, row)) != [str, int, int, str]:
        return None
    path: str = row[0]
    *above, class_folder, name = ["", "", *path.replace("\\", "/").split("/")]
    part = above.pop() if len(above) > 1 and above[-1] in parts else ""
    domain = above.pop()
    return Entry(path, domain, part, class_folder, name) if domain and class_folder and name else None


def match_split(
    path: Path,
    entries: Sequence[Sequence[Entry]],
    images: Mapping[ClassFolder, Sequence[str]],
    is_domain: Callable[[str], bool],
    class_name: Callable[[str], str],
    parts: Container[str],
    start: str,
    place: str,
) -> list[list[Image]]:
    """Find the images that a split file lists among those that are there.

    Args:
        path: the split file, for messages.
        entries: what :func:`read_split` returned.
        images: the images in each folder, see :func:`datasets.listing.list_images`.
        is_domain: whether the name of a domain folder means the domain that is split.
        class_name: from the name of a class folder to the name of the class.
        parts: names of the folders that may lie between domain and class.
        start: how the paths of the domain begin in split files that are written here.
        place: domain and folder of the images, for messages.

    Returns:
        train and val, in the order of the file.

    Raises:
        UserError: the file lists images of another domain, or images that are not there.
    """
    # A few folders, named in many lines.
    is_domain, class_name = functools.cache(is_domain), functools.cache(class_name)
    there: dict[str, dict[str, tuple[ClassFolder, set[str]]]] = {}  # by class, then by part
    for folder, names in images.items():
        there.setdefault(folder.classname, {})[folder.part] = (folder, set(names))

    def find(part: str, class_folder: str, name: str) -> Image | None:
        by_part = there.get(class_name(class_folder), {})
        # A layout without parts may hold the images of a split file with parts, and the other way round.
        candidates = [by_part[part]] if part in by_part else by_part.values()
        found = [folder for folder, names in candidates if name in names]
        return Image(found[0], name) if len(found) == 1 else None

    missing: list[str] = []
    splits: list[list[Image]] = []
    for listed in entries:
        splits.append([])
        for entry in listed:
            readings = _readings(entry, is_domain, parts, start)
            if not readings:
                raise UserError(
                    f"The split file {path} is read for {place}, but lists {entry.path}, of another domain. "
                    "Give it the code of its own domain, or move it away to get a new split."
                )
            image = next(filter(None, (find(*reading) for reading in readings)), None)
            if image:
                splits[-1].append(image)
            else:
                missing.append(entry.path)
    if missing:
        n_listed, n_there = sum(map(len, entries)), sum(map(len, images.values()))
        raise UserError(
            f"The split file {path} lists {n_listed:,} images, of which {len(missing):,} are not there in "
            f"{place}; the first is {missing[0]}. Get the full set, or move the split file away to get a new "
            f"split of the {n_there:,} images that are there."
        )
    return splits


def _readings(
    entry: Entry, is_domain: Callable[[str], bool], parts: Container[str], start: str
) -> list[tuple[str, str, str]]:
    """The (part, class folder, path in it) that a path of a split file may mean, the likeliest first.

    Any of its folders that is called as the domain may be the domain's, since there may be folders below the class.
    """
    folders = entry.path.replace("\\", "/").split("/")
    ours = start.count("/") if entry.path.startswith(f"{start}/") else None
    places = [i for i in range(len(folders) - 3, -1, -1) if is_domain(folders[i])]
    readings = []
    for i in sorted(places, key=lambda i: i != ours):
        if folders[i + 1] in parts and len(folders) > i + 3:
            readings.append((folders[i + 1], folders[i + 2], "/".join(folders[i + 3 :])))
        readings.append(("", folders[i + 1], "/".join(folders[i + 2 :])))
    return readings
