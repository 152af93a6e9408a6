"""Any folder of images, ``<root>/<domain>/<class>/<image>``."""

from pathlib import Path

from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UserError
from common.messages import some, warn
from datasets.base import DomainGeneralizationDataset
from datasets.layouts import Layout, Location, check_root, list_folders
from datasets.listing import ClassFolder
from datasets.names import check_name


@DATASET_REGISTRY.register()
class FolderDG(DomainGeneralizationDataset):
    """DATASET.ROOT is the folder itself; domains and classes are whatever folders are there.

    A domain's code is its name. Classes are those of all domains together, so that labels do not depend on which
    domains are used; every domain has to have a folder for each, if an empty one: a misspelled folder shall not
    become a class of its own. See :class:`DomainGeneralizationDataset`.
    """

    dataset_dir = "folder"
    layouts = [Layout("any folder", "<root>")]

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
        """``root`` itself."""
        return Location(cls.layouts[0], root, {domain: root / domain for domain in cls.list_domains(root)})

    def _list_images(self, domain: str, folders: list[ClassFolder]) -> dict[ClassFolder, list[str]]:
        images = super()._list_images(domain, folders)
        inner = [{name.split("/")[0] if "/" in name else "" for name in listed} for listed in images.values() if listed]
        shared = set.intersection(*inner)
        if shared and not any("" in names for names in inner):
            what = (
                f"no class folder of {domain} in {self.dataset_dir} holds images itself, but each has folders called "
                f"{some(sorted(shared))}. Are these the classes, and {some(folder.path for folder in folders)} "
                f"domains? Then point DATASET.ROOT (--root) at {self._domain_dirs[domain]}"
            )
            if len(self.domains) == 1:
                raise UserError(f"FolderDG: {what}.")
            warn(f"{what}. Here they are read as parts of the classes.")
        return images
