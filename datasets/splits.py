"""Split the images of a domain into train and val: by a published split file, or by a seeded rule.

A split file is `{"train": [[impath, label, domain_index, classname], ...], "val": [...], "test": [...]}`. `impath` is
relative to the data root; only its domain, part, class and the path in the class folder count, so that a file serves in
every layout. `test` repeats `val`, as in the published files, and is never read: a target domain is tested on all its
images.
"""

import functools
import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import UserError
from common.files import SPLIT_FOLDER, atomic_write, is_writable
from datasets.image_files import ClassFolder
from datasets.layouts import TRAIN, VAL

SPLIT_SEED = 1  # never the SEED of a run, so that all methods and seeds share one split
_FIX = "Move it away to get a new split, or download it again."


class Image(NamedTuple):
    """One image: its class folder, and its path in there."""

    folder: ClassFolder
    name: str


def seeded_split(
    images: Mapping[ClassFolder, list[str]],
    parts: Mapping[str, str],
    domain: str,
    split_sizes: Callable[[int], tuple[int, int]],
) -> tuple[list[Image], list[Image]]:
    """Split the images of one domain class by class, by hashes of their names; see `Layout` for `parts`.

    The split does not depend on the order of listing, and a few images more or less hardly change it.
    """
    train: list[Image] = []
    val: list[Image] = []
    for folder, names in sorted(images.items(), key=lambda item: (item[0].classname, item[0].part)):
        if parts[folder.part] == TRAIN:
            n_train, n_val = len(names), 0
        elif parts[folder.part] == VAL:
            n_train, n_val = 0, len(names)
        else:
            names = _shuffled(names, f"{SPLIT_SEED}/{domain}/{folder.part}/{folder.classname}/")
            n_train, n_val = split_sizes(len(names))
        train += [Image(folder, name) for name in sorted(names[:n_train])]
        val += [Image(folder, name) for name in sorted(names[n_train : n_train + n_val])]
    return train, val


def _shuffled(names: list[str], seed: str) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256((seed + name).encode("utf-8", "surrogateescape")).digest())


def find_split_file(dataset_dir: str, code: str, seed: int, output: str) -> Path:
    """The split file of a domain, or its place if there is none.

    A published file wins, then one in the folder of a seed, as in older files of the authors. If the data set is
    read-only, new files go to the output folder.
    """
    folder, name = Path(dataset_dir) / SPLIT_FOLDER, f"{code}_train_val_split.json"
    if (folder / name).is_file():
        return folder / name
    seeds = sorted(found.parent.name for found in folder.glob(f"*/{name}") if found.parent.name.isdigit())
    if str(seed) in seeds:
        return folder / str(seed) / name
    if seeds:
        raise UserError(
            f"{folder} has splits of seed {', '.join(seeds)}, but none of {seed}. Pass --seed {seeds[0]}, or copy the "
            f"files of {folder / seeds[0]} to {folder} for all seeds."
        )
    if not is_writable(folder):
        folder = Path(output).absolute() / SPLIT_FOLDER / Path(dataset_dir).name.lower()
    return folder / name


def write_split(path: Path, train: list[list], val: list[list]) -> None:
    """Write a split file of rows [impath, label, domain_index, classname], one image a line."""
    rows = {"train": train, "val": val, "test": val}
    lists = (f'"{key}": [\n' + ",\n".join(map(json.dumps, items)) + "\n]" for key, items in rows.items())
    with atomic_write(path, "w") as handle:
        handle.write("{\n" + ",\n".join(lists) + "\n}\n")


def read_split(path: Path) -> tuple[list[str], list[str]]:
    """Read the impaths of a split file for train and for val."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"Cannot read the split file {path}: {error}. {_FIX}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("train", "val")):
        raise UserError(f'The split file {path} is not {{"train": [...], "val": [...], ...}}. {_FIX}')
    for key in ("train", "val"):
        for number, row in enumerate(content[key]):
            if not isinstance(row, list) or list(map(type, row)) != [str, int, int, str]:
                raise UserError(
                    f"The split file {path}: {key}[{number}] is {json.dumps(row)[:200]}, but must be "
                    f"[impath, label, domain_index, classname]. {_FIX}"
                )
    return [row[0] for row in content["train"]], [row[0] for row in content["val"]]


def match_images(
    impaths: Sequence[str],
    images: Mapping[ClassFolder, Sequence[str]],
    is_domain: Callable[[str], bool],
    class_name: Callable[[str], str],
    parts: Collection[str],
) -> list[Image | None]:
    """Find the images of one domain that a split file lists; None for a missing image.

    Args:
        is_domain: whether a folder name means the domain.
        parts: all folders that may lie between domain and class, in any layout.
    """
    is_domain, class_name = functools.cache(is_domain), functools.cache(class_name)
    by_class: dict[str, dict[str, tuple[ClassFolder, set[str]]]] = {}  # then by part
    for folder, names in images.items():
        by_class.setdefault(folder.classname, {})[folder.part] = folder, set(names)

    def find(part: str, class_folder: str, name: str) -> Image | None:
        by_part = by_class.get(class_name(class_folder), {})
        # A layout without parts may hold the images of one with parts, and the other way round.
        candidates = [by_part[part]] if part in by_part else by_part.values()
        found = [folder for folder, names in candidates if name in names]
        return Image(found[0], name) if len(found) == 1 else None

    def match(impath: str) -> Image | None:
        folders = impath.replace("\\", "/").split("/")
        # The set's own folder comes first, so a folder of the domain's name there is the least likely.
        for i in (*range(1, len(folders) - 2), 0):
            if len(folders) < i + 3 or not is_domain(folders[i]):
                continue
            has_part = folders[i + 1] in parts and len(folders) > i + 3
            image = find(folders[i + 1], folders[i + 2], "/".join(folders[i + 3 :])) if has_part else None
            image = image or find("", folders[i + 1], "/".join(folders[i + 2 :]))
            if image:
                return image
        return None

    return [match(impath) for impath in impaths]
