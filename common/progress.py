"""One kind of progress bar for every long step."""

import sys

from tqdm import tqdm


def progress(iterable=None, total=None, initial=0, description="", unit="it", beside_lines=True):
    """A tqdm bar on stderr, gone when done; nothing at all when stderr is not a terminal.

    Args:
        iterable, total, initial, unit: as in tqdm.
        description: shown before the bar.
        beside_lines: False for bars of steps that print lines of their own: not shown when stdout is a terminal
            too, where the lines already tell how far things are.
    """
    hidden = not sys.stderr.isatty() or (not beside_lines and sys.__stdout__.isatty())
    return tqdm(
        iterable,
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        disable=hidden,
    )
