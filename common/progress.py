"""One kind of progress bar for every long step."""

import sys

from tqdm import tqdm


def progress(iterable=None, total=None, description="", unit="it", unit_scale=False):
    """A tqdm bar on stderr, gone when done; nothing at all when stderr is not a terminal.

    The lines that matter are printed to stdout by whoever does the work, so that logs stay free of bars.
    """
    return tqdm(
        iterable,
        total=total,
        desc=description,
        unit=unit,
        unit_scale=unit_scale,
        file=sys.stderr,
        leave=False,
        dynamic_ncols=True,
        disable=None,
    )
