"""Results of finished runs as tables: what is next to what, what is best, what does not compare, and differences.

Rows are methods, columns what was tested. A cell holds the accuracies of a method's seeds. It is marked where it does
not compare with the rest of its table:

- it lacks seeds that other cells have;
- its runs differ from the reference in what every method of a table has to share. The reference is the baseline where
  one is named and has the value, else what most runs of the table have (of equally many, the first method's):
  backbone weights, selection of the model, precision, test subset and shots over the whole table, class names and test
  images in each column, training images and their split in each column, or in each seed of a column where the split
  depends on the seed (few shots).

Methods that learn nothing select no model and see no shots, so they compare with all in these two; so does, in the
first, a method whose last model is no single epoch's.

A method's rank is the mean over columns of its place among the methods of the table that have any run that compares, by
the seeds of which each of these has one; a column without such seeds does not count.
"""

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from scipy import stats

from common.errors import UserError
from common.run.results import BASE_TO_NEW, SHARED
from scripts.reporting.costs import Cost, cost_of
from scripts.reporting.published import Figures
from trainers.methods import method_of

CONFIDENCE = 0.95
AVERAGE = "average"
HARMONIC_MEAN = "harmonic mean"  # takes its place over base and new classes
NOT_COMPARABLE = "Not comparable"
OF_LEARNING = ("selection", "num_shots", "data_fingerprint")

# The keys of common.run.results.Result, with "folder" and "written" (seconds) where they are known.
Results = dict[str, Any]
Runs = dict[tuple[str, str, int], Results]  # by method, column and seed


@dataclass
class Cell:
    """One cell: accuracies (%) by seed, the numbers of the notes that it is marked with, whether it is the best."""

    values: dict[int, float]
    marks: list[int] = field(default_factory=list)
    best: bool = False

    @property
    def mean(self) -> float | None:
        return statistics.mean(self.values.values()) if self.values else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for fewer than two."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else None


@dataclass
class Difference:
    """A method minus the baseline, in points of accuracy, over the pairs (column, seed) that both have.

    Attributes:
        mean: of the clusters' means; None without pairs.
        low, high: 95 % confidence interval; None where there are too few pairs for one.
        n_pairs, n_clusters, n_seeds: of what.
        reason: why there is no interval; "".
        marks: of the method's cells that do not compare.
    """

    mean: float | None
    low: float | None
    high: float | None
    n_pairs: int
    n_clusters: int
    n_seeds: int
    reason: str = ""
    marks: list[int] = field(default_factory=list)


@dataclass
class Table:
    """One table.

    Attributes:
        title: data set, backbone, protocol.
        columns: names of what was tested.
        rows: dict from a method to a dict from columns, and AVERAGE, to Cell.
        notes: explanations of marks; mark k is notes[k - 1].
        baseline: the method that others are compared with; "".
        differences: dict from every other method to its Difference; empty without a baseline.
        runs: the results that it is made of.
        costs: dict from a method to its Cost.
        ranks: dict from a method to its rank, without those of which no run compares; empty for a single method, or
            where none can be given.
        ranked_over: the columns that ranks are the mean over.
        published: figures of papers that were measured on the same; None: they were not asked for.
    """

    title: str
    columns: list[str]
    rows: dict[str, dict[str, Cell]]
    notes: list[str]
    baseline: str
    differences: dict[str, Difference]
    runs: list[Results]
    costs: dict[str, Cost]
    ranks: dict[str, float]
    ranked_over: list[str]
    published: list[Figures] | None = None

    @property
    def average_name(self) -> str:
        """What the cells of AVERAGE are, over the columns."""
        return HARMONIC_MEAN if self.runs[0]["protocol"] == BASE_TO_NEW else AVERAGE

    @property
    def marked(self) -> set[int]:
        """Numbers of the notes that something in the table is marked with; others are about all of it."""
        marks = [cell.marks for row in self.rows.values() for cell in row.values()]
        marks += [difference.marks for difference in self.differences.values()]
        return set().union(*marks)

    def seeds(self, method: str) -> int:
        """How many seeds a method has results of."""
        return len({seed for cell in self.rows[method].values() for seed in cell.values})


def method_name(result: Results) -> str:
    """The row of a result."""
    return result["trainer"] if result["config"] in ("", "default") else f"{result['trainer']} ({result['config']})"


