"""Launches on MiniDigits: a fresh process for each run, one warm process, and two."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.run import CIRCUMSTANCES, RESULTS_FILE, read_results
from common.startup import REPOSITORY
from scripts.benchmarks.timing import Row, timed

METHODS, QUICK_METHODS = "zsclip,zsclip2,linear_probe,coop,cocoop,spg", "zsclip,coop"


def launching_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield a row for one warm process and a row for two."""
    methods, targets = (QUICK_METHODS, "sketch,printed") if quick else (METHODS, "")
    command = [sys.executable, REPOSITORY / "scripts/launch.py", "--data", folder / "data", "--seeds", "1"]
    command += ["--methods", methods, "--targets", targets]

    def launch(output: str, *words: str) -> list[Any]:
        return [*command, "--output", folder / output, *words]

    # The first launch draws MiniDigits and reads files from the disk.
    run_all([launch("first", "--methods", "zsclip,coop", "mini_digits", "OPTIM.MAX_EPOCH", "1")])
    printed = subprocess.run(launch("fresh", "--print", "mini_digits"), stdout=subprocess.PIPE, text=True, check=True)
    seconds = {"fresh": run_all([shlex.split(line) for line in printed.stdout.splitlines()])}
    for jobs in ("1", "2"):
        seconds[jobs] = run_all([launch(jobs, "--jobs", jobs, "mini_digits")])
    found = {output: read_numbers(folder / output) for output in seconds}
    for change, ours, theirs in (
        ("one warm process against a fresh one for each", "1", "fresh"),
        ("JOBS=2 against JOBS=1", "2", "1"),
    ):
        gap = 0.0 if found["fresh"] and found[ours] == found[theirs] else float("inf")
        note = f"methods {methods}; the difference is 0 if all numbers in results.json are equal"
        name = f"{len(found['fresh'])} runs on MiniDigits, {change}"
        yield Row(name, seconds[ours], seconds[theirs], "s", 1.6, gap, note)


def run_all(commands: list[list[Any]]) -> float:
    """Run commands one after another and return the duration in s."""
    return timed(lambda: [subprocess.run(command, capture_output=True, check=True) for command in commands])[0]


def read_numbers(output: Path) -> dict[str, dict[str, Any]]:
    """The results of an output folder by run, without circumstances such as durations."""
    paths = output.rglob(RESULTS_FILE)
    found = {path.parent.relative_to(output).as_posix(): read_results(path) for path in paths}
    return {run: {k: v for k, v in results.items() if k not in CIRCUMSTANCES} for run, results in found.items()}
