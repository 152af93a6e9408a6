"""What lies behind the accuracies of a table: calibration, classes, and what chance has to do with them."""

import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from scripts.reporting.tables import AVERAGE, Table, columns_of, method_name
from scripts.reporting.text import mean_and_std
from scripts.reporting.variability import Variability
from trainers.methods import method_of

Rows = tuple[list[str], list[list[str]]]


def calibration_table(by_method: dict[str, list[dict[str, Any]]]) -> Rows | None:
    """Header and rows: each method's expected calibration error (%) on what was tested, mean and std over seeds.

    Args:
        by_method: results of each method.

    Returns:
        None where no run measured it.
    """
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for method, runs in by_method.items():
        for run in runs:
            if "calibration_error" in run:  # of a single-source run, over all of its targets
                found[method][_tested(run)].append(run["calibration_error"])
    columns = sorted({column for row in found.values() for column in row})
    rows = [[method, *(mean_and_std(row[column]) for column in columns)] for method, row in found.items()]
    return (["method", *columns], rows) if rows else None


def _tested(run: dict[str, Any]) -> str:
    columns = list(columns_of(run))
    return columns[0] if len(columns) == 1 else f"{'+'.join(run['source_domains'])} → others"


def class_tables(by_method: dict[str, list[dict[str, Any]]], at_most: int) -> list[Rows]:
    """Header and rows, a table for each list of class names: recognised images of each class (%), mean over all runs.

    Args:
        by_method: results of each method.
        at_most: lists of more classes than this are left out.
    """
    groups: dict[tuple[str, ...], dict[str, list[dict[str, float | None]]]] = defaultdict(lambda: defaultdict(list))
    for method, runs in by_method.items():
        for run in runs:
            if "accuracy_by_class" in run and len(run["classnames"]) <= at_most:
                groups[tuple(run["classnames"])][method].append(run["accuracy_by_class"])
    return [
        (["method", *names], [[method, *(_mean(runs, name) for name in names)] for method, runs in found.items()])
        for names, found in groups.items()
    ]


def _mean(runs: list[dict[str, float | None]], name: str) -> str:
    values = [value for run in runs if (value := run.get(name)) is not None]
    return f"{statistics.mean(values):.1f}" if values else "-"


def chance_table(table: Table, measured: Mapping[str, Variability]) -> Rows:
    """Header and rows: what each method's predictions depend on beside the image, and how far its accuracies spread.

    Args:
        table: of results.
        measured: what scripts/variability.py found out, by folders of runs.
    """
    rows = []
    for method, cells in table.rows.items():
        runs = [run for run in table.runs if method_name(run) == method]
        over_seeds = [cell.std for column, cell in cells.items() if column != AVERAGE and cell.std is not None]
        found = [measured[run["folder"]] for run in runs if run.get("folder") in measured]
        over_draws = [spread.std for one in found for spread in one.by_domain.values()]
        depends_on = _depends_on(runs[0]["trainer"])
        spreads = [_spread(over_seeds, "-"), _spread(over_draws, "none" if depends_on == "nothing" else "not measured")]
        rows.append([method, depends_on, *spreads])
    return ["method", "beside the image, predictions depend on", "std over seeds", "std over draws"], rows


def _depends_on(trainer: str) -> str:
    method = method_of(trainer)
    return (method.depends_on or "nothing") if method else "(not known)"


def _spread(stds: list[float], otherwise: str) -> str:
    return f"{statistics.mean(stds):.2f}" if stds else otherwise
