"""The names of what is trained on what, and tested where."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from yacs.config import CfgNode

BASE_TO_NEW = "base-to-new"


def protocol_name(
    source_domains: Sequence[str],
    target_domains: Sequence[str],
    other_dataset: bool = False,
    base_to_new: bool = False,
) -> str:
    """ "multi-source", "single-source", "in-domain" when the domains tested are those trained on, or one of the others.

    Args:
        source_domains, target_domains: full names.
        other_dataset: whether the model was trained on another data set than it is tested on: "cross-dataset".
        base_to_new: whether it knows no classes but the base ones: "base-to-new".
    """
    if other_dataset:
        return "cross-dataset"
    if base_to_new:
        return BASE_TO_NEW
    if set(target_domains) <= set(source_domains):
        return "in-domain"
    return "single-source" if len(source_domains) == 1 else "multi-source"


def class_subset(cfg: "CfgNode") -> str:
    """Which of the data set's classes a run is about: "all", "base" or "new"."""
    return getattr(cfg.DATASET, "SUBSAMPLE_CLASSES", "all")


def dataset_label(cfg: "CfgNode") -> str:
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG has its folder's name, or DATASET.LABEL."""
    if label := getattr(cfg.DATASET, "LABEL", ""):
        return label
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    return Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name
