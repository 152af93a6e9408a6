"""How messages are put."""

from collections.abc import Iterable


def warn(message: str) -> None:
    """Print a warning; printed, since Dassl's log file holds what is printed."""
    print(f"Warning: {message}")


def some(items: Iterable[str], at_most: int = 8) -> str:
    """A list for messages, cut short: ``"dog, horse and 5 more"``, or ``"none"``."""
    items = list(items)
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return (", ".join(items[:at_most]) + more) or "none"
