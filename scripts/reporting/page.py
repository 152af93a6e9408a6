"""The report's page: tables, pictures, config and versions of each run."""

import html
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from common.errors import UserError
from common.files import make_output_folder
from common.progress import progress
from common.run.contexts import CONTEXTS_FILE, read_contexts
from scripts.reporting import pictures
from scripts.reporting.details import calibration_table, chance_table, class_tables
from scripts.reporting.finished import read_folders
from scripts.reporting.published import Figures
from scripts.reporting.samples import (
    confusion,
    find_image,
    most_confused,
    most_often_wrong,
    predictions_of,
    thumbnail,
)
from scripts.reporting.tables import Results, Table, columns_of, make_tables, method_name
from scripts.reporting.text import (
    HeaderAndRows,
    difference_note,
    difference_rows,
    published_rows,
    table_legend,
    table_rows,
    write_text,
)
from scripts.reporting.unfinished import unfinished
from scripts.reporting.variability import Spread, Variability, read_variability

PAGE = "page.html"
MATRIX_CLASSES = 40  # for more classes a table of pairs
CONFUSED_PAIRS = 20
SAMPLES = 12
FACTS = (
    *("trainer", "config", "dataset", "backbone", "backbone_sha256", "protocol", "trained_on", "source_domains"),
    *("target_domains", "seed", "selection", "precision", "test_subset", "num_shots", "best_epoch", "n_test"),
    *("accuracy", "macro_f1", "n_trained", "train_seconds", "seconds", "threads", "revision", "data_fingerprint"),
)


