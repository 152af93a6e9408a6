"""The registry of backbones, which is empty: Dassl's own are left out."""

from dassl.left_out import missing_attribute

from .backbone import Backbone
from .build import BACKBONE_REGISTRY, build_backbone

__all__ = ["BACKBONE_REGISTRY", "Backbone", "build_backbone"]


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
