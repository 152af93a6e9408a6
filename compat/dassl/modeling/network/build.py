"""The registry of networks."""

from dassl.utils.registry import Registry, check_availability  # noqa: F401 (clients take both from here)

NETWORK_REGISTRY = Registry("NETWORK", "The module that registers it must be imported.")


def build_network(name, verbose=True, **kwargs):
    """Build the registered network called ``name`` with ``kwargs``.

    Raises:
        RegistryError: none of that name is registered.
    """
    network = NETWORK_REGISTRY.get(name)
    if verbose:
        print(f"Network: {name}")
    return network(**kwargs)
