"""Tables and pages of finished runs. Here: the arguments that results.py and report.py share."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select runs and compare them."""
    parser.add_argument("folders", nargs="+", help="folders with finished runs")
    parser.add_argument(
        "--baseline", default="", metavar="METHOD", help="method to compare all others with, pair by pair"
    )
    parser.add_argument(
        "--duplicates", default="", choices=["newest"], help="of several runs of one cell and seed take the newest"
    )
    parser.add_argument(
        "--published",
        action="store_true",
        help="add numbers from papers (configs/published/) on the same data set, protocol and backbone, as rows",
    )
