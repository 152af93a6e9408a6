"""Benchmark of the launcher: a comparison on MiniDigits by fresh processes, by one warm process, and by two."""

import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.run.results import CIRCUMSTANCES, RESULTS_FILE, read_results
from common.startup import REPOSITORY
from scripts.benchmarks.timing import Row

SPEED_GOAL = 1.5  # of one warm process against fresh ones, and of two processes against one


@dataclass(frozen=True)
class Amounts:
    """The comparison: short names of methods, and domains of MiniDigits or "" for all."""

    methods: str
    targets: str


FULL = Amounts("zsclip,zsclip2,linear_probe,coop,cocoop,spg", "")
QUICK = Amounts("zsclip,coop", "sketch,printed")


def launching_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield the rows of this part: a comparison by fresh processes, by one warm process, and by two."""
    amounts = QUICK if quick else FULL
    folder.mkdir()
    command = [sys.executable, str(REPOSITORY / "scripts" / "launch.py"), "--data", str(folder / "data")]
    command += ["--seeds", "1", "--methods", amounts.methods, "--targets", amounts.targets]
    # MiniDigits is drawn and split, and files are read from disk once.
    first = ["--methods", "zsclip,coop", "--output", str(folder / "first"), "mini_digits", "OPTIM.MAX_EPOCH", "1"]
    run_all([[*command, *first]])
    printed = [*command, "--output", str(folder / "fresh"), "--print", "mini_digits"]
    lines = subprocess.run(printed, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout.splitlines()
    seconds = {"fresh": run_all([shlex.split(line) for line in lines])}
    for jobs in ("1", "2"):
        seconds[jobs] = run_all([[*command, "--output", str(folder / jobs), "--jobs", jobs, "mini_digits"]])
    found = {name: outcomes(folder / name) for name in seconds}
    n = len(found["fresh"])
    for what, ours, reference in (
        ("one warm process, against a fresh one for each", "1", "fresh"),
        ("two at once, against one after another", "2", "1"),
    ):
        difference = 0.0 if n and found[ours] == found[reference] else float("inf")
        note = f"methods {amounts.methods}; outputs are all numbers in results.json, which are equal or not"
        title = f"{n} runs on MiniDigits, {what}"
        yield Row(title, seconds[ours], seconds[reference], "s", SPEED_GOAL, difference, note)


def run_all(commands: list[list[str]]) -> float:
    """Run commands one after another; s for all of them."""
    start = time.perf_counter()
    for command in commands:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - start


def outcomes(output: Path) -> dict[str, dict[str, Any]]:
    """What the results in an output folder say, without circumstances, by the run's folder in there."""
    found = {}
    for path in output.rglob(RESULTS_FILE):
        results = read_results(path).items()
        found[path.parent.relative_to(output).as_posix()] = {k: v for k, v in results if k not in CIRCUMSTANCES}
    return found
