"""Repeat a run from its own record (config.yaml, results.json) and say whether the numbers agree.

    python scripts/rerun.py output/pacs/SPG/RN50/pacs/sketch/seed1

The repetition goes to a temporary folder, which is kept only if it does not agree, or to --output. Prompt labels are
learned again, too, unless the run took those of a seed of its own choice (TRAINER.SPG.LABEL_SEED). Exit code 0 if
every number agrees.
"""

import _repository

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tabulate import tabulate

from common.errors import UserError, command
from common.run.record import RunRecord, is_finished, read_run_record
from common.run.results import CIRCUMSTANCES, RESULTS_FILE, TIMES, read_results
from common.startup import REPOSITORY


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--output", default="", help="folder of the repetition, which is kept then")
    return parser.parse_args(argv)


def rerun_command(run: Path, output: Path) -> list[str]:
    """The train.py command line that repeats a run.

    Raises:
        UserError: the folder holds no finished run, or not the config that it ran with.
    """
    import yaml

    results = read_results(run / RESULTS_FILE)
    config_file = run / "config.yaml"
    try:
        config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
        settings = config["TRAINER"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise UserError(f"{run} has no usable config.yaml ({error}); only whole runs can be repeated.") from error
    command = [sys.executable, str(REPOSITORY / "train.py"), "--config-file", str(config_file)]
    command += ["--output-dir", str(output)]
    if results.get("model_dir"):
        command += ["--eval-only", "--model-dir", results["model_dir"]]
        command += [] if results.get("load_epoch") is None else ["--load-epoch", str(results["load_epoch"])]
    opts = ["TRAINER.CONFIG", results["config"], "RESUME", ""]
    name = settings.get("NAME")
    if name in ("SPG", "DPSPG") and settings.get(name, {}).get("LABEL_SEED", -1) < 0:
        opts += [f"TRAINER.{name}.LABEL_DIR", str(output / "prompt_labels")]
    # config.yaml has the depth of prompts that the backbone allows. The settings' hash has the one that was asked for.
    record = read_run_record(run)
    for key, value in record.identity.items() if record else ():
        opts += [key, str(value)] if key.rpartition(".")[2].startswith(("N_CTX", "PROMPT_DEPTH")) else []
    return [*command, *opts]


def differences(
    before: dict[str, Any], after: dict[str, Any], keys: Iterable[str] | None = None
) -> list[tuple[str, Any, Any]]:
    """(name, before, after) of everything that differs between two results; lists and dicts entry by entry."""
    found = []
    for key in keys or sorted({*before, *after}):
        for name, old, new in _entries(key, before.get(key), after.get(key)):
            if old != new:
                found.append((name, old, new))
    return found


def _entries(name: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            yield from _entries(f"{name}.{key}", old.get(key), new.get(key))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, (one, other) in enumerate(zip(old, new, strict=True)):
            yield from _entries(f"{name}[{i}]", one, other)
    else:
        yield name, old, new


def verdict(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, bool]:
    """What to say of a repetition, and whether it agrees."""
    # Of an older version, the record has nothing to say of what came later.
    numbers = [key for key in sorted(before) if key not in CIRCUMSTANCES]
    differing = differences(before, after, numbers)
    circumstances = differences(before, after, [key for key in CIRCUMSTANCES if key not in TIMES])
    if not differing:
        return f"Agrees in every number: accuracy {after['accuracy']:.2f} % ({len(numbers)} entries compared).", True
    lines = ["Does not agree:", tabulate(differing[:20], ("", "then", "now"), tablefmt="github")]
    if len(differing) > 20:
        lines.append(f"and {len(differing) - 20} more")
    if circumstances:
        lines += ["Which may be due to:", tabulate(circumstances, ("", "then", "now"), tablefmt="github")]
    return "\n\n".join(lines), False


@command
def main(argv: list[str] | None = None) -> int:
    """Exit code 0 if the repetition agrees, 1 if not or with one message."""
    args = parse_args(argv)
    run = Path(args.run)
    output = Path(args.output or tempfile.mkdtemp(prefix="spg-rerun-"))
    command = rerun_command(run, output)
    if is_finished(output):
        raise UserError(f"{output} holds a finished run; delete it or name another --output.")
    results = read_results(run / RESULTS_FILE)
    threads = {"alone": results["threads_alone"], "beside_workers": results["threads_beside_workers"]}
    RunRecord({}, threads=threads).write(output)
    print(f"Repeating {run}; log in {output}/log.txt", flush=True)
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        print(f"Error: the repetition failed with exit code {code}.", file=sys.stderr)
        return code
    text, agrees = verdict(read_results(run / RESULTS_FILE), read_results(output / RESULTS_FILE))
    print(text)
    if agrees and not args.output:
        shutil.rmtree(output)
    return int(not agrees)


if __name__ == "__main__":
    sys.exit(main())