def columns_of(result: Results) -> dict[str, float]:
    """The columns that a result goes to, with its accuracy (%) in each."""
    if result["protocol"] == "single-source":
        source = "+".join(result["source_domains"])
        accuracies = result["accuracy_by_domain"]
        return {f"{source} → {target}": accuracies[target] for target in result["target_domains"]}
    if result["protocol"] == BASE_TO_NEW:
        column = result["class_subset"]
    elif result["protocol"] == "cross-dataset":
        column = result["dataset"]
    else:
        column = "+".join(result["target_domains"])
    return {column: result["accuracy"]}


def absent_columns(results: list[Results]) -> list[str]:
    """The columns that the runs of a table would have if each domain had been a target as the others were."""
    protocol = results[0]["protocol"]
    domains = {domain for run in results for domain in (*run["source_domains"], *run["target_domains"])}
    if protocol == "multi-source":
        return sorted(domains - {domain for run in results for domain in run["target_domains"]})
    if protocol == "single-source":
        shown = {column for run in results for column in columns_of(run)}
        return sorted({f"{a} → {b}" for a in domains for b in domains if a != b} - shown)
    return []


def cluster_of(column: str) -> str:
    """What the runs of a column share beyond chance, so that they do not count as independent.

    Of single-source runs that is the source, whose one model is tested on several targets; else the column itself.
    """
    return column.partition(" → ")[0]


def make_tables(
    results: Iterable[Results],
    baseline: str = "",
    duplicates: str = "",
    published: Sequence[Figures] | None = None,
) -> list[Table]:
    """All tables of some results, in order of their titles.

    Args:
        results: of finished runs.
        baseline: method to compare the others with; its name as in the tables, or that of its trainer.
        duplicates: "newest" to take the newest of several runs of one cell and seed.
        published: figures of papers, of which each table gets those that fit; None: without.

    Raises:
        UserError: there are such runs, or no table has the baseline.
    """
    groups: dict[str, list[Results]] = defaultdict(list)
    for result in results:
        groups[_title(result)].append(result)
    names = {title: _baseline_name(group, baseline) for title, group in groups.items()}
    if baseline and not any(names.values()):
        found = ", ".join(sorted({method_name(result) for group in groups.values() for result in group}))
        raise UserError(f"There is no method {baseline!r} to be the baseline; found: {found}.")
    tables = [_make_table(title, groups[title], names[title], duplicates, baseline) for title in sorted(groups)]
    for table in tables:
        table.published = None if published is None else [one for one in published if one.fits(table.runs[0])]
    return tables


def _title(result: Results) -> str:
    data = result["dataset"]
    if result["protocol"] == "cross-dataset":
        data = f"trained on {result.get('trained_on') or 'nothing'}"
    if result["protocol"] == BASE_TO_NEW and not set(result["target_domains"]) <= set(result["source_domains"]):
        data += f" ({'+'.join(result['target_domains'])})"
    return f"{data}, {result['backbone']}, {result['protocol']}"


def _baseline_name(results: list[Results], baseline: str) -> str:
    methods = list(dict.fromkeys(map(method_name, results)))
    if not baseline:
        return ""
    if baseline in methods:
        return baseline
    trainers = {method_name(result) for result in results if result["trainer"].lower() == baseline.lower()}
    if len(trainers) > 1:
        raise UserError(f"{baseline!r} is not one method but {', '.join(sorted(trainers))}; name one of them.")
    return next(iter(trainers), "")


