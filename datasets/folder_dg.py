"""Any folder of images, ``<root>/<domain>/<class>/<image>`` or ``<root>/<domain>/{train,val}/<class>/<image>``."""

from collections.abc import Collection
from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UserError, some, warn
from datasets.base import DomainGeneralizationDataset
from datasets.contents import read_folder
from datasets.layouts import TRAIN, VAL, Layout, Location, check_root, list_folders
from datasets.listing import ClassFolder
from datasets.names import check_name

# Folders of these names alone are splits, not classes.
SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "dev", "crossval", "test", "testing", "eval"}


@DATASET_REGISTRY.register()
class FolderDG(DomainGeneralizationDataset):
    """DATASET.ROOT is the folder itself; domains and classes are whatever folders are there.

    A domain's code is its name. Classes are those of all domains together, so that labels do not depend on which
    domains are used; every domain has to have a folder for each, if an empty one: a misspelled folder shall not
    become a class of its own. See :class:`DomainGeneralizationDataset`.
    """

    dataset_dir = "folder"
    layouts = [
        Layout("any folder", "<root>"),
        Layout("any folder with splits", "<root>", parts={"train": TRAIN, "val": VAL}),  # Digits-DG, for instance
    ]

    @classmethod
    def list_domains(cls, root: str | Path = "") -> list[str]:
        """Names of the folders in ``root`` that hold folders, sorted.

        Raises:
            UserError: there are none, or one has a name that is not UTF-8.
        """
        root = check_root(root)
        folders = list_folders(root)
        domains = [name for name in folders if list_folders(root / name)]
        if not domains:
            shown = ", ".join(folders[:12]) + (", ..." if len(folders) > 12 else "")
            raise UserError(
                f"FolderDG: {root} must hold images as <domain>/<class>/<image>, but none of its folders "
                f"({shown or 'there are none'}) holds folders. Point DATASET.ROOT (--root) at the "
                "folder of domains."
            )
        for name in domains:
            check_name(root / name)
        return domains

    @classmethod
    def list_codes(cls, root: str | Path = "") -> list[str]:
        """The names of the domains."""
        return cls.list_domains(root)

    @classmethod
    def locate(cls, root: Path, verbose: bool = True) -> Location:
        """``root`` itself, with train and val folders in its domains or without.

        Raises:
            UserError: there are other folders of splits, or the classes lie below those that are read as classes.
        """
        domain_dirs = {domain: root / domain for domain in cls.list_domains(root)}
        plain, with_splits = cls.layouts
        if _are_splits(domain_dirs) and verbose:
            warn(f"the folders {some(domain_dirs)} of {root} are read as domains, not as splits.")
        inner = {domain: list_folders(folder) for domain, folder in domain_dirs.items()}
        names = {name for there in inner.values() for name in there}
        if not _are_splits(names):
            _check_depth(root, domain_dirs, verbose)
            return Location(plain, root, domain_dirs)
        if any(set(there) != set(with_splits.parts) for there in inner.values()):
            raise UserError(
                f"DATASET.ROOT {root}: the folders {some(sorted(names))} of its domains are splits, not classes. Give "
                "every domain the folders train and val with its class folders, or its class folders alone."
            )
        if verbose:
            warn(
                f"the folders train and val in the domains of {root} are read as splits. A target domain is tested on "
                "the images of both."
            )
        return Location(with_splits, root, domain_dirs)


def _are_splits(names: Collection[str]) -> bool:
    return len(names) > 1 and {name.casefold() for name in names} <= SPLIT_NAMES


def _check_depth(root: Path, domain_dirs: dict[str, Path], verbose: bool) -> None:
    """Warn where no class folder of the first domain holds images itself, but each has folders of the same names.

    Raises:
        UserError: so it is, and there is one domain alone.
    """
    domain, folder = next(iter(domain_dirs.items()))
    classes, inner = list_folders(folder), []
    for name in classes:
        content = read_folder(folder / name)
        if content.images:
            return
        if content.folders:
            inner.append(set(content.folders))
    shared = set.intersection(*inner) if inner else set()
    if not shared:
        return
    message = (
        f"no class folder of {domain} in {root} holds images itself, but each has folders called "
        f"{some(sorted(shared))}. Are these the classes, and {some(classes)} domains? Then point DATASET.ROOT (--root) "
        f"at {folder}"
    )
    if len(domain_dirs) == 1:
        raise UserError(f"FolderDG: {message}.")
    if verbose:
        warn(f"{message}. Here they are read as parts of the classes.")
