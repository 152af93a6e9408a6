"""Where the images of a set lie on disk: the layouts that users have, and which of them is there."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.errors import UserError
from datasets.contents import BESIDE_DOMAINS, SPLIT_FOLDER, Unused, beside, read_folder
from datasets.names import find_domain

# What the images in a folder between domain and class are used for.
TRAIN, VAL, SPLIT = "train", "val", "split"


class SetNotFound(UserError):
    """No layout of a set is under the data root.

    Attributes:
        incomplete: folders that are called as the set's own, but have no domain in them.
    """

    def __init__(self, message: str, incomplete: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.incomplete = list(incomplete)


@dataclass(frozen=True)
class Layout:
    """``<root>/<folder>/[<images>/]<domain>/[<part>/]<class>/``.

    Args:
        name: who has it, for messages.
        folder: the set's own folder; its letter case does not matter.
        images: folder that holds the domains, "" if they lie in ``folder`` itself.
        parts: folders between domain and class, each with its use: TRAIN, VAL, or SPLIT (by the seeded rule).
        domain_folders: names of the domain folders, where they are not just other spellings of the domains.
    """

    name: str
    folder: str
    images: str = ""
    parts: dict[str, str] = field(default_factory=lambda: {"": SPLIT})
    domain_folders: tuple[str, ...] = ()

    def __str__(self) -> str:
        part = next(iter(self.parts))
        between = "" if part == "" else "{" + ",".join(self.parts) + "}/"
        images = f"{self.images}/" if self.images else ""
        return f"{self.folder}/{images}<domain>/{between}<class>/ ({self.name})"


@dataclass(frozen=True)
class Location:
    """A layout that was found on disk.

    Args:
        layout: which.
        folder: the set's own folder.
        domain_dirs: from domain to its folder, for the domains that are there.
    """

    layout: Layout
    folder: Path
    domain_dirs: dict[str, Path]

    @property
    def images_dir(self) -> Path:
        """The folder that holds the domains."""
        return self.folder / self.layout.images if self.layout.images else self.folder

    def beside_domains(self) -> Unused:
        """What lies beside the folders of the domains: names by reason.

        Raises:
            UserError: the folder cannot be read.
        """
        domains = [folder.name for folder in self.domain_dirs.values()]
        return beside(read_folder(self.images_dir), BESIDE_DOMAINS, domains)


def list_folders(folder: str | Path) -> list[str]:
    """Names of the folders in ``folder`` (links followed), sorted, without hidden ones and other litter.

    Raises:
        UserError: ``folder`` cannot be read.
    """
    return read_folder(folder).folders


def check_root(root: str | Path) -> Path:
    """DATASET.ROOT as an absolute path.

    Raises:
        UserError: it is not set, or not a folder.
    """
    if not str(root):
        raise UserError("DATASET.ROOT is not set: name the folder that holds the datasets, e.g. --root data.")
    path = Path(os.path.abspath(os.path.expanduser(root)))
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise UserError(f"DATASET.ROOT {path} {what}. Name the folder that holds the datasets, e.g. --root data.")
    return path


def locate(
    root: Path, dataset: str, domains: Sequence[str], layouts: Sequence[Layout], verbose: bool = True
) -> Location:
    """Find a set below ``root``, or in ``root`` itself.

    Of several layouts the one with most domains is used, then one that has split files, then the first in the
    order of ``layouts``; which and why is printed.

    Args:
        root: DATASET.ROOT, see :func:`check_root`.
        dataset: name of the dataset, for messages.
        domains: full names of all domains.
        layouts: those that are accepted, the preferred first.
        verbose: print which of several layouts is used.

    Returns:
        where it is, with at least one domain.

    Raises:
        SetNotFound: none is there.
        UserError: two folders are the same domain; a folder cannot be read.
    """
    present = list_folders(root)
    found = []
    for layout in layouts:
        for name in sorted(present, key=lambda name: name != layout.folder):
            if name.lower() == layout.folder.lower():
                found.append(_look(root / name, layout, domains, layouts))
    found = [location for location in found if location.domain_dirs] or _root_itself(root, domains, layouts)
    if not found:
        raise _not_found(root, present, dataset, domains, layouts)
    # Two layouts may be one folder (differing in letter case only): keep the one that is spelled as on disk.
    found.sort(key=lambda location: location.folder.name != location.layout.folder)
    distinct = list({frozenset(location.domain_dirs.items()): location for location in reversed(found)}.values())
    distinct.sort(
        key=lambda location: (
            -len(location.domain_dirs),
            not (location.folder / SPLIT_FOLDER).is_dir(),
            layouts.index(location.layout),
        )
    )
    if verbose:
        if len(distinct) > 1:
            _say_which(distinct, root, dataset, len(domains))
        _note_other_splits(distinct[0], root, present, layouts)
    return distinct[0]


def _look(folder, layout, domains, layouts):
    """``layout`` in ``folder``, with the domains that it has there (perhaps none)."""
    images_dir = folder / layout.images if layout.images else folder
    if not images_dir.is_dir():
        return Location(layout, folder, {})
    all_parts = {part for other in layouts for part in other.parts if part}
    names = layout.domain_folders or domains
    full_names = dict(zip(names, domains, strict=True))
    domain_dirs: dict[str, Path] = {}
    for name in list_folders(images_dir):
        domain = full_names.get(find_domain(name, names))
        if domain is None:
            continue
        # Folders called train, val ... tell a layout with parts from one without.
        parts_there = all_parts.intersection(list_folders(images_dir / name))
        if bool(parts_there) == ("" not in layout.parts):
            if domain in domain_dirs:
                raise UserError(
                    f"Two folders are both the domain {domain}: {domain_dirs[domain]} and "
                    f"{images_dir / name}. Move one of them away."
                )
            domain_dirs[domain] = images_dir / name
    return Location(layout, folder, domain_dirs)


def _root_itself(root, domains, layouts):
    """Locations of ``root`` as the set's own folder, or as the folder of images in it."""
    found = []
    for layout in layouts:
        folders = [root]
        if layout.images and root.name.lower() == layout.images:
            folders.append(root.parent)
        for folder in folders:
            location = _look(folder, layout, domains, layouts)
            # Sets share domain names (sketch, clipart), so under a strange name one domain proves nothing.
            needed = 1 if folder.name.lower() == layout.folder.lower() else min(2, len(domains))
            if len(location.domain_dirs) >= needed:
                found.append(location)
    return found


