"""Registries for networks. This core has none of its own: prompt-learning trainers bring their model (CLIP).

A network registered by a plugin is built as in Dassl: ``build_backbone(name, **kwargs)`` calls it.
"""

from dassl.utils.registry import Registry

__all__ = [
    "BACKBONE_REGISTRY",
    "HEAD_REGISTRY",
    "NETWORK_REGISTRY",
    "build_backbone",
    "build_head",
    "build_network",
]

_HINT = (
    "This Dassl-compatible core carries no {0} of its own: register one with {1}_REGISTRY.register(), "
    "or install Dassl.pytorch for its collection."
)
BACKBONE_REGISTRY = Registry("BACKBONE", _HINT.format("backbones", "BACKBONE"))
HEAD_REGISTRY = Registry("HEAD", _HINT.format("heads", "HEAD"))
NETWORK_REGISTRY = Registry("NETWORK", _HINT.format("networks", "NETWORK"))


def _builder(registry, what):
    def build(name, verbose=True, **kwargs):
        network = registry.get(name)
        if verbose:
            print(f"{what}: {name}")
        return network(**kwargs)

    build.__doc__ = f"""Build the registered {what.lower()} called ``name`` with ``kwargs``.

    Raises:
        UserError: none of that name is registered.
    """
    return build


build_backbone = _builder(BACKBONE_REGISTRY, "Backbone")
build_head = _builder(HEAD_REGISTRY, "Head")
build_network = _builder(NETWORK_REGISTRY, "Network")
