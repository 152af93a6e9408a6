"""Names of data sets and protocols in tables and folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yacs.config import CfgNode

BASE_TO_NEW = "base-to-new"


def protocol_name(
    source_domains: Sequence[str],
    target_domains: Sequence[str],
    is_other_dataset: bool = False,
    is_base_to_new: bool = False,
) -> str:
    """The protocol of a run; `is_base_to_new`: the model was trained on the base classes only."""
    if is_other_dataset:
        return "cross-dataset"
    if is_base_to_new:
        return BASE_TO_NEW
    if set(target_domains) <= set(source_domains):
        return "in-domain"
    return "single-source" if len(source_domains) == 1 else "multi-source"


def class_subset(cfg: "CfgNode") -> str:
    """The classes of a run: "all", "base" or "new"."""
    return getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all")


def dataset_label(cfg: "CfgNode") -> str:
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG has its folder's name, or DATASET.LABEL."""
    if label := getattr(cfg.DATASET, "LABEL", ""):
        return label
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    return Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name