def _say_which(distinct, root, dataset, n_domains):
    used = distinct[0]
    listed = "; ".join(
        f"{location.images_dir} ({location.layout.name}, {len(location.domain_dirs)} of {n_domains} domains)"
        for location in distinct
    )
    if len(used.domain_dirs) > len(distinct[1].domain_dirs):
        why = "it has more domains"
    elif (used.folder / SPLIT_FOLDER).is_dir() and not (distinct[1].folder / SPLIT_FOLDER).is_dir():
        why = "it has split files"
    else:
        why = f"the order of preference begins with {used.layout.name}"
    print(
        f"{dataset} is there more than once under {root}: {listed}. Using {used.images_dir}, since {why}. "
        "To use another, point DATASET.ROOT at that folder."
    )


def _note_other_splits(used, root, present, layouts):
    """Say so if split files (perhaps the published ones) lie in another folder of the set."""
    own = {layout.folder.lower() for layout in layouts}
    for name in present:
        splits = root / name / SPLIT_FOLDER
        if name.lower() in own and root / name != used.folder and splits.is_dir():
            print(f"Not used: split files in {splits}. To use them, copy them to {used.folder / SPLIT_FOLDER}.")


def _not_found(root, present, dataset, domains, layouts):
    looked_for = "\n".join(f"  {layout}" for layout in layouts)
    own = {layout.folder.lower() for layout in layouts}
    incomplete = [name for name in present if name.lower() in own]
    note = ""
    if incomplete:
        note = f"\n{', '.join(incomplete)} is there, but has no domain at those places: half-extracted?"
    shown = ", ".join(present[:12]) + (", ..." if len(present) > 12 else "")
    return SetNotFound(
        f"{dataset} was not found under DATASET.ROOT {root}. Looked for, in any letter case:\n{looked_for}\n"
        f"with the domains {', '.join(domains)}.\n"
        f"Folders found there: {shown or 'none'}.{note}\n"
        "Point DATASET.ROOT (--root) at the folder that holds one of these, or at the set's own folder.",
        incomplete,
    )
