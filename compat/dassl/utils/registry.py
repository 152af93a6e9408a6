"""Names for classes and functions, so that a configuration file can choose among them."""

import difflib

from .errors import RegistryError, UserValueError

__all__ = ["Registry", "check_availability"]


def _one_of(requested, available):
    """Say which names are accepted, and which of them is closest to ``requested``."""
    available = sorted(available)
    if not available:
        return "Nothing is registered."
    close = difflib.get_close_matches(str(requested), available, n=1)
    return f"Accepted: {', '.join(available)}." + (f" Did you mean {close[0]}?" if close else "")


def check_availability(requested, available, what="name", error=UserValueError):
    """Raise an error unless ``requested`` is one of ``available``.

    Args:
        requested (str): what the user asked for.
        available (iterable of str): what is accepted.
        what (str): what the name is for, as the message shall put it, best with its configuration key.
        error: the class of the error, a UserError; default: one that is a ValueError as well.
    """
    available = list(available)
    if requested not in available:
        raise error(f"Unknown {what}: {requested!r}. {_one_of(requested, available)}")


class Registry:
    """A table of named objects.

    .. code-block:: python

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...

        TRAINER_REGISTRY.get("MyTrainer")

    Args:
        name (str): what the objects are, for messages.
        hint (str): added to the message about an unknown name.
    """

    def __init__(self, name, hint=""):
        self._name = name
        self._hint = hint
        self._obj_map = {}

    def __contains__(self, name):
        return name in self._obj_map

    def _do_register(self, name, obj, force=False):
        if name in self._obj_map and not force:
            raise KeyError(f"{name} is already in the registry {self._name}; pass force=True to replace it")
        self._obj_map[name] = obj

    def register(self, obj=None, force=False):
        """Add ``obj`` under its ``__name__`` and return None; without ``obj``, return a decorator that adds.

        Raises:
            KeyError: the name is taken and ``force`` is False.
        """
        if obj is not None:
            self._do_register(obj.__name__, obj, force)
            return None

        def decorate(decorated):
            self._do_register(decorated.__name__, decorated, force)
            return decorated

        return decorate

    def get(self, name):
        """Return the object called ``name``.

        Raises:
            RegistryError: there is none; the message lists those there are.
        """
        try:
            return self._obj_map[name]
        except KeyError:
            message = f"Unknown {self._name.lower()}: {name!r}. {_one_of(name, self._obj_map)} {self._hint}"
            raise RegistryError(message.rstrip()) from None

    def registered_names(self):
        """Return the names of all objects, in the order in which they were added."""
        return list(self._obj_map)
