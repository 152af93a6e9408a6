"""The configuration tree. Importing this does not import torch."""

from .defaults import _C as cfg_default

__all__ = ["cfg_default", "clean_cfg", "get_cfg_default"]


def get_cfg_default():
    """Return a fresh configuration tree holding all defaults; changing it changes no other.

    Trainers add their own nodes below ``TRAINER`` (``cfg.TRAINER.COOP = CfgNode()``).
    """
    return cfg_default.clone()


def clean_cfg(cfg, trainer):
    """Drop the configuration nodes of all trainers but one, so that a printed config shows only what matters.

    Args:
        cfg: the configuration, changed in place.
        trainer (str): the name of the trainer whose node ``cfg.TRAINER.<NAME IN CAPITALS>`` stays.
    """
    for key in list(cfg.TRAINER):
        if key not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]