def _make_table(title: str, results: list[Results], baseline: str, duplicates: str, asked_baseline: str) -> Table:
    runs, notes = _without_duplicates(results, duplicates)
    columns = sorted({column for _, column, _ in runs})
    methods = list(dict.fromkeys(method for method, _, _ in runs))
    seeds = sorted({seed for _, _, seed in runs})
    reasons = _reasons(runs, baseline)

    rows: dict[str, dict[str, Cell]] = {}
    for method in methods:
        cells = {}
        for column in columns:
            found = {seed: runs[method, column, seed] for seed in seeds if (method, column, seed) in runs}
            cell = Cell({seed: columns_of(run)[column] for seed, run in found.items()})
            why = [reason for seed in found for reason in reasons[method, column, seed]]
            missing = [seed for seed in seeds if seed not in found]
            if missing:
                why.append(f"Incomplete: no run of seed {', '.join(map(str, missing))}.")
            cell.marks = _numbers(why, notes)
            cells[column] = cell
        complete = [seed for seed in seeds if all(seed in cell.values for cell in cells.values())]
        base_to_new = next(iter(runs.values()))["protocol"] == BASE_TO_NEW
        if base_to_new and len(columns) < 2:  # of one half of the classes there is no harmonic mean
            complete = []
        mean_of = statistics.harmonic_mean if base_to_new else statistics.mean
        average = {seed: mean_of([cell.values[seed] for cell in cells.values()]) for seed in complete}
        marks = sorted({mark for cell in cells.values() for mark in cell.marks})
        rows[method] = {**cells, AVERAGE: Cell(average, marks)}
    _mark_best(rows)
    absent = absent_columns([*runs.values()])
    if absent:
        notes.append(f"The average is over the columns shown; there are no runs of {', '.join(absent)}.")
    chosen = any(run.get("selection") == "best_val" for run in runs.values())
    made = {method: what for (method, _, _), run in runs.items() if (what := _last_model(run))} if chosen else {}
    notes += [
        f"{method}: the model is {what}, by the method itself; validation chooses none."
        for method, what in made.items()
    ]
    if asked_baseline and not baseline:
        notes.append(f"No differences here: the baseline {asked_baseline} has no run in this table.")
    differences = {m: paired_difference(rows[m], rows[baseline]) for m in methods if baseline not in ("", m)}
    for method, difference in differences.items():
        of_both = {*rows[method][AVERAGE].marks, *rows[baseline][AVERAGE].marks}
        difference.marks = sorted(mark for mark in of_both if notes[mark - 1].startswith(NOT_COMPARABLE))
    kept = list({id(run): run for run in runs.values()}.values())
    costs = {method: cost_of([run for run in kept if method_name(run) == method]) for method in methods}
    comparing = {key: columns_of(run)[key[1]] for key, run in runs.items() if not reasons[key]}
    return Table(title, columns, rows, notes, baseline, differences, kept, costs, *_ranks(comparing, methods, columns))


def _without_duplicates(results: list[Results], duplicates: str) -> tuple[Runs, list[str]]:
    """Dict from (method, column, seed) to its run, and a note for each run that gave way to a newer one."""
    runs: Runs = {}
    notes: list[str] = []
    for result in results:
        for column in columns_of(result):
            key = method_name(result), column, result["seed"]
            other = runs.get(key)
            if other is None:
                runs[key] = result
                continue
            differing = [name for name in SHARED if other.get(name) != result.get(name)]
            where = f"{key[0]}, {column}, seed {key[2]}"
            folders = other.get("folder", "?"), result.get("folder", "?")
            if duplicates != "newest":
                how = f"they differ in {', '.join(differing)}" if differing else "with the same settings and data"
                raise UserError(
                    f"Two runs of the same cell and seed ({where}): {folders[0]} and {folders[1]} ({how}). Name only "
                    "folders that belong together, delete one of the two, or take the newest of each with "
                    "--duplicates newest."
                )
            newer = result.get("written", 0) > other.get("written", 0)
            runs[key] = result if newer else other
            kept, dropped = folders[::-1] if newer else folders
            notes.append(f"Several runs of {where}: the newest is shown ({kept}), not {dropped}.")
    return runs, notes


def _reasons(runs: Runs, baseline: str) -> dict[tuple[str, str, int], list[str]]:
    """Dict from (method, column, seed) to the reasons why its run does not compare."""
    found: dict[tuple[str, str, int], list[str]] = {key: [] for key in runs}
    for name, (what, scope) in SHARED.items():

        def scope_of(key, scope=scope):
            split = key[1:] if runs[key].get("split_by_seed") else key[1:2]
            return {"split": split, "column": key[1:2], "row": key[:1], "table": ()}[scope]

        votes: dict[tuple, Counter] = defaultdict(Counter)
        baseline_votes: dict[tuple, Counter] = defaultdict(Counter)
        for key, run in runs.items():
            if _has(run, name):
                votes[scope_of(key)][_plain(run.get(name))] += 1
                if key[0] == baseline and scope != "row":
                    baseline_votes[scope_of(key)][_plain(run.get(name))] += 1
        for key, run in runs.items():
            if not _has(run, name):
                continue
            deciding = baseline_votes.get(scope_of(key)) or votes[scope_of(key)]
            reference = deciding.most_common(1)[0][0]
            if _plain(run.get(name)) != reference:
                whole = "row" if scope == "row" else "table"
                most = deciding.most_common(2)
                which = "most runs of" if len(most) < 2 or most[0][1] > most[1][1] else "the first run of"
                than = f"the baseline {baseline}" if scope_of(key) in baseline_votes else f"{which} this {whole}"
                values = "" if scope != "table" or "sha256" in name else f" ({run.get(name)}, not {reference})"
                found[key].append(f"{NOT_COMPARABLE}: {what}{values} than {than}.")
    _add_changed_domains(runs, found)
    return found


