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
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import UserError, command
from common.files import atomic_write, is_writable

if TYPE_CHECKING:
    from scripts.benchmarks.timing import Row

PARTS = ("spg", "text", "memory", "field", "decoding", "launching")
DEFAULT_PARTS = PARTS[:3]  # the others take as long as these three together


def report(rows: "list[Row]") -> str:
    """Format the table, the notes and the verdict on the outputs."""
    from tabulate import tabulate

    headers = ("measurement", "ours", "reference", "ratio", "goal", "max difference")
    table = tabulate([row.cells() for row in rows], headers, tablefmt="github", disable_numparse=True)
    notes = "\n".join(f"- {row.name}: {row.note}" for row in rows)
    differing = [row.name for row in rows if not row.agrees]
    verdict = f"OUTPUTS DIFFER: {'; '.join(differing)}" if differing else "Outputs of both sides agree within 1e-4."
    return f"{table}\n\nNotes:\n{notes}\n\n{verdict}"


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0, or 1 if outputs differ or with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, smaller batches: 3 minutes on 2 cores")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures to this file, too")
    text = f"parts: {', '.join(PARTS)} (default: {', '.join(DEFAULT_PARTS)})"
    parser.add_argument("--only", nargs="+", default=DEFAULT_PARTS, choices=PARTS, metavar="PART", help=text)
    args = parser.parse_args(argv)
    if args.json and not is_writable(Path(args.json).absolute().parent):
        raise UserError(f"--json {args.json}: its folder is read-only. Name a file in another folder.")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    from common.reproducible import versions
    from scripts.benchmarks import decoding, launching, memory, methods, spg

    measures = [spg.spg_rows, methods.text_rows, memory.memory_rows]
    measures += [methods.field_rows, decoding.decoding_rows, launching.launching_rows]
    start, rows = time.perf_counter(), []
    for part, measure in zip(PARTS, measures, strict=True):
        if part not in args.only:
            continue
        print(f"measuring: {part}", file=sys.stderr)
        with tempfile.TemporaryDirectory(prefix="spg-benchmark-") as folder:
            for row in measure(args.quick, Path(folder)):
                print(" | ".join(row.cells()), file=sys.stderr, flush=True)
                rows.append(row)
    print(report(rows), f"{time.perf_counter() - start:.0f} s in total", sep="\n\n")
    if args.json:
        machine = {"platform": platform.platform(), "cores": os.cpu_count(), "versions": versions()}
        figures = [{**asdict(row), "ratio": row.ratio, "agrees": row.agrees} for row in rows]
        with atomic_write(args.json, "w") as handle:
            json.dump({"machine": machine, "quick": args.quick, "rows": figures}, handle, indent=2)
    return 0 if all(row.agrees for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
