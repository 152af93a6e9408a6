"""The registry of backbones."""

from torch import nn

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

BACKBONE_REGISTRY = Registry(
    "BACKBONE",
    "This Dassl-compatible core carries no backbones of its own: register one with BACKBONE_REGISTRY.register(), or "
    "install Dassl.pytorch for its collection. Set it by MODEL.BACKBONE.NAME.",
)


def build_backbone(name: str, verbose: bool = True, **kwargs: object) -> nn.Module:
    """Build the registered backbone called ``name`` with ``kwargs``.

    Raises:
        RegistryError: none of that name is registered.
    """
    backbone = BACKBONE_REGISTRY.get(name)
    if verbose:
        print(f"Backbone: {name}")
    return backbone(**kwargs)
