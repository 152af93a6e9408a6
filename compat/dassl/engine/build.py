from typing import Any

from yacs.config import CfgNode

from dassl.utils.registry import Registry

TRAINER_REGISTRY = Registry(
    "TRAINER", "Set it by --trainer or TRAINER.NAME; the module that registers it must be imported."
)


def build_trainer(cfg: CfgNode) -> Any:
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
