"""SIGINT and SIGTERM: finish the training step, then end."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_received: int | None = None


class Interrupted(Exception):
    """The process received a signal and has to end; `exit_code` is 128 + the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextlib.contextmanager
def end_after_step() -> Iterator[None]:
    """Let `check_interruption` raise after the first SIGINT or SIGTERM in the block; a second one ends the process."""
    global _received
    _received = None
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        global _received
        if os.getpid() != owner:  # a loader worker, which its main process ends
            return
        if _received is not None:
            raise KeyboardInterrupt
        _received = number
        print(f"\n{signal.Signals(number).name}: ending after this step", file=sys.stderr, flush=True)

    # Only the main thread receives signals.
    numbers = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption() -> Interrupted | None:
    """The exception for the received signal; None without a signal."""
    return None if _received is None else Interrupted(_received)


def check_interruption() -> None:
    """Raise Interrupted after a signal. Call it where no work is half done."""
    if _received is not None:
        raise Interrupted(_received)
