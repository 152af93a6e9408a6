"""What a process that does run after run keeps between them; one that does a single run keeps nothing.

What is kept is used as it is by every run, so none may change it, and it goes by everything that it depends on.
"""

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")

_keeping = False


def keep_between_runs() -> None:
    """Keep things from now on: this process does several runs."""
    global _keeping
    _keeping = True


class Kept(Generic[Value]):
    """Things of one kind, of which the last ones that were asked for are kept.

    Args:
        at_most: how many.
    """

    def __init__(self, at_most: int) -> None:
        self.at_most = at_most
        self._values: dict[Hashable, Value] = {}  # the last one that was asked for comes last

    def get(
        self, key: Hashable, make: Callable[[], Value], still_holds: Callable[[Value], bool] = lambda value: True
    ) -> Value:
        """The thing that goes by a key.

        Args:
            key: equal exactly if everything is that the thing depends on.
            make: makes it, where it is not kept.
            still_holds: whether one that is kept is still what it was, by what the key does not have.
        """
        if not _keeping:
            return make()
        value = self._values.pop(key, None)
        if value is None or not still_holds(value):
            value = None  # before another one is made, for which there may be no room beside it
            while len(self._values) >= self.at_most:
                del self._values[next(iter(self._values))]
            value = make()
        self._values[key] = value
        return value