class Report:
    """Collects what the page shows.

    Args:
        folder: where the pictures go as files.
        bar: progress bar that counts pictures.

    Attributes:
        skipped: what is left out and why, one line each.
    """

    def __init__(self, folder: Path, bar: Any) -> None:
        self.folder = folder
        self.bar = bar
        self.skipped: list[str] = []
        self.names: set[str] = set()

    def picture(self, figure: Figure, name: str, alt: str, caption: str) -> dict[str, str]:
        """Save a picture; a dict for the page."""
        stem = pictures.file_name(name)
        number = 1
        while stem in self.names:
            number += 1
            stem = f"{pictures.file_name(name)}-{number}"
        self.names.add(stem)
        png = pictures.save_picture(figure, self.folder, stem)
        self.bar.update()
        return {"png": png, "alt": alt, "caption": caption}

    def section(self, table: Table) -> dict[str, Any]:
        """What the page shows of a table."""
        by_method = pictures.runs_by_method(table)
        accuracy = self.picture(
            pictures.accuracy_picture(table),
            f"{table.title} accuracy",
            f"Accuracy of {', '.join(table.rows)} on {', '.join(table.columns)}; the numbers are in the table above.",
            "Mean over seeds; bars: standard deviation.",
        )
        predictions = {method: predictions_of(runs, self.skipped) for method, runs in by_method.items()}
        confusion_pictures, confused = self.confusions(table, predictions)
        section = {
            "title": table.title,
            "table": _as_html(table_rows(table, "html", html.escape)),
            "published": published_rows(table, "html"),
            "legend": table_legend(table),
            "notes": [(i if i in table.marked else 0, note) for i, note in enumerate(table.notes, start=1)],
            "baseline": table.baseline,
            "accuracy": [accuracy],
            "learning": self.learning(table, by_method),
            "confusion": confusion_pictures,
            "confused": confused,
            "contexts": self.contexts(table, by_method),
            "samples": self.samples(table, predictions),
            "calibration": calibration_table(by_method),
            "classes": class_tables(by_method, MATRIX_CLASSES),
        }
        if table.differences:
            section["differences"] = _as_html(difference_rows(table, "html", html.escape))
            section["difference_note"] = difference_note(table)
        return section

    def learning(self, table: Table, by_method: dict[str, list[Results]]) -> list[dict[str, str]]:
        """Pictures of learning curves, one for each method that learns."""
        found = []
        for method, runs in by_method.items():
            figure = pictures.learning_picture(runs)
            if figure is not None:
                line = "source" if runs[0]["protocol"] == "single-source" else "column of the table"
                what = f"the source domains' validation images, a line for each {line} (mean over seeds)"
                if not any(run.get("val_history") for run in runs):
                    what = "training batches alone, since no epoch is chosen by validation"
                caption = f"{method}: accuracy on {what}, and training losses (mean over all runs)."
                found.append(
                    self.picture(figure, f"{table.title} learning {method}", f"Learning curves of {method}.", caption)
                )
        return found

    def confusions(self, table: Table, predictions: dict[str, list]) -> tuple[list[dict[str, str]], list[tuple]]:
        """Confusion matrices of methods, or tables of the most confused pairs where there are many classes."""
        found, tables = [], []
        for method, of_method in predictions.items():
            by_classes = defaultdict(list)
            for run, rows in of_method:
                by_classes[tuple(run.get("classnames") or sorted({row["label"] for row in rows}))].append((run, rows))
            for classnames, group in by_classes.items():
                counts = confusion(group, classnames)
                if not counts.sum():
                    continue
                columns = sorted({column for run, _ in group for column in columns_of(run)})
                what = method if len(by_classes) == 1 else f"{method}, {', '.join(columns)}"
                pairs = most_confused(counts, classnames, CONFUSED_PAIRS)
                if len(classnames) > MATRIX_CLASSES:
                    tables.append((what, [(a, b, n, f"{share:.1f}") for a, b, n, share in pairs]))
                    continue
                worst = "; ".join(f"{a} taken for {b} {n} times" for a, b, n, _ in pairs[:3])
                images = f"{counts.sum()} predictions of {len(group)} run{'s' * (len(group) != 1)}"
                picture = self.picture(
                    pictures.confusion_picture(counts, classnames),
                    f"{table.title} confusion {what}",
                    f"Confusion matrix of {what}. Most often: {worst or 'nothing is confused'}.",
                    f"{what}: {images}, all columns and seeds together. Most often: {worst or 'nothing is confused'}.",
                )
                found.append(picture)
        return found, tables

    def contexts(self, table: Table, by_method: dict[str, list[Results]]) -> list[dict[str, str]]:
        """Pictures of generated contexts: of each method and set of targets the first seed that kept them."""
        found, seen = [], set()
        for method, runs in by_method.items():
            for run in sorted(runs, key=lambda run: run["seed"]):
                columns = tuple(columns_of(run))
                path = Path(run["folder"]) / CONTEXTS_FILE
                if (method, columns) in seen or not path.is_file():
                    continue
                try:
                    figure = pictures.contexts_picture(read_contexts(path))
                except UserError as error:
                    self.skipped.append(str(error))
                    continue
                if figure is None:
                    continue
                seen.add((method, columns))
                what = f"{method}, {', '.join(columns)}, seed {run['seed']}"
                caption = f"{what}: principal components of the contexts generated for images, one point each, and of "
                caption += "the prompt labels."
                alt = f"Contexts of {what} in the plane of their first two principal components, coloured by domain."
                found.append(self.picture(figure, f"{table.title} contexts {what}", alt, caption))
        return found

    def samples(self, table: Table, predictions: dict[str, list]) -> list[dict[str, Any]]:
        """The images most often wrong, with thumbnails where their files are found."""
        found, missing = [], 0
        for sample in most_often_wrong([pair for pairs in predictions.values() for pair in pairs], SAMPLES):
            path = find_image(sample)
            jpeg = thumbnail(path) if path else None
            missing += jpeg is None
            said = []
            for method, counts in sample.said.items():
                said.append((method, ", ".join(f"{name} {n}/{counts.total()}" for name, n in counts.most_common())))
            entry = {key: getattr(sample, key) for key in ("path", "domain", "label", "tested", "wrong")}
            found.append({**entry, "said": said, "jpeg": jpeg})
        if missing:
            self.skipped.append(
                f"{table.title}: {missing} of {len(found)} images most often wrong have no readable file. Start this "
                "where the runs were started, or give them their data set back (DATASET.ROOT in config.yaml)."
            )
        return found

    def measured(self, results: Iterable[Results]) -> dict[str, Variability]:
        """What scripts/variability.py found out, by folders of runs."""
        measured = {}
        for result in results:
            try:
                found = read_variability(result["folder"])
            except UserError as error:
                self.skipped.append(str(error))
                continue
            if found is not None:
                measured[result["folder"]] = found
        return measured

    def variability(self, results: Iterable[Results], measured: dict[str, Variability]) -> list[dict[str, Any]]:
        """A table and a picture of what was measured, for each method on a data set and backbone."""
        groups = defaultdict(list)
        for result in results:
            found = measured.get(result["folder"])
            if found is None:
                continue
            for domain, spread in found.by_domain.items():
                line = f"{domain}, seed {result['seed']}"
                if result["protocol"] == "single-source":
                    line = f"{'+'.join(result['source_domains'])} → {line}"
                group = f"{method_name(result)}, {result['dataset']}, {result['backbone']}, {result['protocol']}"
                groups[group].append((line, found.draws, spread, found.averages(domain)))
        return [self._variability_of(group, lines) for group, lines in groups.items()]

    def _variability_of(self, group: str, lines: list[tuple[str, int, Spread, dict[int, float]]]) -> dict[str, Any]:
        counts = sorted({n for *_, averages in lines for n in averages})
        rows = [
            [line, str(draws), *(f"{value:.1f}" for value in asdict(spread).values())]
            + [f"{averages[n]:.1f}" if n in averages else "-" for n in counts]
            for line, draws, spread, averages in lines
        ]
        picture = self.picture(
            pictures.variability_picture([(line, spread, averages) for line, _, spread, averages in lines]),
            f"{group} variability",
            f"Spread of accuracy over draws of the noise, {group}; the numbers are in the table above.",
            "Range and standard deviation of the accuracy over single draws, accuracy when draws are averaged, and how "
            "often two draws agree.",
        )
        header = ["domain, run", "draws", *Spread.__dataclass_fields__, *(f"n = {n}" for n in counts)]
        return {"name": group, "table": (header, rows), "pictures": [picture]}

    def run(self, result: Results) -> dict[str, Any]:
        """Name, facts and config of a run."""
        path = Path(result["folder"]) / "config.yaml"
        try:
            config = path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            config = "(no config.yaml)"
            self.skipped.append(f"{path} cannot be read, so the run's config is not shown.")
        facts = [("folder", result["folder"])]
        facts += [(name, _fact(result[name])) for name in FACTS if result.get(name) not in (None, [])]
        facts += [(f"version of {name}", version) for name, version in (result.get("versions") or {}).items()]
        return {"name": _run_name(result), "facts": facts, "config": config}


