"""One page about finished runs: tables, pictures, config and versions of each.

    python scripts/report.py output --out report.html
    python scripts/report.py output/pacs output/vlcs --out report.html --baseline CoOp

The page is one file that opens from disk and needs nothing else; its pictures are written to report_files/ as well, as
PNG and SVG. What a picture needs lies beside each results.json: predictions.csv, contexts.npz and, where
scripts/variability.py was run, variability.json. What is missing there is left out and listed at the end.
"""

import _repository

import argparse
import sys

from common.errors import command
from scripts.reporting.finished import add_arguments
from scripts.reporting.page import write_report
from scripts.reporting.published import read_published


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", default="report.html", help="the page (default: report.html)")
    parser.add_argument(
        "--not-run",
        default=[],
        action="append",
        metavar="LINE",
        help="what else was to be done and could not be, as the page says beside unfinished runs (comparisons give it)",
    )
    args = parser.parse_args(argv)
    published = read_published() if args.published else None
    skipped = write_report(args.folders, args.out, args.baseline, args.duplicates, published, args.not_run)
    print(f"Report: {args.out}")
    if skipped:
        print("Left out:", *skipped, sep="\n  ")


if __name__ == "__main__":
    sys.exit(main())
