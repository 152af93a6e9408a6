"""From image files to batches."""

from .data_manager import DataManager, build_data_loader
from .dataset_wrapper import DatasetWrapper

__all__ = ["DataManager", "DatasetWrapper", "build_data_loader"]
