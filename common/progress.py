"""Progress bars by tqdm, and printed lines above them."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30


def progress(
    iterable: Iterable | None = None,
    total: int | None = None,
    initial: int = 0,
    description: str = "",
    unit: str = "it",
) -> tqdm:
    """A tqdm bar on stderr that is cleared at its end; without a terminal, a line every 30 seconds."""
    options = {"total": total, "initial": initial, "desc": description, "unit": unit, "unit_scale": unit == "B"}
    if sys.stderr.isatty():
        return tqdm(iterable, file=sys.stderr, leave=False, dynamic_ncols=True, **options)
    return _Lines(iterable, file=io.StringIO(), leave=False, miniters=1, mininterval=0, ncols=0, **options)


class _Lines(tqdm):
    """A bar that prints lines, for logs."""

    last_line: float | None = None

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        now = time.monotonic()
        if self.last_line is None:  # the first call is at 0 %
            self.last_line = now
        elif msg is None and now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            print(str(self), file=sys.stderr, flush=True)


@contextlib.contextmanager
def lines_above_bars() -> Iterator[None]:
    """Print lines above the bars of a terminal within the block."""
    stdout = sys.stdout
    if getattr(stdout, "isatty", bool)() and sys.stderr.isatty():
        sys.stdout = _AboveBars(stdout)
    try:
        yield
    finally:
        sys.stdout = stdout


class _AboveBars:
    """A stream that clears the bars while it writes complete lines to another stream."""

    def __init__(self, stream):
        self.stream, self.incomplete = stream, ""

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def write(self, text):
        *lines, self.incomplete = (self.incomplete + text).split("\n")
        if lines:
            with tqdm.external_write_mode(file=sys.stderr):
                self.stream.write("".join(f"{line}\n" for line in lines))
                self.stream.flush()
        return len(text)
