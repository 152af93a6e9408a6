"""Repeat a run from its own record (config.yaml, run.json, results.json) and compare all numbers.

    python scripts/rerun.py output/pacs/SPG/RN50/pacs/sketch/seed1

The repetition goes to --output, or to a temporary folder that stays only if the numbers differ. It also learns the
prompt labels again, unless TRAINER.SPG.LABEL_SEED names other ones. Exit code 0: every number agrees.
"""

import _repository

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common.errors import UserError, command
from common.run.record import RunRecord, is_finished, read_run_record
from common.run.results import CIRCUMSTANCES, RESULTS_FILE, TIMES, read_results
from common.startup import REPOSITORY


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--output", default="", help="folder of the repetition, which then stays")
    return parser.parse_args(argv)


def rerun_command(run: Path, output: Path) -> list[str]:
    """The train.py command that repeats a run.

    Raises:
        UserError: the folder lacks the results or the config of a run.
    """
    from trainers.saved_run import read_config

    results, settings = read_results(run / RESULTS_FILE), read_config(run).TRAINER
    words = ["--config-file", str(run / "config.yaml"), "--output-dir", str(output)]
    if results["model_dir"]:
        words += ["--eval-only", "--model-dir", results["model_dir"]]
        words += [] if results["load_epoch"] is None else ["--load-epoch", str(results["load_epoch"])]
    words += ["TRAINER.CONFIG", results["config"], "RESUME", ""]
    if settings.NAME in ("SPG", "DPSPG") and settings[settings.NAME].LABEL_SEED < 0:
        words += [f"TRAINER.{settings.NAME}.LABEL_DIR", str(output / "prompt_labels")]
    # config.yaml has the numbers that follow from the backbone, run.json those of the command, which the hash covers.
    record = read_run_record(run)
    for key, value in record.identity.items() if record else ():
        words += [key, str(value)] if key.rpartition(".")[2].startswith(("N_CTX", "PROMPT_DEPTH")) else []
    return [sys.executable, str(REPOSITORY / "train.py"), *words]


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """The entries of nested dicts and lists by name, such as "val_history[1]" and "versions.torch"."""
    if isinstance(value, dict):
        parts = {f"{name}.{key}".removeprefix("."): entry for key, entry in value.items()}
    elif isinstance(value, list):
        parts = {f"{name}[{i}]": entry for i, entry in enumerate(value)}
    else:
        return {name: value}
    return {key: entry for part, inner in parts.items() for key, entry in flatten(inner, part).items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, bool]:
    """A text about two results, and whether all numbers agree."""
    from tabulate import tabulate

    old, new = flatten(before), flatten(after)
    rows = [(key, old.get(key), new.get(key)) for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    circumstances = [row for row in rows if row[0].split(".")[0].split("[")[0] in CIRCUMSTANCES]
    numbers = [row for row in rows if row not in circumstances]
    if not numbers:
        return f"Agrees in every number: accuracy {after['accuracy']:.2f} %.", True
    causes = [row for row in circumstances if not row[0].startswith(TIMES)]
    text = "Does not agree:\n\n" + tabulate(numbers[:20], ("", "then", "now"), tablefmt="github")
    text += f"\n\nand {len(numbers) - 20} more" if len(numbers) > 20 else ""
    if causes:
        text += "\n\nPossible causes:\n\n" + tabulate(causes, ("", "then", "now"), tablefmt="github")
    return text, False


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if the repetition agrees, 1 if not or with one message."""
    args = parse_args(argv)
    run, output = Path(args.run), Path(args.output or tempfile.mkdtemp(prefix="spg-rerun-"))
    words, before = rerun_command(run, output), read_results(run / RESULTS_FILE)
    if is_finished(output):
        raise UserError(f"{output} holds a finished run. Delete it, or name another --output.")
    threads = {"alone": before["threads_alone"], "beside_workers": before["threads_beside_workers"]}
    RunRecord({}, threads=threads).write(output)
    print(f"Repeating {run}; log in {output}/log.txt", flush=True)
    code = subprocess.run(words, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        print(f"Error: the repetition failed with exit code {code}. See {output}/log.txt.", file=sys.stderr)
        return code
    text, agrees = compare(before, read_results(output / RESULTS_FILE))
    print(text)
    if agrees and not args.output:
        shutil.rmtree(output)
    return int(not agrees)


if __name__ == "__main__":
    sys.exit(main())
