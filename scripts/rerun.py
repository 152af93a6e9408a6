"""Repeat a run from its own record (config.yaml, run.json, results.json) and compare all numbers.

    python scripts/rerun.py output/pacs/SPG/RN50/pacs/sketch/seed1

The command deletes the temporary folder if the numbers agree. The repetition also learns the prompt labels again,
unless TRAINER.SPG.LABEL_SEED names other labels. Exit code 0: every number agrees.
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
from common.run import CIRCUMSTANCES, RESULTS_FILE, TIMES, RunRecord, is_finished, read_results, read_run_record
from common.startup import REPOSITORY


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
    # config.yaml has numbers that depend on the backbone; run.json has the command's, and the hash covers them.
    record = read_run_record(run)
    for key, value in record.identity.items() if record else ():
        words += [key, str(value)] if key.rpartition(".")[2].startswith(("N_CTX", "PROMPT_DEPTH")) else []
    return [sys.executable, str(REPOSITORY / "train.py"), *words]


def flatten(value: Any, name: str) -> dict[str, Any]:
    """The entries of nested dicts and lists by name, such as "val_history.1" and "versions.torch"."""
    entries = dict(enumerate(value)) if isinstance(value, list) else value
    if not isinstance(entries, dict):
        return {name: value}
    return {key: entry for k, v in entries.items() for key, entry in flatten(v, f"{name}.{k}").items()}


def compare(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, bool]:
    """A text about two results, and whether all numbers agree."""
    from tabulate import tabulate

    numbers: list[tuple] = []
    causes: list[tuple] = []
    for field in sorted({*before, *after} - set(TIMES)):
        old, new = flatten(before.get(field), field), flatten(after.get(field), field)
        rows = [(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]
        (causes if field in CIRCUMSTANCES else numbers).extend(rows)
    if not numbers:
        return f"Agrees in every number: accuracy {after['accuracy']:.2f} %.", True
    text = "Does not agree:\n\n" + tabulate(numbers[:20], ("", "then", "now"), tablefmt="github")
    text += f"\n\nand {len(numbers) - 20} more" if len(numbers) > 20 else ""
    if causes:
        text += "\n\nPossible causes:\n\n" + tabulate(causes, ("", "then", "now"), tablefmt="github")
    return text, False


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if the repetition agrees, 1 if not or with one message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--output", help="folder of the repetition (default: a temporary folder)")
    args = parser.parse_args(argv)
    run, output = Path(args.run), Path(args.output or tempfile.mkdtemp(prefix="spg-rerun-"))
    words, before = rerun_command(run, output), read_results(run / RESULTS_FILE)
    if is_finished(output):
        raise UserError(f"{output} holds a finished run. Delete it, or name another --output.")
    RunRecord({}, threads=before["threads"]).write(output)
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
