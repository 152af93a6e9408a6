"""Measure how much the results of SPG depend on the noise of its prompts.

    python scripts/variability.py output/pacs/SPG/RN50/pacs/sketch/seed1
    python scripts/variability.py output/pacs/SPG/RN50/pacs --draws 32

For each SPG run below the folders: accuracy over several draws of the noise for each test image, how often two draws
agree on a prediction, and accuracy if the logits of the first n draws are averaged (TEST.N_PROMPTS n). The
command writes variability.json into the folder of the run, and scripts/report.py shows it. Other methods are skipped.
"""

import _repository

import argparse
import contextlib
import io
import sys
import warnings
from pathlib import Path

from common.errors import UserError, command
from common.files import write_json

LEGEND = (
    "accuracy: mean ± std over single draws of the noise, in %; agreement: how often two draws predict the same, in %; "
    "n averaged: accuracy if the logits of n draws are averaged (TEST.N_PROMPTS n)."
)


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", help="folders of finished SPG runs, or above them")
    parser.add_argument("--draws", type=int, default=16, help="prompts for each image (default: 16)")
    parser.add_argument("--root", default="", help="where the data sets are now, if they moved")
    parser.add_argument("--backbone", default="", help="where the weights of CLIP are now, if they moved")
    args = parser.parse_args(argv)
    if args.draws < 2:
        raise UserError(f"--draws {args.draws}: a comparison needs several draws. Set it to 2 or more.")
    from tabulate import tabulate

    from scripts.reporting.load import load_results
    from scripts.reporting.variability import VARIABILITY_FILE, measure_variability, variability_rows

    results = load_results(args.folders)
    runs = results.loc[results["trainer"].isin(["SPG", "SPG_CGAN"]), "folder"].unique()
    if not len(runs):
        others = ", ".join(sorted(results["trainer"].unique()))
        raise UserError(f"{' '.join(args.folders)}: only runs of {others}, which have no noise. Name runs of SPG.")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", category=UserWarning)
    from trainers.saved_run import build_run

    rows: list[dict[str, str]] = []
    for folder in runs:
        with contextlib.redirect_stdout(io.StringIO()):  # trainers print while they are built
            opts = ["DATASET.ROOT", args.root] if args.root else []
            trainer = build_run(folder, backbone=args.backbone or None, opts=opts, with_data=True)
        found = measure_variability(trainer, args.draws)
        write_json(Path(folder) / VARIABILITY_FILE, found)
        rows += [{"run": folder, **row} for row in variability_rows(found)]
    print(tabulate(rows, headers="keys", tablefmt="github", disable_numparse=True), LEGEND, sep="\n\n")


if __name__ == "__main__":
    sys.exit(main())
