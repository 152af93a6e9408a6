"""The data sets that a command line can name: configs in configs/datasets/, and any folder of domains."""

from pathlib import Path

import yaml
from dassl.data.datasets import DATASET_REGISTRY

from common.errors import UserError
from common.startup import REPOSITORY
from datasets.base import DomainGeneralizationDataset

CONFIGS = REPOSITORY / "configs" / "datasets"
EMBEDDED_DATASET = "mini_digits"  # needs no download
FOLDER = "folder"  # the config of any folder of domains


def known_names() -> list[str]:
    """Names of all sets with a config of their own."""
    return sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem != FOLDER)


def known_domains() -> set[str]:
    """Full names of the domains of all our sets."""
    kinds = map(DATASET_REGISTRY.get, DATASET_REGISTRY.registered_names())
    return {domain for kind in kinds if issubclass(kind, DomainGeneralizationDataset) for domain in kind.domains}


def dataset_config(name: str, data: str) -> tuple[Path, str]:
    """Find the config file and the data root of a known set, below `data`, or of a folder."""
    if name.lower() in (*known_names(), FOLDER):
        return CONFIGS / f"{name.lower()}.yaml", data
    if Path(name).is_dir():
        return CONFIGS / f"{FOLDER}.yaml", name
    raise UserError(f"Unknown data set {name!r}: neither a folder nor one of {', '.join(known_names())}.")


def dataset_class(config: Path) -> type[DomainGeneralizationDataset]:
    """The registered class that the config file of a data set names."""
    return DATASET_REGISTRY.get(yaml.safe_load(config.read_text(encoding="utf-8"))["DATASET"]["NAME"])
