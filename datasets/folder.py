"""Any folder of images, `<root>/<domain>/<class>/<image>` or `<root>/<domain>/{train,val}/<class>/<image>`."""

from collections.abc import Collection
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UserError, join_truncated, warn
from datasets.base import DomainGeneralizationDataset
from datasets.image_files import list_folders, read_folder
from datasets.layouts import TRAIN, VAL, Layout, Location, check_root
from datasets.names import check_name

# Folders with these names alone are splits, not classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "crossval", "test", "testing", "eval"}


@DATASET_REGISTRY.register()
class FolderDG(DomainGeneralizationDataset):
    """DATASET.ROOT itself, with its folders as domains and theirs as classes.

    Every domain needs a folder for each class, if an empty one: a misspelled folder is no class of its own.
    """

    layouts = [
        Layout("any folder", "<root>"),
        Layout("any folder with splits", "<root>", parts={"train": TRAIN, "val": VAL}),  # Digits-DG, for instance
    ]

    @classmethod
    def list_domains(cls, root: str | Path = "") -> list[str]:
        """Names of the folders in `root` that hold folders, sorted."""
        root = check_root(root)
        folders = list_folders(root)
        domains = [name for name in folders if list_folders(root / name)]
        if not domains:
            raise UserError(
                f"FolderDG: {root} must hold images as <domain>/<class>/<image>, but none of its folders "
                f"({join_truncated(folders)}) holds folders. Point DATASET.ROOT (--root) at the folder of domains."
            )
        for name in domains:
            check_name(root / name)
        return domains

    @classmethod
    def locate(cls, root: Path, verbose: bool = True) -> Location:
        """Read `root` with train and val folders in its domains, or without."""
        domain_dirs = {domain: root / domain for domain in cls.list_domains(root)}
        plain, with_splits = cls.layouts
        if _are_splits(domain_dirs) and verbose:
            warn(f"the folders {join_truncated(domain_dirs)} of {root} are read as domains, not as splits.")
        inner = [list_folders(folder) for folder in domain_dirs.values()]
        names = {name for there in inner for name in there}
        if not _are_splits(names):
            if verbose:
                _warn_of_depth(root, domain_dirs)
            return Location(plain, root, domain_dirs)
        if any(set(there) != set(with_splits.parts) for there in inner):
            raise UserError(
                f"DATASET.ROOT {root}: the folders {join_truncated(sorted(names))} of its domains are splits. Give "
                "every domain the folders train and val with its class folders, or its class folders alone."
            )
        if verbose:
            warn(f"the folders train and val in the domains of {root} are splits. Target domains are tested on both.")
        return Location(with_splits, root, domain_dirs)


def _are_splits(names: Collection[str]) -> bool:
    return len(names) > 1 and {name.casefold() for name in names} <= SPLIT_NAMES


def _warn_of_depth(root: Path, domain_dirs: dict[str, Path]) -> None:
    """Warn if `root` looks like the folder above the folder of domains."""
    domain, folder = next(iter(domain_dirs.items()))
    contents = [read_folder(folder / name) for name in list_folders(folder)]
    shared = set.intersection(*(set(content.folders) for content in contents))
    if shared and not any(content.images for content in contents):
        warn(
            f"the class folders of {domain} in {root} hold no images, but each has the folders "
            f"{join_truncated(sorted(shared))}. If these are the classes, point DATASET.ROOT (--root) at {folder}."
        )
