"""Registries: classes and functions that a config chooses by name."""

import difflib
from collections.abc import Callable, Iterable
from typing import Any

from .errors import RegistryError, UserError, UserValueError


def _accepted(requested: object, available: Iterable[str]) -> str:
    available = sorted(available)
    if not available:
        return "Nothing is registered."
    close = difflib.get_close_matches(str(requested), available, n=1)
    return f"Accepted: {', '.join(available)}." + (f" Did you mean {close[0]}?" if close else "")


def check_availability(
    requested: object, available: Iterable[str], what: str = "name", error: type[UserError] = UserValueError
) -> None:
    """Raise ``error`` unless ``requested`` is in ``available``; ``what`` names the setting in the message."""
    available = list(available)
    if requested not in available:
        raise error(f"Unknown {what}: {requested!r}. {_accepted(requested, available)}")


class Registry:
    """A table of named objects. ``hint`` ends the message about an unknown name."""

    def __init__(self, name: str, hint: str = "") -> None:
        self._name = name
        self._hint = hint
        self._obj_map: dict[str, Any] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._obj_map

    def _do_register(self, name: str, obj: Any, force: bool = False) -> None:
        if name in self._obj_map and not force:
            raise KeyError(f"{name} is already in the registry {self._name}; pass force=True to replace it")
        self._obj_map[name] = obj

    def register(self, obj: Any = None, force: bool = False) -> Callable[[Any], Any] | None:
        """Register ``obj`` by its ``__name__``; without ``obj``, return a decorator."""
        if obj is not None:
            return self._do_register(obj.__name__, obj, force)

        def decorate(decorated: Any) -> Any:
            self._do_register(decorated.__name__, decorated, force)
            return decorated

        return decorate

    def get(self, name: str) -> Any:
        if name not in self._obj_map:
            message = f"Unknown {self._name.lower()}: {name!r}. {_accepted(name, self._obj_map)} {self._hint}"
            raise RegistryError(message.rstrip())
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        return list(self._obj_map)
