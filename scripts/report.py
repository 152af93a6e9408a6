"""Write one HTML page about finished runs: tables, figures, config and versions of each run.

    python scripts/report.py output --out report.html
    python scripts/report.py output/pacs output/vlcs --out report.html --baseline CoOp

The page is one file that a browser opens without a network. report_files/ has its figures as PNG and SVG. The page uses
other files of each run: predictions.csv, contexts.npz, and variability.json of scripts/variability.py. It
lists missing and damaged files at its end.
"""

import _repository

import argparse
import sys

from common.errors import command
from scripts.reporting import add_arguments


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--out", default="report.html", help="file of the page (default: report.html)")
    args = parser.parse_args(argv)
    # Imported here, since --help needs no pandas.
    from scripts.reporting.load import load_results
    from scripts.reporting.page import write_report
    from scripts.reporting.published import read_published
    from scripts.reporting.tables import make_tables

    published = read_published() if args.published else None
    tables = make_tables(load_results(args.folders), args.baseline, args.duplicates, published)
    write_report(tables, args.folders, args.out)


if __name__ == "__main__":
    sys.exit(main())
