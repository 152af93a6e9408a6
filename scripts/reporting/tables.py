"""Tables of results: cells, averages, ranks, differences to a baseline, and marks of cells that do not compare.

Rows are methods, columns are tested domains or data sets, cells are means over seeds. A cell has a mark if it lacks
seeds, or if one of its runs differs in a key that runs must share (see `common.run.Result`). The reference is
the value of the baseline, else of most runs, else of the first run.
"""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from common.errors import UserError
from common.run import BASE_TO_NEW, SHARED
from scripts.reporting.published import PaperResult
from trainers.methods import method_of, trainer_name

AVERAGE, HARMONIC_MEAN = "average", "harmonic mean"  # the last column; base-to-new has the harmonic mean
DIFFERENCE_COLUMNS = ["mean", "low", "high", "pairs", "clusters", "seeds", "reason", "marks"]


@dataclass
class Table:
    title: str
    runs: pd.DataFrame  # rows of `load.make_frame`, and "reasons": see `find_reasons`
    columns: list[str]
    average: str  # name of the last column
    cells: pd.DataFrame  # by (method, column): mean, std, seeds (their number), marks (numbers of notes, from 1), best
    methods: pd.DataFrame  # by method: see `describe_methods`, and rank
    ranked_over: list[str]  # columns
    notes: list[str]
    baseline: str
    differences: pd.DataFrame  # by method: see `paired_difference`, and marks
    published: list[PaperResult] | None  # rows from papers; None: not requested

    @property
    def cluster(self) -> str:
        """The name of a cluster in `paired_difference`."""
        return {"single-source": "source", "cross-dataset": "set"}.get(self.runs["protocol"].iloc[0], "target")

    @property
    def marked(self) -> set[int]:
        """Numbers of the notes that a mark in the table names; other notes are about the whole table."""
        return set().union(*self.cells["marks"], *self.differences["marks"])


def make_tables(
    results: pd.DataFrame, baseline: str = "", duplicates: str = "", published: Sequence[PaperResult] | None = None
) -> list[Table]:
    """Make the tables of results, sorted by title; the arguments are the options of results.py."""
    groups = [(runs, find_baseline(runs, baseline)) for _, runs in results.groupby("title")]
    if baseline and not any(name for _, name in groups):
        found = ", ".join(sorted(results["method"].unique()))
        raise UserError(f"--baseline {baseline}: no run is of this method. Name one of {found}.")
    tables = [make_table(runs, name, duplicates, published) for runs, name in groups]
    for table in tables:
        if baseline and not table.baseline:
            table.notes.append(f"No differences here: the baseline {baseline} has no run in this table.")
    return tables


def find_baseline(runs: pd.DataFrame, baseline: str) -> str:
    """The row of a table that --baseline names, by itself or by its trainer; "" if the table has no such row."""
    if baseline in set(runs["method"]):
        return baseline
    found = sorted(runs.loc[runs["trainer"].str.lower() == trainer_name(baseline).lower(), "method"].unique())
    if len(found) > 1:
        raise UserError(f"--baseline {baseline}: several methods have this name. Name one of {', '.join(found)}.")
    return found[0] if found else ""


def make_table(runs: pd.DataFrame, baseline: str, duplicates: str, published: Sequence[PaperResult] | None) -> Table:
    runs, notes = drop_duplicates(runs, duplicates)
    runs = runs.assign(reasons=find_reasons(runs, baseline))
    columns, methods = sorted(runs["column"].unique()), list(runs["method"].unique())
    average = HARMONIC_MEAN if runs["protocol"].iloc[0] == BASE_TO_NEW else AVERAGE
    marks = find_marks(runs, columns, notes)
    marks |= {(method, average): sorted({m for c in columns for m in marks[method, c]}) for method in methods}
    cells = make_cells(pd.concat([runs, average_columns(runs, average)]))
    cells = cells.reindex(pd.MultiIndex.from_product([methods, [*columns, average]], names=["method", "column"]))
    cells = cells.assign(seeds=cells["seeds"].fillna(0).astype(int), marks=pd.Series(marks))
    cells["best"] = find_best(cells)
    ranks = rank_methods(runs)
    notes += notes_on_table(runs)
    differences = {m: paired_difference(runs, m, baseline) for m in methods if baseline not in ("", m)}
    for method, found in differences.items():
        of_both = runs.loc[runs["method"].isin([method, baseline]), "reasons"]
        found["marks"] = sorted({notes.index(reason) + 1 for of_run in of_both for reason in of_run.values()})
    return Table(
        title=runs["title"].iloc[0],
        runs=runs,
        columns=columns,
        average=average,
        cells=cells,
        methods=describe_methods(runs).assign(rank=ranks.mean()),
        ranked_over=list(ranks.index),
        notes=notes,
        baseline=baseline,
        differences=pd.DataFrame(differences.values(), list(differences), DIFFERENCE_COLUMNS),
        published=None if published is None else [one for one in published if one.fits(runs.iloc[0])],
    )


