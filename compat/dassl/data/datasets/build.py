"""The registry of datasets."""

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

DATASET_REGISTRY = Registry("DATASET", "Set it by DATASET.NAME; the module that registers it must be imported.")


def build_dataset(cfg):
    """Build the dataset named by ``cfg.DATASET.NAME``.

    Raises:
        RegistryError: there is no dataset of that name.
    """
    dataset = DATASET_REGISTRY.get(cfg.DATASET.NAME)
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return dataset(cfg)
