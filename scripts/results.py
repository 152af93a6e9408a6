"""Tables of finished runs, read from their results.json.

    python scripts/results.py output                        all runs below a folder, a table for each data set,
                                                            backbone and protocol
    python scripts/results.py output --baseline CoOp        and every method's difference to one of them
    python scripts/results.py output --published            and what papers report, as rows marked †
    python scripts/results.py output --format latex --out table.tex

What cells are marked for, and how intervals are made, is told under the tables.
"""

import _repository

import argparse
import sys

from common.errors import command
from scripts.reporting.finished import add_arguments, read_folders
from scripts.reporting.published import read_published
from scripts.reporting.text import FORMATS, results_tables, write_text


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument(
        "--format",
        default="github",
        choices=FORMATS,
        help="latex needs the package booktabs, with --published xcolor, too",
    )
    parser.add_argument("--out", default="", help="file to write to instead of printing")
    args = parser.parse_args(argv)
    published = read_published() if args.published else None
    text = results_tables(read_folders(args.folders), args.format, args.baseline, args.duplicates, published)
    if args.out:
        write_text(args.out, text + "\n")
    else:
        print(text)


if __name__ == "__main__":
    sys.exit(main())
