"""One kind of progress bar for every long step, and lines that get along with it."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} gone, {remaining} left{postfix}"
LINE_WITHOUT_TOTAL = "{desc}: {n_fmt} {unit}, {elapsed} gone{postfix}"


def progress(
    iterable: Iterable | None = None,
    total: int | None = None,
    initial: int = 0,
    description: str = "",
    unit: str = "it",
) -> tqdm:
    """A tqdm bar on stderr, gone when done; where that is no terminal, a plain line every 30 seconds.

    Args:
        iterable, total, initial, unit: as in tqdm.
        description: shown before the bar.
    """
    shared = {"total": total, "initial": initial, "desc": description, "unit": unit, "unit_scale": unit == "B"}
    if sys.stderr.isatty():
        return tqdm(iterable, file=sys.stderr, leave=False, dynamic_ncols=True, **shared)
    return _Lines(iterable, file=io.StringIO(), leave=False, miniters=1, mininterval=0, bar_format=LINE, **shared)


class _Lines(tqdm):
    """A bar that is told in lines: for logs, which do not go back to the start of a line."""

    _told = None

    def display(self, msg=None, pos=None):
        if self._told is None:  # the first call is at 0 of all
            self._told = time.monotonic()
        elif msg is None and time.monotonic() - self._told >= SECONDS_BETWEEN_LINES:
            self._told = time.monotonic()
            if self.total is None:
                self.bar_format = LINE_WITHOUT_TOTAL
            print(str(self), file=sys.stderr, flush=True)


@contextlib.contextmanager
def lines_above_bars() -> Iterator[None]:
    """Within the block, what is printed on a terminal appears above the bars there, line by line."""
    stdout = sys.stdout
    if getattr(stdout, "isatty", bool)() and sys.stderr.isatty():  # a logger in its place may have no more than write
        sys.stdout = _AboveBars(stdout)
    try:
        yield
    finally:
        sys.stdout = stdout


class _AboveBars:
    """Passes whole lines on to a stream, with the bars out of the way meanwhile."""

    def __init__(self, stream):
        self.stream, self.begun = stream, ""

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        *lines, self.begun = (self.begun + text).split("\n")
        if lines:
            with tqdm.external_write_mode(file=sys.stderr):
                self.stream.write("".join(f"{line}\n" for line in lines))
                self.stream.flush()
        return len(text)
