"""How datasets put what they have to say."""


def warn(message):
    """Print a warning; printed, since Dassl's log file holds what is printed."""
    print(f"Warning: {message}")


def some(items, at_most=8):
    """A list for messages, cut short: ``"dog, horse and 5 more"``, or ``"none"``."""
    items = list(items)
    more = f" and {len(items) - at_most} more" if len(items) > at_most else ""
    return (", ".join(items[:at_most]) + more) or "none"
