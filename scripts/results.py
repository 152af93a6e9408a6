"""Tables of finished runs, read from their results.json.

python scripts/results.py output            all runs below a folder, one table for each data set and backbone
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tabulate import tabulate  # noqa: E402

from common.errors import UserError  # noqa: E402
from common.results import RESULTS_FILE, read_results  # noqa: E402


def find_results(folders):
    """The results of all finished runs below some folders.

    Raises:
        UserError: a folder is missing, or a results file is damaged.
    """
    found = []
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}.")
        found += map(read_results, sorted(folder.rglob(RESULTS_FILE)))
    return found


def results_tables(results, table_format="github"):
    """One table for each data set, backbone and protocol; rows are methods, columns targets and their average.

    Cells are the mean of the seeds' accuracies in percent, and their sample standard deviation where there are
    several. The average is taken over the targets first, seed by seed, over seeds that have all targets.
    """
    groups = defaultdict(list)
    for result in results:
        groups[result["dataset"], result["backbone"], result["protocol"]].append(result)
    return "\n\n".join(
        f"{dataset}, {backbone}, {protocol}: accuracy in % (mean ± std over seeds)\n\n"
        + results_table(group, table_format)
        for (dataset, backbone, protocol), group in sorted(groups.items())
    )


def results_table(results, table_format="github"):
    """The table of results that share data set, backbone and protocol."""
    targets = sorted({target_name(result) for result in results})
    methods = defaultdict(lambda: defaultdict(dict))
    for result in results:
        method = (
            result["trainer"] if result["config"] in ("", "default") else f"{result['trainer']} ({result['config']})"
        )
        methods[method][target_name(result)][result["seed"]] = result["accuracy"]
    rows = []
    for method, by_target in methods.items():
        complete = set.intersection(*(set(by_target[target]) for target in targets))
        averages = [statistics.mean(by_target[target][seed] for target in targets) for seed in complete]
        seeds = {seed for target in by_target.values() for seed in target}
        cells = [mean_and_std(by_target[target].values()) for target in targets]
        rows.append([method, *cells, mean_and_std(averages), len(seeds)])
    return tabulate(rows, ["method", *targets, "average", "seeds"], tablefmt=table_format, disable_numparse=True)


def target_name(result):
    """The column of a result."""
    return "+".join(result["target_domains"])


def mean_and_std(values):
    """ "92.8 ± 0.3", "92.8" for a single value, "-" for none."""
    values = list(values)
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def main(argv=None):
    """Exit code 0, or 1 with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders with finished runs")
    parser.add_argument("--format", default="github", choices=["github", "latex", "csv", "plain"])
    args = parser.parse_args(argv)
    try:
        results = find_results(args.folders)
        if not results:
            raise UserError(f"No finished run (no {RESULTS_FILE}) below {', '.join(args.folders)}.")
        print(results_tables(results, "tsv" if args.format == "csv" else args.format))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