def _add_changed_domains(runs: Runs, found: dict[tuple[str, str, int], list[str]]) -> None:
    """Add a reason where a domain has other images than in other columns, as a source or as a target."""
    images: dict[str, Counter] = defaultdict(Counter)
    for run in runs.values():
        for domain, value in run.get("domain_fingerprints", {}).items():
            images[domain][value] += 1
    for key, run in runs.items():
        fingerprints = run.get("domain_fingerprints", {}).items()
        changed = [domain for domain, value in fingerprints if value != images[domain].most_common(1)[0][0]]
        if changed and not any("images" in reason for reason in found[key]):
            found[key].append(f"{NOT_COMPARABLE}: other images of {', '.join(changed)} than other runs of this table.")


def _has(run: Results, name: str) -> bool:
    """Whether a setting means anything in a run."""
    if name == "selection" and _last_model(run):
        return False
    return not (name in OF_LEARNING and run.get("selection") is None)


def _last_model(run: Results) -> str:
    """What a run's last model is, where its method makes one of several epochs and that was tested; else ""."""
    method = method_of(run["trainer"])
    return method.last_model if method and run.get("selection") == "last_step" else ""


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _numbers(reasons: list[str], notes: list[str]) -> list[int]:
    """The numbers of reasons among the notes, which are added where they are new."""
    for reason in reasons:
        if reason not in notes:
            notes.append(reason)
    return sorted({notes.index(reason) + 1 for reason in reasons})


def _mark_best(rows: dict[str, dict[str, Cell]]) -> None:
    """Of each column with several cells that are complete and compare, the best as it is printed: to one decimal."""
    for column in next(iter(rows.values())):
        means = {
            method: round(mean, 1)
            for method, cells in rows.items()
            if (mean := cells[column].mean) is not None and not cells[column].marks
        }
        for method, mean in means.items():
            rows[method][column].best = len(means) > 1 and mean == max(means.values())


def _ranks(
    accuracies: dict[tuple[str, str, int], float], methods: list[str], columns: list[str]
) -> tuple[dict[str, float], list[str]]:
    """Mean ranks of methods, and the columns that they are the mean over.

    Args:
        accuracies: by method, column and seed, of runs that compare.
    """
    ranked = [method for method in methods if any(one == method for one, _, _ in accuracies)]
    places: dict[str, list[float]] = {method: [] for method in ranked}
    over = []
    for column in columns if len(ranked) > 1 else ():
        of_method = [{seed for (m, c, seed) in accuracies if (m, c) == (method, column)} for method in ranked]
        seeds = set.intersection(*of_method)
        if not seeds:
            continue
        over.append(column)
        # As they are printed, so that those of equal figures share their rank.
        means = [round(statistics.mean(accuracies[method, column, seed] for seed in seeds), 1) for method in ranked]
        for method, place in zip(ranked, stats.rankdata([-mean for mean in means]), strict=True):
            places[method].append(float(place))
    return {method: statistics.mean(found) for method, found in places.items() if found}, over


def paired_difference(cells: dict[str, Cell], baseline: dict[str, Cell]) -> Difference:
    """A row minus the baseline's row as a Difference.

    The interval is Student's t over the means of clusters (targets; see `cluster_of`), since the pairs of a target
    have its difficulty in common and are no independent draws: k targets count as k observations, k - 1 degrees of
    freedom, whatever the number of seeds. It says how the mean would vary over other targets and seeds like these.
    """
    by_cluster: dict[str, list[float]] = defaultdict(list)
    seeds: set[int] = set()
    for column in cells:
        if column == AVERAGE:
            continue
        for seed in sorted(cells[column].values.keys() & baseline[column].values.keys()):
            by_cluster[cluster_of(column)].append(cells[column].values[seed] - baseline[column].values[seed])
            seeds.add(seed)
    n_pairs = sum(map(len, by_cluster.values()))
    counts = n_pairs, len(by_cluster), len(seeds)
    if not n_pairs:
        return Difference(None, None, None, *counts, "no pairs")
    means = [statistics.mean(values) for values in by_cluster.values()]
    mean = statistics.mean(means)
    if len(means) < 2 or len(seeds) < 2:
        which = " and ".join(w for w, n in (("one target", len(means)), ("one seed", len(seeds))) if n < 2)
        return Difference(mean, None, None, *counts, f"no interval from {which}")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(means) - 1)) * statistics.stdev(means) / math.sqrt(len(means))
    return Difference(mean, mean - half, mean + half, *counts)
