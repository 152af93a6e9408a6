"""One kind of progress bar for every long step, and lines that get along with it."""

import contextlib
import sys

from tqdm import tqdm


def progress(iterable=None, total=None, initial=0, description="", unit="it"):
    """A tqdm bar on stderr, gone when done; nothing at all when stderr is not a terminal.

    Args:
        iterable, total, initial, unit: as in tqdm.
        description: shown before the bar.
    """
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        disable=not sys.stderr.isatty(),
    )


@contextlib.contextmanager
def lines_above_bars():
    """Within the block, what is printed on a terminal appears above the bars there, line by line."""
    stdout = sys.stdout
    if stdout.isatty() and sys.stderr.isatty():
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
