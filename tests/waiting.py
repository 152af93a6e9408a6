"""Wait for a condition, long enough for a busy machine."""

import time

MINUTES = 300.0  # seconds


def wait_for(condition, is_possible=lambda: True, message=lambda: ""):
    """Poll a condition; fail with message() if it stays false, or if it became impossible."""
    deadline = time.monotonic() + MINUTES
    while not condition():
        if not is_possible() or time.monotonic() > deadline:
            assert condition(), message()
            return
        time.sleep(0.05)
