"""Measure how much faster this code is than the published procedure, on this machine: one table of ratios.

Both sides compute the same numbers in single precision with the same number of threads on the CPU. The exit code is 1
if their outputs differ by more than 1e-4. The reference is tests/reference.py.
"""

import _repository

import argparse
import json
import os
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, command
from common.files import atomic_write, is_writable

if TYPE_CHECKING:
    from scripts.benchmarks.timing import Row

PARTS = ("text", "spg", "memory", "field", "neighbours", "launching")
DEFAULT_PARTS = PARTS[:3]  # the others take as long as these three together


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller batches: 3 minutes on 2 cores")
    parser.add_argument("--json", default="", metavar="FILE", help="also write the figures to this file")
    parser.add_argument(
        "--only",
        nargs="+",
        default=DEFAULT_PARTS,
        choices=PARTS,
        metavar="PART",
        help=f"of {', '.join(PARTS)} (default: {', '.join(DEFAULT_PARTS)})",
    )
    return parser.parse_args(argv)


def measure(part: str, quick: bool, folder: Path) -> "Iterator[Row]":
    """Yield the rows of one part; runs write into `folder`."""
    from scripts.benchmarks import launching, memory, methods, neighbours, spg

    rows = {
        "text": methods.text_rows,
        "spg": spg.spg_rows,
        "memory": memory.memory_rows,
        "field": methods.field_rows,
        "neighbours": neighbours.neighbour_rows,
        "launching": launching.launching_rows,
    }
    return rows[part](quick, folder)


def run(args: argparse.Namespace) -> "list[Row]":
    """Measure, print the table, write the JSON file, and return the rows.

    Raises:
        UserError: the JSON file cannot be written, or a CLIP is missing.
    """
    if args.json and not is_writable(Path(args.json).absolute().parent):
        raise UserError(f"--json {args.json}: its folder cannot be written to. Name a file in another folder.")
    from common.reproducible import versions

    start, rows = time.perf_counter(), []
    for part in (part for part in PARTS if part in args.only):
        print(f"measuring: {part}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="spg-benchmark-") as folder:
            for row in measure(part, args.quick, Path(folder)):
                print(" | ".join(row.cells()), file=sys.stderr, flush=True)
                rows.append(row)
    seconds = time.perf_counter() - start
    print(report(rows), f"{seconds:.0f} s in total", sep="\n\n")
    if args.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "versions": versions()}
        record = {"machine": machine, "quick": args.quick, "rows": [row.record() for row in rows]}
        with atomic_write(args.json, "w") as handle:
            json.dump(record, handle, indent=2)
    return rows


def report(rows: "list[Row]") -> str:
    """Write the table, how each row was measured, and whether the outputs agree."""
    from tabulate import tabulate

    headers = ("what", "ours", "reference", "ratio", "goal", "max difference")
    table = tabulate([row.cells() for row in rows], headers, tablefmt="github", disable_numparse=True)
    notes = "\n".join(f"- {row.what}: {row.note}" for row in rows)
    differing = [row.what for row in rows if not row.agrees]
    verdict = f"OUTPUTS DIFFER: {'; '.join(differing)}" if differing else "Outputs of both sides agree within 1e-4."
    return f"{table}\n\nHow it was measured:\n{notes}\n\n{verdict}"


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 if outputs differ or with one message."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    return int(not all(row.agrees for row in run(args)))


if __name__ == "__main__":
    sys.exit(main())
