"""Wait for a condition, long enough for a busy machine."""

import time

MINUTES = 300.0  # seconds


def wait_for(condition, is_possible=lambda: True, message=lambda: ""):
    """Poll a condition and fail with a message if it stays false.

    Args:
        condition: returns True when the wait is over.
        is_possible: returns False if the condition cannot become true.
        message: returns the message of the failure.
    """
    deadline = time.monotonic() + MINUTES
    while not condition():
        if not is_possible() or time.monotonic() > deadline:
            assert condition(), message()
            return
        time.sleep(0.05)
