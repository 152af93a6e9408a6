"""Networks by name: registries that plugins fill, and an MLP head."""

from dassl.left_out import missing_attribute

from .backbone import BACKBONE_REGISTRY, Backbone, build_backbone
from .head import HEAD_REGISTRY, build_head


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
