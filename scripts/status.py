"""Print which runs of an output folder are done, running, waiting, or failed, and why.

    python scripts/status.py output               all runs of launchers and of train.py
    python scripts/status.py output/pacs/SPG      the runs below a folder

A run is running while its process holds the lock on its folder, on any machine. On file systems without locks it shows
as waiting. The command writes nothing.
"""

import _repository

import argparse
import sys
from collections import Counter
from pathlib import Path

from common.errors import UserError, command
from scripts.launching.status import DONE, find_states


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default="output", help="OUTPUT, or a folder in it (default: output)")
    parser.add_argument("--all", action="store_true", help="also print a line for each run that is done")
    args = parser.parse_args(argv)
    folder = Path(args.folder).resolve()
    if not folder.is_dir():
        raise UserError(f"{args.folder} does not exist. Name the OUTPUT of a launcher: python scripts/status.py output")
    states = find_states(folder)
    if not states:
        raise UserError(f"{args.folder} holds no run. Name the OUTPUT of a launcher.")
    for state in states:
        if args.all or state.status != DONE:
            detail = f": {state.detail}" if state.detail else ""
            print(f"{state.status:8} {state.folder.relative_to(folder)}{detail}")
    counts = Counter(state.status for state in states)
    print(f"{len(states)} runs: {', '.join(f'{n} {status}' for status, n in sorted(counts.items()))}")


if __name__ == "__main__":
    sys.exit(main())
