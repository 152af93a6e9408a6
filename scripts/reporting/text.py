"""Tables as text: Markdown, LaTeX, CSV, plain, and cells for the HTML page."""

import html
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
from tabulate import tabulate

from scripts.reporting.tables import AVERAGE, Table

MARKDOWN = str.maketrans({"|": r"\|", "*": r"\*"})
LATEX = str.maketrans(
    {
        **{char: f"\\{char}" for char in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "†": r"\textdagger{}",
        "±": r"$\pm$",
        "→": r"$\rightarrow$",
        "−": "$-$",
        "≥": r"$\geq$",
    }
)
CSV_COLUMNS = ["table", "method", "column", "mean", "std", "seeds", "best", "low", "high", "notes", "published"]


@dataclass(frozen=True)
class Style:
    """The markup of a format: an escape function, and templates of best cells, marks and published rows."""

    escape: Callable[[str], str] = str
    best: str = "{}"
    marks: str = " [{}]"
    published: str = "{}"


STYLES = {
    "github": Style(lambda text: " ".join(text.split()).translate(MARKDOWN), best="**{}**", published="*{}*"),
    "latex": Style(
        lambda text: text.translate(LATEX), "\\textbf{{{}}}", "\\textsuperscript{{{}}}", "\\textcolor{{gray}}{{{}}}"
    ),
    "plain": Style(),
    "html": Style(html.escape, "<b>{}</b>", "<sup>{}</sup>"),
}


def format_tables(tables: Sequence[Table], table_format: str = "github") -> str:
    """All tables as text in "github", "latex", "plain" or "csv"."""
    if table_format == "csv":
        lines = pd.concat([csv_lines(table) for table in tables])
        return lines.to_csv(index=False, float_format="%.4f").rstrip("\n")
    return "\n\n".join(format_table(table, table_format) for table in tables)


def format_table(table: Table, table_format: str) -> str:
    """A table with its title and notes in "github", "latex" or "plain"."""
    style, is_latex = STYLES[table_format], table_format == "latex"
    title = f"{'% ' * is_latex}{table.title}: accuracy in % (mean ± std over seeds)"
    if is_latex and table.published:
        title += "; gray needs the package xcolor"
    notes = []
    for number, note in enumerate(table.notes, start=1):
        # LaTeX reads brackets after a line break as a length, so its marks are superscripts here too.
        mark = format_marks([number], style).strip() if number in table.marked else ""
        notes.append(f"{mark} {style.escape(note)}".strip())
    legend = map(style.escape, table_legend(table))
    line_end = "\\\\\n" if is_latex else "\n"
    grid = _format_grid(accuracy_cells(table, style), table_format)
    parts = [title, grid, line_end.join(notes), line_end.join(legend)]
    if len(table.differences):
        parts += [style.escape(difference_note(table)), _format_grid(difference_cells(table, style), table_format)]
    return "\n\n".join(filter(None, parts))


def _format_grid(grid: pd.DataFrame, table_format: str) -> str:
    if table_format == "latex":
        return grid.to_latex(index=False, escape=False).rstrip()
    return tabulate(grid.to_numpy().tolist(), list(grid.columns), tablefmt=table_format, disable_numparse=True)


def accuracy_cells(table: Table, style: Style) -> pd.DataFrame:
    """Texts with markup: accuracies by column, rank, seeds and costs of each method; then the rows from papers."""
    more = method_texts(table)
    rows = []
    for i, method in enumerate(table.methods.index):
        texts = [style.escape(method)]
        for cell in table.cells.loc[method].itertuples():
            text = style.escape(format_mean(cell.mean, cell.std))
            texts.append((style.best.format(text) if cell.best else text) + format_marks(cell.marks, style))
        rows.append(texts + [style.escape(column[i]) for column in more.values()])
    for one in table.published or ():
        values = [one.accuracy.get(column) for column in (*table.columns, AVERAGE)]
        texts = [f"{one.method} †", *("-" if value is None else f"{value:.1f}" for value in values), *["-"] * len(more)]
        rows.append([style.published.format(style.escape(text)) for text in texts])
    header = ["method", *table.columns, table.average, *more]
    return pd.DataFrame(rows, columns=list(map(style.escape, header)), dtype=object)


def method_texts(table: Table) -> dict[str, list[str]]:
    """The columns after the accuracies as texts, without unknown ones."""
    methods, found = table.methods, {}
    if table.ranked_over:
        found["rank"] = ["-" if math.isnan(rank) else f"{rank:.1f}" for rank in methods["rank"]]
    found["seeds"] = list(map(str, methods["seeds"]))
    if methods["n_trained"].astype(bool).any():
        sums = [[" + ".join(f"{n:,}" for n in stages) or "0" for stages in runs] for runs in methods["n_trained"]]
        found["params"] = [" or ".join(texts) or "-" for texts in sums]
    if methods["train_seconds"].notna().any():
        times = zip(methods["train_seconds"], methods["train_reused"], strict=True)
        found["train time"] = ["-" if math.isnan(s) else "≥ " * bool(reused) + duration(s) for s, reused in times]
    return found


def difference_cells(table: Table, style: Style) -> pd.DataFrame:
    """The differences to the baseline, as texts with markup."""
    rows = []
    for method, found in table.differences.iterrows():
        interval = found["reason"] or f"{signed(found['low'])} to {signed(found['high'])}"
        counts = map(str, (found["pairs"], found["clusters"], found["seeds"]))
        texts = [style.escape(text) for text in (str(method), signed(found["mean"]), interval, *counts)]
        texts[1] += format_marks(found["marks"], style)
        rows.append(texts)
    header = ["method", "difference", "95 % interval", "pairs", f"{table.cluster}s", "seeds"]
    return pd.DataFrame(rows, columns=list(map(style.escape, header)), dtype=object)


def csv_lines(table: Table) -> pd.DataFrame:
    """One line for each cell, difference, rank, cost, published number and note; "mean" is the value in each."""
    differences = table.differences.rename_axis("method").assign(column=f"difference to {table.baseline}")
    lines = [line for part in (table.cells, differences) for line in part.reset_index().to_dict("records")]
    for line in lines:
        notes = [line.get("reason"), *(table.notes[mark - 1] for mark in line["marks"])]
        line["notes"] = " ".join(filter(None, notes))
    more: list[tuple] = []
    for method, about in table.methods.iterrows():
        reused = ", ".join(about["train_reused"])
        more.append((method, "rank", about["rank"], rank_note(table)))
        more.append((method, "training (s)", about["train_seconds"], f"excludes {reused}" if reused else ""))
        more += [(method, "params", sum(stages), " + ".join(map(str, stages))) for stages in about["n_trained"]]
    more = [line for line in more if not math.isnan(line[2])]
    for one in table.published or ():
        names = {AVERAGE: table.average}
        more += [(one.method, names.get(column, column), n, one.note, one.source) for column, n in one.accuracy.items()]
    more += [("", "", math.nan, note) for n, note in enumerate(table.notes, start=1) if n not in table.marked]
    more += [("", "", math.nan, note) for note in published_notes(table) if not table.published]
    lines += [dict(zip(("method", "column", "mean", "notes", "published"), line, strict=False)) for line in more]
    types = {"seeds": "Int64", "best": "Int64"} | dict.fromkeys(["mean", "std", "low", "high"], float)
    return pd.DataFrame(lines).assign(table=table.title).reindex(columns=CSV_COLUMNS).astype(types)


def table_legend(table: Table) -> list[str]:
    """Explanations of the columns after the accuracies, and of published rows: one line each."""
    texts = method_texts(table)
    lines = [rank_note(table)]
    if "params" in texts:
        has_stages = any(" + " in text for text in texts["params"])
        lines.append(f"params: trainable parameters{' (stage I + stage II)' * has_stages}.")
    if "train time" in texts:
        lines.append(
            "train time: training and validation, also of shared prompt labels; mean over runs, depends on the machine."
        )
    reused = sorted({name for names in table.methods["train_reused"] for name in names})
    if reused:
        lines.append(f"≥: excludes {' and '.join(reused)} that the runs took from a cache.")
    return [*filter(None, lines), *published_notes(table)]


def rank_note(table: Table) -> str:
    if len(table.methods) < 2:
        return ""
    if not table.ranked_over:
        return "No ranks: no column has comparable runs of every method."
    columns = "the columns" if table.ranked_over == table.columns else ", ".join(table.ranked_over)
    without = " Methods without comparable runs have no rank." if table.methods["rank"].isna().any() else ""
    return f"rank: mean place over {columns}, by the seeds that all methods have; equal means share a place.{without}"


def published_notes(table: Table) -> list[str]:
    """The sources of published rows, or a line if there are none; nothing if they were not requested."""
    if not table.published:
        return [] if table.published is None else [f"No published numbers for {table.title} in configs/published/."]
    lines = []
    for one in table.published:
        absent = [column for column in one.accuracy if column not in (*table.columns, AVERAGE)]
        without = f" No column here for: {', '.join(absent)}." if absent else ""
        lines.append(f"† {one.method}, as reported in {one.source}{f' ({one.note})' if one.note else ''}.{without}")
    lines.append("† Not measured here and not in ranks, bold numbers and differences. The average is of the paper.")
    return list(dict.fromkeys(lines))


def difference_note(table: Table) -> str:
    return (
        f"Difference to {table.baseline} in points over pairs of the same column and seed, and its 95 % confidence "
        f"interval: Student's t over the means of the {table.cluster}s."
    )


def format_marks(marks: Iterable[int], style: Style) -> str:
    """The marks after a number, as " [1,2]"."""
    text = ",".join(map(str, marks))
    return style.marks.format(text) if text else ""


def format_mean(mean: float, std: float) -> str:
    """ "92.8 ± 0.3", "92.8" without a standard deviation, "-" without a mean (NaN)."""
    if math.isnan(mean):
        return "-"
    return f"{mean:.1f}" if math.isnan(std) else f"{mean:.1f} ± {std:.1f}"


def signed(number: float) -> str:
    """+1.2 or −0.3; "-" for NaN."""
    return "-" if math.isnan(number) else f"{round(number, 1) + 0.0:+.1f}".replace("-", "−")  # 0.0: no −0.0


def duration(seconds: float) -> str:
    """ "4.2 s", "41 s", "12 min", "3.5 h"."""
    for unit, length in (("s", 1), ("min", 60)):
        if seconds < 99.5 * length:
            return f"{seconds / length:.{0 if seconds >= 9.95 * length else 1}f} {unit}"
    return f"{seconds / 3600:.1f} h"
