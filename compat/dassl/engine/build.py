"""The registry of trainers."""

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

TRAINER_REGISTRY = Registry(
    "TRAINER", "Set it by --trainer or TRAINER.NAME; the module that registers it must be imported."
)


def build_trainer(cfg):
    """Build the trainer named by ``cfg.TRAINER.NAME``.

    Raises:
        RegistryError: there is no trainer of that name.
    """
    trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return trainer(cfg)
