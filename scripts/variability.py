"""How much the results of SPG depend on the noise that its prompts are generated from.

    python scripts/variability.py output/pacs/SPG/RN50/pacs/sketch/seed1
    python scripts/variability.py output/pacs/SPG/RN50/pacs --draws 32

Of each run below the folders: accuracy over several draws of the noise for every test image, how often two draws agree
on a prediction, and accuracy when the logits of the first n draws are averaged (TEST.N_PROMPTS n). Written to
variability.json in the run's folder, where scripts/report.py finds it, and drawn in variability.png and variability.svg
beside it. Runs of other methods are passed over.
"""

import argparse
import contextlib
import io
import statistics
import sys
import warnings
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from tabulate import tabulate  # noqa: E402

from common.dassl_path import use_dassl  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.failures import script  # noqa: E402
from common.progress import progress  # noqa: E402
from common.run.records import write_record  # noqa: E402
from common.run.results import RESULTS_FILE, read_results  # noqa: E402

VARIABILITY_FILE = "variability.json"
LEGEND = (
    "accuracy: mean ± std over single draws of the noise, in %; agreement: how often two draws predict the same, in %; "
    "n averaged: accuracy when the logits of n draws are averaged (TEST.N_PROMPTS n)."
)


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of finished SPG runs, or above them")
    parser.add_argument("--draws", type=int, default=16, help="prompts for each image (default: 16)")
    parser.add_argument("--root", default="", help="where the data sets are now, if not where they were")
    parser.add_argument("--backbone", default="", help="where CLIP's weights are now, if not where they were")
    return parser.parse_args(argv)


def find_runs(folders, methods):
    """The folders of all finished runs of some methods below some folders.

    Raises:
        UserError: a folder is missing or holds none.
    """
    found = []
    for folder in map(Path, folders):
        runs = {path.parent: read_results(path).get("trainer") for path in sorted(folder.rglob(RESULTS_FILE))}
        if not runs:
            what = "holds no finished run" if folder.is_dir() else "is not there"
            raise UserError(f"{folder} {what}.")
        wanted = [run for run, trainer in runs.items() if trainer in methods]
        if not wanted:
            others = ", ".join(sorted(set(map(str, runs.values()))))
            raise UserError(
                f"{folder} holds runs of {others} alone, whose prompts do not depend on noise. Name runs of "
                f"{' or '.join(methods)}."
            )
        found += [run for run in wanted if run not in found]
    return found


def measure(trainer, draws):
    """What `draws` draws of the noise make of a trainer's test images.

    Returns:
        {"draws": k, "by_domain": {domain: mean, std, min, max of the accuracies and agreement of predictions, in %},
        "averaged": {n: {domain: accuracy in % of n averaged prompts}}}.
    """
    import torch

    loader, dataset = trainer.test_loader, trainer.dm.dataset
    features = trainer.image_features.of_split(loader, "test")
    labels = torch.tensor([item.label for item in dataset.test])
    domains = torch.tensor([item.domain for item in dataset.test])
    counts = [n for n in (2**i for i in range(draws.bit_length())) if n <= draws]
    predicted = torch.empty(draws, len(labels), dtype=torch.long)
    averaged = {n: torch.empty(len(labels), dtype=torch.long) for n in counts}
    starts = range(0, len(labels), loader.batch_size)
    for start in progress(starts, description="Drawing prompts", unit="batch"):
        rows = slice(start, min(start + loader.batch_size, len(labels)))
        batch = torch.from_numpy(features[rows].copy()).to(trainer.device)
        total = 0
        for draw in range(draws):
            with torch.no_grad():
                logits = trainer.predict_draw(batch, range(rows.start, rows.stop), draw).cpu()
            total = total + logits
            predicted[draw, rows] = logits.argmax(dim=1)
            if draw + 1 in averaged:
                averaged[draw + 1][rows] = total.argmax(dim=1)
    by_domain = {}
    for name, own in ((name, domains == i) for i, name in enumerate(dataset.domains) if name in dataset.target_domains):
        accuracies = [accuracy(predicted[draw, own], labels[own]) for draw in range(draws)]
        by_domain[name] = {
            "mean": statistics.mean(accuracies),
            "std": statistics.stdev(accuracies),
            "min": min(accuracies),
            "max": max(accuracies),
            "agreement": agreement(predicted[:, own], len(dataset.classnames)),
        }
    return {
        "draws": draws,
        "by_domain": by_domain,
        "averaged": {
            str(n): {
                name: accuracy(found[domains == i], labels[domains == i])
                for i, name in enumerate(dataset.domains)
                if name in by_domain
            }
            for n, found in averaged.items()
        },
    }


def accuracy(predicted, labels):
    """Share of right predictions in %."""
    return 100.0 * (predicted == labels).double().mean().item()


def agreement(predicted, n_classes):
    """How often two different draws predict the same, in %, of predictions (draws, images)."""
    import torch

    draws = len(predicted)
    votes = torch.stack([(predicted == label).sum(dim=0) for label in range(n_classes)])
    return 100.0 * ((votes * (votes - 1)).sum(dim=0) / (draws * (draws - 1))).double().mean().item()


def table(found):
    """What was measured, by run and domain, as text."""
    rows, counts = [], []
    for run, record in found.items():
        counts = list(record["averaged"])
        for domain, row in record["by_domain"].items():
            spread = f"{row['mean']:.1f} ± {row['std']:.1f}", f"{row['min']:.1f} to {row['max']:.1f}"
            averages = [f"{record['averaged'][n][domain]:.1f}" for n in counts]
            rows.append([run, domain, *spread, f"{row['agreement']:.1f}", *averages])
    headers = ["run", "target", "accuracy", "range", "agreement", *(f"{n} averaged" for n in counts)]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True) + f"\n\n{LEGEND}"


@script
def main(argv=None):
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    use_dassl()
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    print(table(run(args)))


def run(args):
    """Measure all runs and write their files; returns what was found, by run."""
    if args.draws < 2:
        raise UserError(f"--draws is {args.draws}; it takes at least 2 to compare.")
    from scripts.report_pictures import save_picture, variability_picture
    from trainers.saved_run import build_run
    from trainers.spg import SPG
    from trainers.spg_cgan import SPG_CGAN

    found = {}
    for folder in find_runs(args.folders, [SPG.__name__, SPG_CGAN.__name__]):
        with contextlib.redirect_stdout(io.StringIO()):  # what trainers say while they are built
            opts = ["DATASET.ROOT", args.root] if args.root else []
            trainer = build_run(folder, backbone=args.backbone or None, opts=opts, with_data=True)
        trainer.threads.use(workers=0)
        record = found[str(folder)] = measure(trainer, args.draws)
        write_record(folder / VARIABILITY_FILE, record)
        lines = [
            (domain, row, {int(n): averages[domain] for n, averages in record["averaged"].items()})
            for domain, row in record["by_domain"].items()
        ]
        save_picture(variability_picture(lines), folder, Path(VARIABILITY_FILE).stem)
    return found


if __name__ == "__main__":
    sys.exit(main())
