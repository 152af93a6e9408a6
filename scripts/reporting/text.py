"""Tables as text: Markdown, LaTeX, CSV or plain."""

import csv
import io
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from common.errors import UserError
from common.files import atomic_write
from scripts.reporting.costs import cost_notes
from scripts.reporting.published import Figures
from scripts.reporting.tables import AVERAGE, Table, absent_columns, make_tables

Escape = Callable[[str], str]
HeaderAndRows = tuple[list[str], list[list[str]]]
FORMATS = ("github", "latex", "csv", "plain")
DAGGER = "†"  # marks figures that papers report
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
    "≥": r"$\geq$",
    "†": r"\textdagger{}",
    **{char: "\\" + char for char in "&%$#_{}"},
}


def results_tables(
    results: Iterable[dict[str, Any]],
    table_format: str = "github",
    baseline: str = "",
    duplicates: str = "",
    published: Sequence[Figures] | None = None,
) -> str:
    """Tables of results as text: one for each data set, backbone and protocol; see scripts/reporting/tables.py.

    Cells are the mean of the seeds' accuracies in percent, and their sample standard deviation where there are
    several. The average is taken over the columns first, seed by seed, over seeds that have all columns.

    Args:
        results: of find_results.
        table_format: one of FORMATS.
        baseline, duplicates, published: see make_tables.
    """
    tables = make_tables(results, baseline, duplicates, published)
    if table_format == "csv":
        return tables_csv(tables)
    return "\n\n".join(table_text(table, table_format) for table in tables)


def table_text(table: Table, table_format: str) -> str:
    """A table with its title and notes, in "github", "latex" or "plain"."""
    escape: Escape = {"latex": escape_latex, "github": escape_github}.get(table_format, str)
    comment = "% " if table_format == "latex" else ""
    line_end = "\\\\\n" if comment else "\n"
    header, rows = table_rows(table, table_format, escape)
    parts = [f"{comment}{table.title}: accuracy in % (mean ± std over seeds)"]
    if comment and table.published:
        parts[0] += "; gray needs the package xcolor"
    parts.append(_tabulated(header, rows + published_rows(table, table_format, escape), table_format))
    if table.notes:
        # In LaTeX after the table, a line each.
        notes = [note_text(table, i, table_format, escape) for i in range(len(table.notes))]
        parts.append(line_end.join(notes))
    if legend := table_legend(table):
        parts.append(line_end.join(map(escape, legend)))
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
    rows, more = [], _more_columns(table)
    for method, cells in table.rows.items():
        row = [escape(method)]
        for cell in cells.values():
            text = escape(mean_and_std(cell.values.values()))
            text = bold.format(text) if cell.best else text
            row.append(text + marks_text(cell.marks, table_format))
        rows.append([*row, *map(escape, more[method].values())])
    header = ["method", *table.columns, table.average_name, *next(iter(more.values()))]
    return [escape(name) for name in header], rows


def _more_columns(table: Table) -> dict[str, dict[str, str]]:
    """What comes after the accuracies: dict from a method to a dict from column names to texts."""
    costs = table.costs.values()
    found = {}
    for method in table.rows:
        rank = table.ranks.get(method)
        texts = {"rank": "-" if rank is None else f"{rank:.1f}"} if table.ranks else {}
        texts["seeds"] = str(table.seeds(method))
        if any(cost.n_trained for cost in costs):
            texts["trained"] = table.costs[method].trained_text
        if any(cost.seconds is not None for cost in costs):
            texts["training"] = table.costs[method].time_text
        found[method] = texts
    return found


def published_rows(table: Table, table_format: str, escape: Escape = str) -> list[list[str]]:
    """Rows of what papers report, escaped, gray or italic where a format has that; of HTML the page makes them gray."""
    style = {"github": "*{}*", "latex": "\\textcolor{{gray}}{{{}}}"}.get(table_format, "{}")
    n_more = len(next(iter(_more_columns(table).values())))
    rows = []
    for figures in table.published or ():
        values = [figures.accuracy.get(column) for column in (*table.columns, AVERAGE)]
        texts = [f"{figures.method} {DAGGER}", *("-" if value is None else f"{value:.1f}" for value in values)]
        rows.append([style.format(escape(text)) for text in (*texts, *["-"] * n_more)])
    return rows


