"""SIGINT and SIGTERM: finish the step, then end in good order."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_received: int | None = None


class Interrupted(Exception):
    """The process was asked to end.

    Attributes:
        exit_code: what shells and launchers expect then, 128 + the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def end_after_step() -> Iterator[None]:
    """Within the block, the first SIGINT or SIGTERM is noted for `check_interruption`; a second one ends the process.

    Signals reach a process's main thread alone; in any other nothing changes.
    """
    global _received
    _received = None
    owner = os.getpid()

    def note(number, frame):
        global _received
        if os.getpid() != owner:  # a loader worker: its main process will end it
            return
        if _received is not None:
            raise KeyboardInterrupt
        _received = number
        print(f"\n{signal.Signals(number).name}: ending after this step", file=sys.stderr, flush=True)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption() -> Interrupted | None:
    """The `Interrupted` that is due, or None."""
    return None if _received is None else Interrupted(_received)


def check_interruption() -> None:
    """Raise `Interrupted` if the process was asked to end; called where nothing is half done."""
    if _received is not None:
        raise Interrupted(_received)
