"""The registry of backbones. It is empty: Dassl's own are left out."""

from typing import Any

from torch import nn

from dassl.left_out import missing_attribute
from dassl.utils.registry import Registry

BACKBONE_REGISTRY = Registry(
    "BACKBONE",
    "This Dassl-compatible core carries no backbones of its own: register one with BACKBONE_REGISTRY.register(), or "
    "install Dassl.pytorch for its collection. Set it by MODEL.BACKBONE.NAME.",
)


class Backbone(nn.Module):
    """Base class of networks from images to features. Subclasses set ``_out_features``."""

    @property
    def out_features(self) -> int | None:
        return self.__dict__.get("_out_features")


def build_backbone(name: str, verbose: bool = True, **kwargs: Any) -> nn.Module:
    backbone = BACKBONE_REGISTRY.get(name)
    if verbose:
        print(f"Backbone: {name}")
    return backbone(**kwargs)


def __getattr__(name: str) -> object:
    raise missing_attribute(__name__, name)
