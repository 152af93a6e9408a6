"""The registry of heads."""

from torch import nn

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

HEAD_REGISTRY = Registry("HEAD", "Set it by MODEL.HEAD.NAME; the module that registers it must be imported.")


def build_head(name: str, verbose: bool = True, **kwargs: object) -> nn.Module:
    """Build the registered head called ``name`` with ``kwargs``.

    Raises:
        RegistryError: none of that name is registered.
    """
    head = HEAD_REGISTRY.get(name)
    if verbose:
        print(f"Head: {name}")
    return head(**kwargs)
