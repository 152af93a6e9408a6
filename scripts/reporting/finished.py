"""Finished runs below folders: their results.json, read and checked."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.run.results import RESULTS_FILE, read_results
from scripts.reporting.costs import check_cost
from scripts.reporting.tables import columns_of, method_name
from trainers.methods import METHODS


def find_results(folders: Iterable[str | Path]) -> list[dict[str, Any]]:
    """The results of all finished runs below some folders, each with its "folder" and when it was "written".

    Raises:
        UserError: a folder is missing, or a results file is damaged.
    """
    found: dict[Path, dict[str, Any]] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        for path in sorted(folder.rglob(RESULTS_FILE)):
            if path.resolve() not in found:
                result = check_entries(path, read_results(path))
                found[path.resolve()] = {**result, "folder": str(path.parent), "written": path.stat().st_mtime}
    return list(found.values())


def check_entries(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    """A results file's content if it has what tables need.

    Raises:
        UserError: something is missing or of the wrong kind.
    """
    try:
        numbers = columns_of(result).values()
        texts = [method_name(result), result["dataset"], result["backbone"], result["protocol"]]
        if not all(isinstance(text, str) for text in [*texts, *result["target_domains"], *result["source_domains"]]):
            raise ValueError("a name is no text")
        if not numbers or not isinstance(result["seed"], int):
            raise ValueError("it has no target domain, or no seed")
        if not all(isinstance(n, (int, float)) and 0 <= n <= 100 for n in numbers):
            raise ValueError("its accuracy is no percentage")
        check_cost(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} lacks what a results file has: {what}. Delete it and run its command again."
        ) from error
    return result


def read_folders(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The results below folders, of which each has some, in the order of a comparison's methods.

    Raises:
        UserError: a folder is missing or has none, or a results file is damaged.
    """
    for folder in folders:
        if Path(folder).is_dir() and next(Path(folder).rglob(RESULTS_FILE), None) is None:
            raise UserError(
                f"No finished run (no {RESULTS_FILE}) below {folder}. A run writes it when it has been tested; start "
                "unfinished ones again by the same command."
            )
    places = {method.trainer: place for place, method in enumerate(METHODS)}
    return sorted(find_results(folders), key=lambda result: places.get(result["trainer"], len(places)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which runs, and how they are compared."""
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
        help="figures that papers report (configs/published/) as rows beside ours, if measured on the same",
    )
