"""How long tests wait for what has to come: no test fails because a machine is busy."""

import time

MINUTES = 300.0  # in seconds


def wait_for(what, goes_on=lambda: True, said=lambda: ""):
    """Look from time to time at whether something has come; it fails, with what was said, if that never does.

    Args:
        what: whether it has.
        goes_on: whether it still can.
        said: what to tell if it has not.
    """
    deadline = time.monotonic() + MINUTES
    while not what():
        if not goes_on() or time.monotonic() > deadline:
            assert what(), said()
            return
        time.sleep(0.05)
