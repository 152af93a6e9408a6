"""The configuration tree. Importing this does not import torch."""

from .defaults import get_cfg_default

__all__ = ["clean_cfg", "get_cfg_default"]


def clean_cfg(cfg, trainer):
    """Drop the configuration nodes of all trainers but one, so that a printed config shows only what matters.

    Args:
        cfg: the configuration, changed in place.
        trainer (str): the name of the trainer whose node ``cfg.TRAINER.<NAME IN CAPITALS>`` stays.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
