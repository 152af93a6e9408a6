"""The registry of data sets. It is empty: plugins register theirs."""

from dassl.left_out import missing_attribute

from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
