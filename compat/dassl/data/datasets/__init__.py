"""Datasets: lists of labelled images, split. This core has none of its own; plugins register theirs."""

from dassl.left_out import missing_attribute

from .base_dataset import DatasetBase, Datum
from .build import DATASET_REGISTRY, build_dataset

__all__ = ["DATASET_REGISTRY", "DatasetBase", "Datum", "build_dataset"]


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
