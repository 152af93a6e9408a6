"""How much the results of SPG depend on the noise that its prompts are generated from.

    python scripts/variability.py output/pacs/SPG/RN50/pacs/sketch/seed1
    python scripts/variability.py output/pacs/SPG/RN50/pacs --draws 32

Of each run below the folders: accuracy over several draws of the noise for every test image, how often two draws agree
on a prediction, and accuracy when the logits of the first n draws are averaged (TEST.N_PROMPTS n). Written to
variability.json in the run's folder, where scripts/report.py finds it, and drawn in variability.png and variability.svg
beside it. Runs of other methods are passed over.
"""

import _repository

import argparse
import contextlib
import io
import sys
import warnings
from pathlib import Path

from common.errors import UserError, command
from scripts.reporting.variability import VARIABILITY_FILE, Variability, find_runs, measure, table, write_variability


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of finished SPG runs, or above them")
    parser.add_argument("--draws", type=int, default=16, help="prompts for each image (default: 16)")
    parser.add_argument("--root", default="", help="where the data sets are now, if not where they were")
    parser.add_argument("--backbone", default="", help="where CLIP's weights are now, if not where they were")
    return parser.parse_args(argv)


@command
def main(argv: list[str] | None = None) -> None:
    """Exit code 0, or 1 with one message."""
    args = parse_args(argv)
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    print(table(run(args)))


def run(args: argparse.Namespace) -> dict[str, Variability]:
    """Measure all runs and write their files; returns what was found, by run."""
    if args.draws < 2:
        raise UserError(f"--draws is {args.draws}; it takes at least 2 to compare.")
    from scripts.reporting.pictures import save_picture, variability_picture
    from trainers.saved_run import build_run
    from trainers.spg import SPG, SPG_CGAN

    found = {}
    for folder in find_runs(args.folders, [SPG.__name__, SPG_CGAN.__name__]):
        with contextlib.redirect_stdout(io.StringIO()):  # what trainers say while they are built
            opts = ["DATASET.ROOT", args.root] if args.root else []
            trainer = build_run(folder, backbone=args.backbone or None, opts=opts, with_data=True)
        record = found[str(folder)] = measure(trainer, args.draws)
        write_variability(folder, record)
        lines = [(domain, spread, record.averages(domain)) for domain, spread in record.by_domain.items()]
        save_picture(variability_picture(lines), folder, Path(VARIABILITY_FILE).stem)
    return found


if __name__ == "__main__":
    sys.exit(main())
