"""The registry of networks."""

from torch import nn

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

NETWORK_REGISTRY = Registry("NETWORK", "The module that registers it must be imported.")


def build_network(name: str, verbose: bool = True, **kwargs: object) -> nn.Module:
    """Build the registered network called ``name`` with ``kwargs``.

    Raises:
        RegistryError: none of that name is registered.
    """
    network = NETWORK_REGISTRY.get(name)
    if verbose:
        print(f"Network: {name}")
    return network(**kwargs)
