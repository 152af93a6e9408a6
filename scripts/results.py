"""Print tables of finished runs from their results.json.

    python scripts/results.py output                        a table for each data set, backbone and protocol
    python scripts/results.py output --baseline CoOp        and the difference of each method to a baseline
    python scripts/results.py output --published            and numbers from papers, as rows marked †
    python scripts/results.py output --format latex --out table.tex

Notes under each table explain its marks and intervals.
"""

import _repository

import argparse
import sys

from common.errors import command
from common.files import atomic_write
from scripts.reporting import add_arguments


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--format",
        default="github",
        choices=("github", "latex", "csv", "plain"),
        help="latex needs the package booktabs, and with --published xcolor",
    )
    parser.add_argument("--out", default="", help="write to this file instead of printing")
    add_arguments(parser)
    args = parser.parse_args(argv)
    # Imported here, since --help needs no pandas.
    from scripts.reporting.load import load_results
    from scripts.reporting.published import read_published
    from scripts.reporting.tables import make_tables
    from scripts.reporting.text import format_tables

    published = read_published() if args.published else None
    tables = make_tables(load_results(args.folders), args.baseline, args.duplicates, published)
    text = format_tables(tables, args.format)
    if args.out:
        with atomic_write(args.out) as file:
            file.write(f"{text}\n".encode("utf-8", "replace"))
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
