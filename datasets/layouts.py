"""Find a data set on disk, in any of its layouts."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, join_truncated
from common.files import SPLIT_FOLDER
from datasets.image_files import list_folders
from datasets.names import find_domain

if TYPE_CHECKING:
    from datasets.base import DomainGeneralizationDataset

# Uses of the images in a folder between domain and class. The seeded rule splits SPLIT images.
TRAIN, VAL, SPLIT = "train", "val", "split"


class SetNotFound(UserError):
    """No layout of a set is below the data root."""


@dataclass(frozen=True)
class Layout:
    """`<root>/<folder>/[<images>/]<domain>/[<part>/]<class>/`."""

    name: str  # its users, for messages
    folder: str  # the set's own folder, in any letter case
    images: str = ""  # folder that holds the domains, "" if `folder` does
    parts: dict[str, str] = field(default_factory=lambda: {"": SPLIT})  # with the use of their images
    domain_folders: tuple[str, ...] = ()  # if they are not spellings of the domains

    def __str__(self) -> str:
        between = "" if "" in self.parts else "{" + ",".join(self.parts) + "}/"
        images = f"{self.images}/" if self.images else ""
        return f"{self.folder}/{images}<domain>/{between}<class>/ ({self.name})"


@dataclass(frozen=True)
class Location:
    """A layout on disk: the set's own folder, and the folder of each domain that is there."""

    layout: Layout
    folder: Path
    domain_dirs: dict[str, Path]

    @property
    def images_dir(self) -> Path:
        """The folder that holds the domains."""
        return self.folder / self.layout.images

    def __str__(self) -> str:
        return f"{self.images_dir} ({self.layout.name}, {len(self.domain_dirs)} domains)"


def check_root(root: str | Path) -> Path:
    """Make DATASET.ROOT absolute; raise UserError if it is not a folder."""
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not str(root) or not path.is_dir():
        raise UserError(f"DATASET.ROOT: {root or 'an empty name'} is no folder. Name the folder of data sets (--root).")
    return path


def locate(root: Path, dataset: "type[DomainGeneralizationDataset]", verbose: bool = True) -> Location:
    """Find a set below `root`, or in `root` itself; raise SetNotFound if no layout has a domain there.

    Of several layouts it takes the one with most domains, then one with split files, then the first in `layouts`.
    """
    present = list_folders(root)
    own = [(layout, name) for layout in dataset.layouts for name in present if name.lower() == layout.folder.lower()]
    found = [_find_domains(dataset, layout, root / name) for layout, name in own]
    found = [location for location in found if location.domain_dirs] or _look_in_root(root, dataset)
    if not found:
        incomplete = sorted({name for _, name in own})
        note = f" {', '.join(incomplete)} has no domain at those places: half-extracted?" if incomplete else ""
        raise SetNotFound(
            f"{dataset.__name__} was not found under DATASET.ROOT {root}. Looked for, in any letter case:\n"
            + "".join(f"  {layout}\n" for layout in dataset.layouts)
            + f"with the domains {', '.join(dataset.domains)}. Folders found there: {join_truncated(present)}.{note}\n"
            "Point DATASET.ROOT (--root) at the folder that holds one of these, or at the set's own folder."
        )
    # Two layouts may be one folder, in different letter case: take the layout that is spelled as on disk.
    distinct: dict[frozenset[Path], Location] = {}
    for location in sorted(found, key=lambda location: location.folder.name != location.layout.folder):
        distinct.setdefault(frozenset(location.domain_dirs.values()), location)

    def has_splits(folder: Path) -> bool:
        return (folder / SPLIT_FOLDER).is_dir()

    def rank(location: Location) -> tuple[int, bool, int]:
        return -len(location.domain_dirs), not has_splits(location.folder), dataset.layouts.index(location.layout)

    best, *others = sorted(distinct.values(), key=rank)
    if verbose and others:
        print(
            f"{dataset.__name__} is there more than once under {root}. Using {best}, not "
            f"{', '.join(map(str, others))}. To use another, point DATASET.ROOT at that folder."
        )
    for folder in {root / name for _, name in own} - {best.folder}:
        if verbose and has_splits(folder):
            print(f"Not used: split files in {folder / SPLIT_FOLDER}. To use them, copy them to {best.folder}.")
    return best


def _find_domains(dataset: "type[DomainGeneralizationDataset]", layout: Layout, folder: Path) -> Location:
    """Find the domains of a layout in a folder, perhaps none."""
    location = Location(layout, folder, {})
    if not location.images_dir.is_dir():
        return location
    all_parts = {part for other in dataset.layouts for part in other.parts if part}
    names = layout.domain_folders or dataset.domains
    full_names = dict(zip(names, dataset.domains, strict=True))
    for name in list_folders(location.images_dir):
        domain, path = full_names.get(find_domain(name, names) or ""), location.images_dir / name
        # Folders called train, val, ... tell a layout with parts from one without.
        if domain is None or bool(all_parts.intersection(list_folders(path))) == ("" in layout.parts):
            continue
        if domain in location.domain_dirs:
            raise UserError(
                f"Two folders are the domain {domain}: {location.domain_dirs[domain]} and {path}. Move one away."
            )
        location.domain_dirs[domain] = path
    return location


def _look_in_root(root: Path, dataset: "type[DomainGeneralizationDataset]") -> list[Location]:
    """Read `root` as the set's own folder, or as the folder of images in it."""
    found = []
    for layout in dataset.layouts:
        is_images = layout.images and root.name.lower() == layout.images
        for folder in (root, root.parent) if is_images else (root,):
            location = _find_domains(dataset, layout, folder)
            # Sets share domain names (sketch, clipart), so in another folder one domain proves nothing.
            needed = 1 if folder.name.lower() == layout.folder.lower() else min(2, len(dataset.domains))
            if len(location.domain_dirs) >= needed:
                found.append(location)
    return found
