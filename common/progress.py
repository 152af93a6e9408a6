"""Progress bars by tqdm, and printed lines above them."""

import contextlib
import io
import sys
import time
from collections.abc import Iterable, Iterator

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

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
    is_terminal = getattr(sys.stdout, "isatty", bool)() and sys.stderr.isatty()
    with contextlib.redirect_stdout(_AboveBars(sys.stdout)) if is_terminal else contextlib.nullcontext():
        yield


class _AboveBars(DummyTqdmFile):
    """A stream that clears the bars of stderr while it writes complete lines to stdout."""

    def write(self, x: str, nolock: bool = False) -> None:
        with tqdm.external_write_mode(file=sys.stderr) if "\n" in x else contextlib.nullcontext():
            super().write(x, nolock)
