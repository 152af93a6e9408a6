"""The data sets that a command line names: those of configs/datasets/, and any folder of domains."""

from pathlib import Path

import yaml
from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UserError
from common.startup import REPOSITORY
from datasets.base import DomainGeneralizationDataset

CONFIGS = REPOSITORY / "configs" / "datasets"
EMBEDDED_DATASET = "mini_digits"  # needs no download
FOLDER = "folder"  # the config of any folder <domain>/<class>/<image>


def known_names() -> list[str]:
    """The names of all sets that have a config of their own."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != FOLDER)


def known_domains() -> set[str]:
    """Full names of the domains of all registered sets that say what theirs are; Dassl's and CoOp's do not."""
    kinds = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    return {domain for kind in kinds if issubclass(kind, DomainGeneralizationDataset) for domain in kind.domains}


def dataset_config(name: str, data: str) -> tuple[Path, str]:
    """The config file and the data root for the name of a set or for a folder.

    Args:
        name: of configs/datasets/, in any case, or a folder.
        data: the data root of sets that have a name.

    Raises:
        UserError: neither a config nor a folder goes by that name.
    """
    config = CONFIGS / f"{name.lower()}.yaml"
    if name.lower() in (*known_names(), FOLDER):
        return config, data
    if Path(name).is_dir():
        return folder_config(name)
    raise UserError(f"Unknown data set {name!r}: neither a folder nor one of {', '.join(known_names())}.")


def folder_config(folder: str) -> tuple[Path, str]:
    """The config file and the data root for a folder of domains."""
    return CONFIGS / f"{FOLDER}.yaml", folder


def dataset_class(config: Path) -> type[DomainGeneralizationDataset]:
    """The registered class that a data set's config file names."""
    return DATASET_REGISTRY.get(yaml.safe_load(config.read_text(encoding="utf-8"))["DATASET"]["NAME"])
