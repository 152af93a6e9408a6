from typing import Any

from yacs.config import CfgNode

from dassl.utils.registry import Registry

DATASET_REGISTRY = Registry("DATASET", "Set it by DATASET.NAME; the module that registers it must be imported.")


def build_dataset(cfg: CfgNode) -> Any:
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)
