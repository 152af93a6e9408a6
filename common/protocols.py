"""The names of what is trained on what, and tested where."""

from pathlib import Path


def protocol_name(source_domains, target_domains):
    """ "multi-source", "single-source", or "in-domain" when the domains tested are those trained on."""
    if set(target_domains) <= set(source_domains):
        return "in-domain"
    return "single-source" if len(source_domains) == 1 else "multi-source"


def dataset_label(cfg):
    """The data set's name in folders: "SPG_PACS" -> "PACS"; a FolderDG goes by its folder's name."""
    name = cfg.DATASET.NAME.removeprefix("SPG_")
    return Path(cfg.DATASET.ROOT).resolve().name if name == "FolderDG" else name
