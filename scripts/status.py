"""What of the runs in an output folder is done, running, waiting, or failed.

    python scripts/status.py output               all runs that launchers were asked for, or that began otherwise
    python scripts/status.py output/pacs/SPG      those below a folder

A run is taken for running while its process holds the lock on its folder, on whichever machine; where the file system
has no such locks, it shows as waiting. Nothing is written.
"""

import _repository

import argparse
import sys
from collections import Counter
from pathlib import Path

from common.errors import UserError, command
from scripts.launching.status import DONE, State, find_states


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="output", help="OUTPUT, or a folder in it (default: output)")
    parser.add_argument("--all", action="store_true", help="a line for each run that is done, too")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    folder = Path(args.folder).resolve()
    if not folder.is_dir():
        raise UserError(
            f"There is no folder {args.folder}; name the OUTPUT of a launcher: python scripts/status.py output"
        )
    states = find_states(folder)
    if not states:
        raise UserError(f"{args.folder} holds no run, and no launcher was asked for one there.")
    for one in states:
        if args.all or one.what != DONE:
            print(line(one, folder))
    counts = Counter(one.what for one in states)
    print(f"{len(states)} runs: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")


def line(state: State, folder: Path) -> str:
    """What is known of a run, in a line."""
    return f"{state.what:8} {state.folder.relative_to(folder)}{f': {state.detail}' if state.detail else ''}"


if __name__ == "__main__":
    sys.exit(main())
