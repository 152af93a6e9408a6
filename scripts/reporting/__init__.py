"""Tables and pages of finished runs. Here: the arguments that results.py and report.py share."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select runs and compare them."""
    parser.add_argument("folders", nargs="+", help="folders with finished runs")
    parser.add_argument("--baseline", default="", metavar="METHOD", help="compare all others with this method")
    parser.add_argument(
        "--duplicates", default="", choices=["newest"], help="of several runs of one cell and seed take the newest"
    )
    parser.add_argument("--published", action="store_true", help="add rows from papers (configs/published/)")