def drop_duplicates(runs: pd.DataFrame, duplicates: str) -> tuple[pd.DataFrame, list[str]]:
    """Keep the newest run of each cell and seed; others give notes, or UserError unless `duplicates` is "newest"."""
    key, notes = ["method", "column", "seed"], []
    newest_first = runs.sort_values("written", ascending=False, kind="stable")
    newest = newest_first.drop_duplicates(key)
    others = newest_first[newest_first.duplicated(key)].merge(newest, on=key, suffixes=("", "_newest"))
    for other in others.to_dict("records"):
        where = "{method}, {column}, seed {seed}".format_map(other)
        if duplicates != "newest":
            differing = [name for name in SHARED if other[name] != other[f"{name}_newest"]]
            how = f"they differ in {', '.join(differing)}" if differing else "with the same settings and data"
            raise UserError(
                f"Two runs of one cell and seed ({where}): {other['folder']} and {other['folder_newest']} ({how}). "
                "Delete one of them, name other folders, or add --duplicates newest."
            )
        notes.append(f"{where}: the table shows the newest run, {other['folder_newest']}, and not {other['folder']}.")
    return newest.sort_index(), notes


def make_cells(runs: pd.DataFrame) -> pd.DataFrame:
    """By (method, column): mean and sample standard deviation over seeds (NaN for one), and the number of seeds."""
    return runs.groupby(["method", "column"])["value"].agg(mean=statistics.mean, std="std", seeds="size")


def average_columns(runs: pd.DataFrame, average: str) -> pd.DataFrame:
    """The average over columns by method and seed, for seeds that have all columns."""
    wide = runs.pivot(index=["method", "seed"], columns="column", values="value").dropna()
    if average == HARMONIC_MEAN and wide.shape[1] < 2:
        wide = wide[:0]
    mean = statistics.harmonic_mean if average == HARMONIC_MEAN else statistics.mean
    rows = [(method, average, seed, mean(values)) for (method, seed), *values in wide.itertuples(name=None)]
    return pd.DataFrame(rows, columns=["method", "column", "seed", "value"]).astype({"value": float})


def find_best(cells: pd.DataFrame) -> pd.Series:
    """Whether a cell is the best of its column, as it is printed: to one decimal, and without marked cells."""
    means = cells.loc[cells["marks"].str.len() == 0, "mean"].dropna().map(lambda mean: round(mean, 1))
    columns = means.groupby("column")
    best = (means == columns.transform("max")) & (columns.transform("size") > 1)
    return best.reindex(cells.index, fill_value=False)


def rank_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """Ranks by column and method: places of the printed means over the seeds that all methods have.

    Only comparable runs count. A method without any has no rank; a column without common seeds is left out.
    """
    comparable = runs[runs["reasons"].str.len() == 0]
    wide = comparable.pivot(index=["column", "seed"], columns="method", values="value").dropna()
    if wide.shape[1] < 2:
        wide = wide[:0]
    means = wide.groupby(level="column").agg(statistics.mean).map(lambda mean: round(mean, 1))
    return means.rank(axis=1, ascending=False)


def describe_methods(runs: pd.DataFrame) -> pd.DataFrame:
    """By method: number of seeds, trained parameters, mean training time, reused results of earlier runs."""
    runs = runs.drop_duplicates("folder").astype({"train_seconds": float})
    return runs.groupby("method", sort=False).agg(
        seeds=("seed", "nunique"),
        n_trained=("n_trained", lambda found: list(dict.fromkeys(map(tuple, found.dropna())))),
        train_seconds=("train_seconds", "mean"),
        train_reused=("train_reused", lambda found: sorted(set().union(*found))),
    )


def paired_difference(runs: pd.DataFrame, method: str, baseline: str) -> dict[str, Any]:
    """A method minus the baseline in points, over pairs of one column and seed, and its 95 % confidence interval.

    The interval is Student's t over the means of clusters: targets, or sources of single-source runs. Pairs of one
    target share its difficulty and are not independent, so k targets are k observations, for any number of seeds.
    """
    ours, theirs = (runs.loc[runs["method"] == name, ["column", "seed", "value"]] for name in (method, baseline))
    pairs = ours.merge(theirs, on=["column", "seed"])
    clusters = (pairs["value_x"] - pairs["value_y"]).groupby(pairs["column"].map(lambda name: name.partition(" → ")[0]))
    means = clusters.agg(statistics.mean).tolist()
    n, n_seeds = len(means), pairs["seed"].nunique()
    found = {"pairs": len(pairs), "clusters": n, "seeds": n_seeds, "reason": "", "low": math.nan, "high": math.nan}
    found["mean"] = mean = statistics.mean(means) if means else math.nan
    if not means:
        found["reason"] = "no pairs"
    elif n < 2 or n_seeds < 2:
        few = ["one target"] * (n < 2) + ["one seed"] * (n_seeds < 2)
        found["reason"] = f"no interval from {' and '.join(few)}"
    else:
        from scipy.special import stdtrit  # scipy.stats has the same function and takes a second to import

        half = float(stdtrit(n - 1, 0.975)) * statistics.stdev(means) / math.sqrt(n)
        found |= {"low": mean - half, "high": mean + half}
    return found


