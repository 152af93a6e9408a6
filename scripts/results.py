"""Tables of finished runs, read from their results.json.

    python scripts/results.py output                        all runs below a folder, a table for each data set,
                                                            backbone and protocol
    python scripts/results.py output --baseline CoOp        and every method's difference to one of them
    python scripts/results.py output --format latex --out table.tex

What cells are marked for, and how intervals are made, is told under the tables.
"""

import argparse
import csv
import io
import statistics
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tabulate import tabulate  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.failures import script  # noqa: E402
from common.files import atomic_write  # noqa: E402
from common.run.results import RESULTS_FILE, read_results  # noqa: E402
from scripts.report_tables import AVERAGE, columns_of, make_tables, method_name  # noqa: E402

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


def find_results(folders):
    """The results of all finished runs below some folders, each with its "folder" and when it was "written".

    Raises:
        UserError: a folder is missing, or a results file is damaged.
    """
    found = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        for path in sorted(folder.rglob(RESULTS_FILE)):
            if path.resolve() not in found:
                result = check_entries(path, read_results(path))
                found[path.resolve()] = {**result, "folder": str(path.parent), "written": path.stat().st_mtime}
    return list(found.values())


def check_entries(path, result):
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
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UserError(
            f"{path} lacks what a results file has: {what}. Delete it and run its command again."
        ) from error
    return result


def read_folders(folders):
    """The results below folders, of which each has some.

    Raises:
        UserError: a folder is missing or has none, or a results file is damaged.
    """
    for folder in folders:
        if Path(folder).is_dir() and next(Path(folder).rglob(RESULTS_FILE), None) is None:
            raise UserError(
                f"No finished run (no {RESULTS_FILE}) below {folder}. A run writes it when it has been tested; start "
                "unfinished ones again by the same command."
            )
    return find_results(folders)


def results_tables(results, table_format="github", baseline="", duplicates=""):
    """Tables of results as text: one for each data set, backbone and protocol; see scripts/report_tables.py.

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


def table_text(table, table_format):
    """A table with its title and notes, in "github", "latex" or "plain"."""
    escape = {"latex": escape_latex, "github": escape_github}.get(table_format, str)
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


def _tabulated(header, rows, table_format):
    # The texts are LaTeX already.
    name = "latex_raw" if table_format == "latex" else table_format
    text = tabulate(rows, header, tablefmt=name, disable_numparse=True)
    if table_format == "latex":  # tabulate has booktabs' rules only for texts that it escapes itself
        for rule in ("\\toprule", "\\midrule", "\\bottomrule"):
            text = text.replace("\\hline", rule, 1)
    return text


def table_rows(table, table_format, escape=str):
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
    return [escape(name) for name in ("method", *table.columns, AVERAGE, "seeds")], rows


def marks_text(marks, table_format):
    """The marks of a cell as they follow its number."""
    style = {"latex": "\\textsuperscript{{{}}}", "html": "<sup>{}</sup>"}.get(table_format, " [{}]")
    return style.format(",".join(map(str, marks))) if marks else ""


def note_text(table, i, table_format, escape=str):
    """Note i of a table as a line under it, with its mark as in the table, if it is marked there."""
    # No bracket in LaTeX: after a line break it would be the length of a gap.
    mark = marks_text([i + 1], table_format).strip() if i + 1 in table.marked else ""
    return f"{mark} {escape(table.notes[i])}".strip()


def cluster_word(table):
    """What the differences of a table are averaged over first; see report_tables.cluster_of."""
    return {"single-source": "source", "cross-dataset": "set"}.get(table.runs[0]["protocol"], "target")


def difference_note(table):
    """What the table of differences says, and how its intervals are made."""
    return DIFFERENCE_NOTE.format(baseline=table.baseline, cluster=cluster_word(table))


def difference_rows(table, table_format, escape=str):
    """Header and rows of the differences to the baseline: texts, escaped."""
    rows = []
    for method, found in table.differences.items():
        interval = found.reason or f"{signed(found.low)} to {signed(found.high)}"
        mean = "-" if found.mean is None else signed(found.mean)
        texts = [method, mean, interval, *map(str, (found.n_pairs, found.n_clusters, found.n_seeds))]
        row = [escape(text) for text in texts]
        row[1] += marks_text(found.marks, table_format)
        rows.append(row)
    header = ["method", "difference", "95 % interval", "pairs", f"{cluster_word(table)}s", "seeds"]
    return [escape(name) for name in header], rows


def signed(number):
    """+1.2 or −0.3, to one decimal."""
    return f"{number:+.1f}".replace("-", "−")


def tables_csv(tables):
    """All tables as one CSV: a line for each cell, and one for each difference."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["table", "method", "column", "mean", "std", "seeds", "best", "low", "high", "notes"])
    for table in tables:
        for method, cells in table.rows.items():
            for column, cell in cells.items():
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


def escape_latex(text):
    """Text as LaTeX sets it letter by letter."""
    return "".join(LATEX.get(char, char) for char in text)


def escape_github(text):
    """Text as a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|").replace("*", "\\*")


def mean_and_std(values):
    """ "92.8 ± 0.3", "92.8" for a single value, "-" for none."""
    values = list(values)
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def add_arguments(parser):
    """The arguments that scripts/report.py takes, too."""
    parser.add_argument("folders", nargs="+", help="folders with finished runs")
    parser.add_argument(
        "--baseline", default="", metavar="METHOD", help="method to compare all others with, pair by pair"
    )
    parser.add_argument(
        "--duplicates", default="", choices=["newest"], help="of several runs of one cell and seed take the newest"
    )


@script
def main(argv=None):
    """Exit code 0, or 1 with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--format", default="github", choices=FORMATS, help="latex needs the package booktabs")
    parser.add_argument("--out", default="", help="file to write to instead of printing")
    args = parser.parse_args(argv)
    text = results_tables(read_folders(args.folders), args.format, args.baseline, args.duplicates)
    if args.out:
        write_text(args.out, text + "\n")
    else:
        print(text)


def write_text(path, text):
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


if __name__ == "__main__":
    sys.exit(main())
