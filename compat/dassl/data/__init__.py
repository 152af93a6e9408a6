"""From image files to batches."""

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Import PyTorch when loaders are first needed: commands that only list images start without it."""
    loaders = import_module("dassl.data.data_manager")
    if name in ("DataManager", "DatasetWrapper", "build_data_loader"):
        return getattr(loaders, name)
    if name in globals():  # a module that loaders import
        return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