def find_marks(runs: pd.DataFrame, columns: list[str], notes: list[str]) -> dict[tuple[str, str], list[int]]:
    """The marks by (method, column): numbers of notes. New notes are added to `notes`."""
    seeds, marks = sorted(runs["seed"].unique()), {}
    cells = dict(list(runs.groupby(["method", "column"])))
    for method in runs["method"].unique():
        for column in columns:
            cell = cells.get((method, column), runs[:0]).sort_values("seed")
            reasons = [reason for of_run in cell["reasons"] for reason in of_run.values()]
            if missing := [str(seed) for seed in seeds if seed not in set(cell["seed"])]:
                reasons.append(f"Incomplete: no run of seed {', '.join(missing)}.")
            notes += [reason for reason in dict.fromkeys(reasons) if reason not in notes]
            marks[method, column] = sorted({notes.index(reason) + 1 for reason in reasons})
    return marks


def find_reasons(runs: pd.DataFrame, baseline: str) -> pd.Series:
    """The reasons why a run does not compare: for each run a dict from key of `Result` to text."""
    reasons = pd.Series([{} for _ in runs.index], runs.index, dtype=object)
    scopes = {"table": ["title"], "row": ["method"], "column": ["column"], "split": ["column", "split_seed"]}
    runs = runs.assign(split_seed=runs["seed"].where(runs["split_by_seed"].astype(bool), -1))
    # A method that learns nothing has no selection, shots and split, and some methods select no epoch.
    learning = runs[runs["selection"].notna()]
    selecting = [not last_model(*run) for run in zip(learning["trainer"], learning["selection"], strict=True)]
    having = {"selection": learning.loc[selecting], "num_shots": learning, "data_fingerprint": learning}
    for key, (what, scope) in SHARED.items():
        for _, group in having.get(key, runs).groupby(scopes[scope], sort=False):
            of_baseline = group[group["method"] == baseline] if scope != "row" else group[:0]
            votes = Counter((of_baseline if len(of_baseline) else group)[key]).most_common(2)
            than = f"most runs of this {'row' if scope == 'row' else 'table'}"
            if len(of_baseline):
                than = f"the baseline {baseline}"
            elif len(votes) > 1 and votes[0][1] == votes[1][1]:
                than = than.replace("most runs", "the first run")
            for index, value in group[key].items():
                if value != votes[0][0]:
                    values = f" ({value}, not {votes[0][0]})" if scope == "table" and "sha256" not in key else ""
                    reasons[index][key] = f"Not comparable: {what}{values} than {than}."
    add_changed_domains(runs, reasons)
    return reasons


def add_changed_domains(runs: pd.DataFrame, reasons: pd.Series) -> None:
    """Add a reason where a domain has other images than in most runs, as a source or as a target."""
    images = pd.DataFrame(runs["domain_fingerprints"].tolist(), runs.index, dtype=object)
    most = {domain: Counter(images[domain].dropna()).most_common(1)[0][0] for domain in images}
    for index, of_run in runs["domain_fingerprints"].items():
        changed = [domain for domain, value in of_run.items() if value != most[domain]]
        if changed and not reasons[index].keys() & {"data_fingerprint", "test_fingerprint"}:
            text = f"Not comparable: other images of {', '.join(changed)} than other runs of this table."
            reasons[index]["domain_fingerprints"] = text


def last_model(trainer: str, selection: str | None) -> str:
    """The kind of a tested last model that combines several epochs; "" for other models."""
    method = method_of(trainer)
    return method.last_model if method and selection == "last_step" else ""


def notes_on_table(runs: pd.DataFrame) -> list[str]:
    """The notes that belong to no cell: absent columns, and methods that select no epoch where others do."""
    notes, protocol = [], runs["protocol"].iloc[0]
    domains = set().union(*runs["source_domains"], *runs["target_domains"])
    pairs = {f"{source} → {target}" for source in domains for target in domains - {source}}
    expected = {"multi-source": domains, "single-source": pairs}.get(protocol, set())
    present = set().union(*runs["target_domains"]) if protocol == "multi-source" else set(runs["column"])
    if absent := sorted(expected - present):
        notes.append(f"The average is over the columns shown. There are no runs of {', '.join(absent)}.")
    if "best_val" in set(runs["selection"]):
        for method, trainer, selection in zip(runs["method"], runs["trainer"], runs["selection"], strict=True):
            if text := last_model(trainer, selection):
                notes.append(f"{method}: the model is {text}. Validation does not select it.")
    return list(dict.fromkeys(notes))
