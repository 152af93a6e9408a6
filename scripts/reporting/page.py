"""The page of the report: tables, figures, misclassified images, config and versions of each run."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from matplotlib.figure import Figure

from common.errors import UserError
from common.files import atomic_write, make_output_folder
from common.image_results import CONTEXTS_FILE, read_contexts
from common.progress import progress
from common.run import Result
from scripts.launching.status import DONE, find_states
from scripts.reporting import figures, text
from scripts.reporting.predictions import count_confusions, load_predictions, most_confused, most_often_wrong
from scripts.reporting.tables import Table, make_cells
from scripts.reporting.variability import read_variability
from trainers.methods import method_of

MATRIX_CLASSES = 40  # more classes: a table of pairs instead of a matrix
LONG_KEYS = {"classnames", "accuracy_by_class", "val_history", "loss_history", "metrics", "domain_fingerprints"}


class Report:
    """Collects the content of the page; writes figures into a folder; `skipped` lists missing and damaged files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.skipped: list[str] = []
        self.names: Counter = Counter()

    def figure(self, figure: Figure | None, name: str, caption: str) -> list[dict[str, str]]:
        """Save a figure; returns it for the page in a list, which is empty for None."""
        if figure is None:
            return []
        stem = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()[:100]
        self.names[stem] += 1
        stem += f"-{self.names[stem]}" if self.names[stem] > 1 else ""
        return [{"png": figures.save_figure(figure, self.folder, stem), "alt": name, "caption": caption}]

    def read(self, reader: Any, path: Path | str) -> Any:
        """Read a file of a run; None if it is damaged, which the page lists."""
        try:
            return reader(path)
        except UserError as error:
            self.skipped.append(str(error))
            return None

    def section(self, table: Table) -> dict[str, Any]:
        runs = table.runs.drop_duplicates("folder")
        rows = load_predictions(runs, self.skipped)
        html, title = text.STYLES["html"], table.title
        caption = "Mean over seeds; bars: standard deviation. The table above has the numbers."
        section: dict[str, Any] = {
            "table": table,
            "cells": text.accuracy_cells(table, html),
            "legend": [*text.table_legend(table), *input_notes(runs)],
            "differences": text.difference_cells(table, html),
            "difference_note": text.difference_note(table),
            "accuracy": self.figure(figures.draw_accuracy(table), f"{title} accuracy", caption),
            "calibration": calibration_table(runs),
            "classes": [(name, class_table(own)) for name, own in runs.groupby("dataset")],
            "samples": most_often_wrong(rows, 12).to_dict("records"),
            "learning": [],
            "confusion": [],
            "confused": [],
            "contexts": [],
            "variability": self.variability(runs),
        }
        for method, own in runs.groupby("method", sort=False):
            caption = f"{method}: accuracy on training batches and, where it selects the epoch, on validation images."
            section["learning"] += self.figure(figures.draw_learning(own), f"{title} learning {method}", caption)
            for classnames, group in own.groupby("classnames", sort=False):
                of_group = rows[rows["folder"].isin(group["folder"])]
                name = method if len(group) == len(own) else f"{method}, {', '.join(sorted(set(group['targets'])))}"
                counts = count_confusions(of_group, classnames)
                pairs = most_confused(counts, 20)
                if len(classnames) > MATRIX_CLASSES:
                    section["confused"].append((name, pairs.round({"% of the class": 1})))
                elif len(of_group):
                    worst = [f"{one} taken for {two} {n} times" for one, two, n, _ in pairs[:3].itertuples(index=False)]
                    n_runs, often = of_group["folder"].nunique(), "; ".join(worst) or "no confusion"
                    caption = f"{name}: {len(of_group)} predictions of {n_runs} runs. Most often: {often}."
                    figure = figures.draw_confusion(counts)
                    section["confusion"] += self.figure(figure, f"{title} confusion {name}", caption)
            seen = set()
            for run in own.sort_values("seed").itertuples():
                path = Path(run.folder) / CONTEXTS_FILE
                if run.targets in seen or not path.is_file() or (found := self.read(read_contexts, path)) is None:
                    continue
                seen.add(run.targets)
                name = f"{method}, {run.targets}, seed {run.seed}"
                caption = f"{name}: principal components of contexts, a point for each image, and of the prompt labels."
                section["contexts"] += self.figure(figures.draw_contexts(found), f"{title} contexts {name}", caption)
        if missing := sum(image["jpeg"] is None for image in section["samples"]):
            self.skipped.append(
                f"{title}: {missing} of {len(section['samples'])} images most often wrong have no readable file. Start "
                "this command in the folder where the runs started, or correct DATASET.ROOT in their config.yaml."
            )
        return section

    def variability(self, runs: pd.DataFrame) -> pd.DataFrame:
        """A table of the runs that scripts/variability.py has measured; empty without any."""
        found = [(run, self.read(read_variability, run.folder) or []) for run in runs.itertuples()]
        rows = [{"method": run.method, "seed": run.seed, **row} for run, of_run in found for row in of_run]
        frame = pd.DataFrame(rows, dtype=object)
        return frame.where(frame.notna(), "-")

    def run(self, run: Any) -> dict[str, Any]:
        path = Path(run.folder) / "config.yaml"
        try:
            config = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            config = "(no config.yaml)"
            self.skipped.append(f"{path} cannot be read, so the page has no config of this run.")
        facts = {"folder": run.folder} | {key.name: getattr(run, key.name) for key in fields(Result)}
        facts |= {f"version of {name}": version for name, version in facts.pop("versions").items()}
        facts = {key: ", ".join(map(str, v)) if isinstance(v, list) else v for key, v in facts.items()}
        rows = [(key, v) for key, v in facts.items() if key not in LONG_KEYS and v not in (None, "", {})]
        name = f"{run.dataset}, {run.method}, {run.targets}, seed {run.seed}"
        return {"name": name, "facts": pd.DataFrame(rows, columns=["key", "value"]), "config": config}


