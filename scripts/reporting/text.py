"""Tables as text: Markdown, LaTeX, CSV or plain."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from common.errors import UserError
from common.files import atomic_write
from scripts.reporting.tables import Table, make_tables

Escape = Callable[[str], str]
HeaderAndRows = tuple[list[str], list[list[str]]]
FORMATS = ("github", "latex", "csv", "plain")
DIFFERENCE_NOTE = (
    "Difference to {baseline} in points over pairs of the same column and seed, and its 95 % confidence interval: "
    "Student's t over the {cluster}s' means."
)
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "−": "$-$",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def results_tables(
    results: Iterable[dict[str, Any]], table_format: str = "github", baseline: str = "", duplicates: str = ""
) -> str:
    """Tables of results as text: one for each data set, backbone and protocol; see scripts/reporting/tables.py.

    Cells are the mean of the seeds' accuracies in percent, and their sample standard deviation where there are
    several. The average is taken over the columns first, seed by seed, over seeds that have all columns.

    Args:
        results: of find_results.
        table_format: one of FORMATS.
        baseline, duplicates: see make_tables.
    """
    tables = make_tables(results, baseline, duplicates)
    if table_format == "csv":
        return tables_csv(tables)
    return "\n\n".join(table_text(table, table_format) for table in tables)


def table_text(table: Table, table_format: str) -> str:
    """A table with its title and notes, in "github", "latex" or "plain"."""
    escape: Escape = {"latex": escape_latex, "github": escape_github}.get(table_format, str)
    comment = "% " if table_format == "latex" else ""
    header, rows = table_rows(table, table_format, escape)
    parts = [f"{comment}{table.title}: accuracy in % (mean ± std over seeds)"]
    parts.append(_tabulated(header, rows, table_format))
    if table.notes:
        # In LaTeX after the table, a line each.
        notes = [note_text(table, i, table_format, escape) for i in range(len(table.notes))]
        parts.append(("\\\\\n" if comment else "\n").join(notes))
    if table.differences:
        parts.append(escape(difference_note(table)))
        parts.append(_tabulated(*difference_rows(table, table_format, escape), table_format))
    return "\n\n".join(parts)


def _tabulated(header: list[str], rows: list[list[str]], table_format: str) -> str:
    # The texts are LaTeX already.
    name = "latex_raw" if table_format == "latex" else table_format
    text = tabulate(rows, header, tablefmt=name, disable_numparse=True)
    if table_format == "latex":  # tabulate has booktabs' rules only for texts that it escapes itself
        for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
            text = text.replace("\\hline", rule, 1)
    return text


def table_rows(table: Table, table_format: str, escape: Escape = str) -> HeaderAndRows:
    """Header and rows of a table: texts, escaped, the best in bold where a format has that."""
    bold = {"github": "**{}**", "latex": "\\textbf{{{}}}", "html": "<b>{}</b>"}.get(table_format, "{}")
    rows = []
    for method, cells in table.rows.items():
        row = [escape(method)]
        for cell in cells.values():
            text = escape(mean_and_std(cell.values.values()))
            text = bold.format(text) if cell.best else text
            row.append(text + marks_text(cell.marks, table_format))
        rows.append([*row, str(table.seeds(method))])
    return [escape(name) for name in ("method", *table.columns, table.average_name, "seeds")], rows


def marks_text(marks: list[int], table_format: str) -> str:
    """The marks of a cell as they follow its number."""
    style = {"latex": "\\textsuperscript{{{}}}", "html": "<sup>{}</sup>"}.get(table_format, " [{}]")
    return style.format(",".join(map(str, marks))) if marks else ""


def note_text(table: Table, i: int, table_format: str, escape: Escape = str) -> str:
    """Note i of a table as a line under it, with its mark as in the table, if it is marked there."""
    # No bracket in LaTeX: after a line break it would be the length of a gap.
    mark = marks_text([i + 1], table_format).strip() if i + 1 in table.marked else ""
    return f"{mark} {escape(table.notes[i])}".strip()


def cluster_word(table: Table) -> str:
    """What the differences of a table are averaged over first; see tables.cluster_of."""
    return {"single-source": "source", "cross-dataset": "set"}.get(table.runs[0]["protocol"], "target")


def difference_note(table: Table) -> str:
    """What the table of differences says, and how its intervals are made."""
    return DIFFERENCE_NOTE.format(baseline=table.baseline, cluster=cluster_word(table))


def difference_rows(table: Table, table_format: str, escape: Escape = str) -> HeaderAndRows:
    """Header and rows of the differences to the baseline: texts, escaped."""
    rows = []
    for method, found in table.differences.items():
        interval = found.reason or f"{signed(found.low)} to {signed(found.high)}"
        texts = [method, signed(found.mean), interval, *map(str, (found.n_pairs, found.n_clusters, found.n_seeds))]
        row = [escape(text) for text in texts]
        row[1] += marks_text(found.marks, table_format)
        rows.append(row)
    header = ["method", "difference", "95 % interval", "pairs", f"{cluster_word(table)}s", "seeds"]
    return [escape(name) for name in header], rows


def signed(number: float | None) -> str:
    """+1.2 or −0.3, to one decimal; "-" for None."""
    return "-" if number is None else f"{number:+.1f}".replace("-", "−")


def tables_csv(tables: list[Table]) -> str:
    """All tables as one CSV: a line for each cell, and one for each difference."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["table", "method", "column", "mean", "std", "seeds", "best", "low", "high", "notes"])
    for table in tables:
        for method, cells in table.rows.items():
            for column, cell in zip((*table.columns, table.average_name), cells.values(), strict=True):
                notes = " ".join(table.notes[mark - 1] for mark in cell.marks)
                numbers = ["" if n is None else f"{n:.4f}" for n in (cell.mean, cell.std)]
                writer.writerow(
                    [table.title, method, column, *numbers, len(cell.values), int(cell.best), "", "", notes]
                )
        for method, found in table.differences.items():
            mean, low, high = ("" if n is None else f"{n:.4f}" for n in (found.mean, found.low, found.high))
            column = f"difference to {table.baseline}"
            notes = " ".join(filter(None, [found.reason, *(table.notes[mark - 1] for mark in found.marks)]))
            writer.writerow([table.title, method, column, mean, "", found.n_seeds, "", low, high, notes])
        for i, note in enumerate(table.notes, start=1):
            if i not in table.marked:
                writer.writerow([table.title, *[""] * 8, note])
    return text.getvalue().rstrip("\r\n")


def escape_latex(text: str) -> str:
    """Text as LaTeX sets it letter by letter."""
    return "".join(LATEX.get(char, char) for char in text)


def escape_github(text: str) -> str:
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def mean_and_std(values: Iterable[float]) -> str:
    """ "92.8 ± 0.3", "92.8" for a single value, "-" for none."""
    values = list(values)
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        # Bytes, so that line ends stay; lone halves of characters occur in odd file names.
        with atomic_write(path) as handle:
            handle.write(text.encode("utf-8", "replace"))
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}. Name another --out.") from error
