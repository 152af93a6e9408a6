"""How messages are put."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

_show: Callable[[str], None] | None = None


def warn(message: str) -> None:
    """Print a warning; printed, since Dassl's log file holds what is printed."""
    print(f"Warning: {message}")
    if _show is not None:
        _show(f"Warning: {message}")


@contextlib.contextmanager
def show_warnings(show: Callable[[str], None] | None) -> Iterator[None]:
    """Within the block, call ``show`` with each warning: in launchers and their workers what is printed is not seen."""
    global _show
    before, _show = _show, show
    try:
        yield
    finally:
        _show = before


def some(items: Iterable[str], at_most: int = 8) -> str:
    """A list for messages, cut short: ``"dog, horse and 5 more"``, or ``"none"``."""
    items = list(items)
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return (", ".join(items[:at_most]) + more) or "none"