def table_legend(table: Table) -> list[str]:
    """What there is to say of the columns after the accuracies, and of what papers report: lines."""
    return [*filter(None, [rank_note(table)]), *cost_notes(table.costs), *published_notes(table)]


def rank_note(table: Table) -> str:
    """What ranks are; "" for a single method."""
    if len(table.rows) < 2:
        return ""
    if not table.ranks:
        return "No ranks: of no column all methods have runs that compare."
    without = [method for method in table.rows if method not in table.ranks]
    do = "does" if len(without) == 1 else "do"
    which = f"the methods but {', '.join(without)}, which {do} not compare" if without else "the methods"
    note = f"rank: place among {which}, 1 is the best, ties share theirs; mean over "
    if table.ranked_over == table.columns:
        return f"{note}the columns."
    return f"{note}{', '.join(table.ranked_over)}, since of the other columns some methods have no runs that compare."


def published_notes(table: Table) -> list[str]:
    """Where the figures of papers are from, or that there are none; nothing if they were not asked for."""
    if table.published is None:
        return []
    if not table.published:
        return [f"No published figures for {table.title} in configs/published/."]
    lines = []
    for figures in table.published:
        note = f" ({figures.note})" if figures.note else ""
        absent = [column for column in figures.accuracy if column not in (*table.columns, AVERAGE)]
        without = f" No column here for: {', '.join(absent)}." if absent else ""
        lines.append(f"{DAGGER} {figures.method}, as reported in {figures.source}{note}.{without}")
    lines.append(f"{DAGGER} Not measured here: takes no part in ranks, bold figures and differences.")
    if absent_columns(table.runs) and any(AVERAGE in figures.accuracy for figures in table.published):
        lines[-1] += " Its average is over all domains, ours over the columns shown."
    return list(dict.fromkeys(lines))


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
    """All tables as one CSV: a line for each cell, rank, cost and difference, and for each figure of a paper.

    In the lines of ranks and costs "mean" is the rank, the number of parameters, or the time in s; in those of papers
    "published" is the source.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["table", "method", "column", "mean", "std", "seeds", "best", "low", "high", "notes", "published"])
    for table in tables:
        for method, cells in table.rows.items():
            for column, cell in zip((*table.columns, table.average_name), cells.values(), strict=True):
                notes = " ".join(table.notes[mark - 1] for mark in cell.marks)
                numbers = ["" if n is None else f"{n:.4f}" for n in (cell.mean, cell.std)]
                writer.writerow(
                    [table.title, method, column, *numbers, len(cell.values), int(cell.best), "", "", notes, ""]
                )
            for column, number, notes in _more_lines(table, method):
                writer.writerow([table.title, method, column, number, *[""] * 5, notes, ""])
        for figures in table.published or ():
            for column, value in figures.accuracy.items():
                column = table.average_name if column == AVERAGE else column
                source = [figures.note, figures.source]
                writer.writerow([table.title, figures.method, column, f"{value:.4f}", *[""] * 5, *source])
        for method, found in table.differences.items():
            mean, low, high = ("" if n is None else f"{n:.4f}" for n in (found.mean, found.low, found.high))
            column = f"difference to {table.baseline}"
            notes = " ".join(filter(None, [found.reason, *(table.notes[mark - 1] for mark in found.marks)]))
            writer.writerow([table.title, method, column, mean, "", found.n_seeds, "", low, high, notes, ""])
        for i, note in enumerate(table.notes, start=1):
            if i not in table.marked:
                writer.writerow([table.title, *[""] * 8, note, ""])
        if table.published == []:
            writer.writerow([table.title, *[""] * 8, *published_notes(table), ""])
    return text.getvalue().rstrip("\r\n")


def _more_lines(table: Table, method: str) -> list[tuple[str, str, str]]:
    """Of a method: column, number and notes of its rank and its costs, as far as they are known."""
    lines = []
    if method in table.ranks:
        lines.append(("rank", f"{table.ranks[method]:.4f}", rank_note(table)))
    cost = table.costs[method]
    for stages in cost.n_trained:
        by_stage = f"{' + '.join(map(str, stages))}, stage by stage" if len(stages) > 1 else ""
        lines.append(("trained", str(sum(stages)), by_stage))
    if cost.seconds is not None:
        without = f"without what earlier runs had made: {', '.join(cost.reused)}" if cost.reused else ""
        lines.append(("training (s)", f"{cost.seconds:.1f}", without))
    return lines


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