def calibration_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Expected calibration error (%) by method and targets: mean and standard deviation over seeds."""
    cells = make_cells(runs.assign(column=runs["targets"], value=runs["calibration_error"].astype(float)))
    texts = cells.apply(lambda cell: text.format_mean(cell["mean"], cell["std"]), axis=1).unstack(fill_value="-")
    return texts.loc[runs["method"].unique()].reset_index()


def class_table(runs: pd.DataFrame) -> str:
    """Accuracy (%) by class and method: mean over runs, as HTML."""
    accuracies = pd.DataFrame(runs["accuracy_by_class"].tolist(), runs["method"], dtype=float)
    means = accuracies.groupby(level=0, sort=False).mean().T.rename_axis(columns=None)
    return means.to_html(float_format="{:.1f}".format, na_rep="-", border=0)


def input_notes(runs: pd.DataFrame) -> list[str]:
    """One line for each method that predicts from more than the image."""
    methods = runs.drop_duplicates("method")
    found = [(name, method_of(trainer)) for name, trainer in zip(methods["method"], methods["trainer"], strict=True)]
    return [f"{name}: a prediction also depends on {of.depends_on}." for name, of in found if of and of.depends_on]


def unfinished(folders: Iterable[str | Path]) -> list[str]:
    """One line for each method, config and state of unfinished runs below folders."""
    groups: dict[Any, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    states = find_states(*(Path(folder).resolve() for folder in folders))
    for state in (one for one in states if one.status != DONE):
        above = state.folder.parent.parent
        groups[state.status, above][state.detail].append(str(state.folder.relative_to(above)))
    lines = []
    for (status, above), by_detail in groups.items():
        texts = [", ".join(runs) + f": {detail}" * bool(detail) for detail, runs in by_detail.items()]
        lines.append(f"{sum(map(len, by_detail.values()))} {status} in {above}: {'; '.join(texts)}")
    return lines


def write_report(
    tables: Sequence[Table], folders: Sequence[str | Path], out: str | Path, method_errors: Sequence[str] = ()
) -> None:
    """Write the page `out`, with the unfinished runs below `folders`, and its figures, in <out>_files."""
    out = Path(out)
    runs = pd.concat([table.runs for table in tables]).drop_duplicates("folder")
    report = Report(out.with_name(f"{out.stem}_files"))
    make_output_folder(report.folder)
    sections = [report.section(table) for table in progress(tables, len(tables), description="Tables", unit="table")]
    content = {
        "datasets": sorted(runs["dataset"].unique()),
        "missing": [*unfinished(folders), *method_errors],
        "sections": sections,
        "runs": list(map(report.run, runs.itertuples())),
        "skipped": report.skipped,
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    with atomic_write(out) as file:
        file.write(page.get_template("page.html").render(content).encode("utf-8", "replace"))
    print(f"Report: {out}")
    if report.skipped:
        print("Left out:", *report.skipped, sep="\n  ")