def _run_name(result: Results) -> str:
    return f"{result['dataset']}, {method_name(result)}, {', '.join(columns_of(result))}, seed {result['seed']}"


def _fact(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _as_html(header_and_rows: HeaderAndRows) -> tuple[list[Markup], list[list[Markup]]]:
    """Texts that are HTML already, told so to Jinja."""
    header, rows = header_and_rows
    return [Markup(name) for name in header], [[Markup(cell) for cell in row] for row in rows]


def write_report(
    folders: Sequence[str | Path],
    out: str | Path,
    baseline: str = "",
    duplicates: str = "",
    published: Sequence[Figures] | None = None,
    not_run: Sequence[str] = (),
) -> list[str]:
    """Write the page and its pictures; what was left out, one line each.

    Args:
        folders: with finished runs.
        out: the page's file.
        baseline, duplicates, published: see make_tables.
        not_run: lines on what was to be done and could not be, beside the unfinished runs below the folders.

    Raises:
        UserError: there is nothing to report, or the page cannot be written.
    """
    out = Path(out)
    tables = make_tables(read_folders(folders), baseline, duplicates, published)
    results = [run for table in tables for run in table.runs]
    try:
        with progress(description="Pictures", unit="picture") as bar:
            make_output_folder(out.with_name(f"{out.stem}_files"))
            report = Report(out.with_name(f"{out.stem}_files"), bar)
            sections = [report.section(table) for table in tables]
            measured = report.measured(results)
            variability = report.variability(results, measured)
    except OSError as error:
        raise UserError(f"Cannot write {error.filename or out}: {error.strerror}. Name another --out.") from error
    content = {
        "title": f"Results: {', '.join(sorted({result['dataset'] for result in results}))}",
        "n_runs": len(results),
        "missing": [*unfinished(folders), *not_run],
        "sections": sections,
        "chance": [(table.title, chance_table(table, measured)) for table in tables],
        "variability": variability,
        "runs": [report.run(result) for result in results],
    }
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, undefined=jinja2.ChainableUndefined)
    write_text(out, page.get_template(PAGE).render(**content, skipped=report.skipped))
    return report.skipped
