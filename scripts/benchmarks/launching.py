"""Parts of the benchmark: what many runs cost beside what they compute.

Whole launches of a comparison on MiniDigits: each run in a fresh process, all in one warm process, two at once. Tasks
that do nothing, by each engine, and the launcher's own files for one. The memory of a process that does run after run.
"""

import contextlib
import importlib.util
import io
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.dassl_path import REPOSITORY
from common.files import atomic_write
from common.progress import progress
from common.run.results import CIRCUMSTANCES, RESULTS_FILE, read_results
from scripts.benchmarks.quick_run import arguments, make_images
from scripts.benchmarks.timing import Row
from scripts.launching.conduct import Conduct
from scripts.launching.demand import Demand
from scripts.launching.engines import make_engine
from scripts.launching.launch import Launch
from scripts.launching.local import LocalEngine
from scripts.launching.plan import Ended, Engine, Task, carry_out
from scripts.launching.request import Request

SPEED_GOAL = 1.6  # of one warm process to fresh ones, and of two at once to one
TASK_GOALS = {"local": 10.0, "ray": 50.0}  # ms
FILES_GOAL = 10.0  # ms
FLUSHES = 100  # that are measured
MEMORY_GOAL = 1.1  # of the memory after few runs
CYCLE = ("ZeroshotCLIP", "CoOp", "SPG")  # runs whose memory is looked at


@dataclass(frozen=True)
class Amounts:
    """How much is measured.

    Attributes:
        methods: short names, of a comparison.
        targets: domains of MiniDigits; "": all.
        tasks: number of tasks that do nothing.
        cycles: how many times a process does the runs of CYCLE.
    """

    methods: str
    targets: str
    tasks: int
    cycles: int


FULL = Amounts("zsclip,zsclip2,linear_probe,coop,cocoop,spg", "", 1500, 8)
QUICK = Amounts("zsclip,coop", "sketch,printed", 200, 3)


def launching_rows(quick: bool, folder: Path) -> Iterator[Row]:
    """Yield the rows of this part; what is made goes to a folder."""
    amounts = QUICK if quick else FULL
    folder.mkdir()
    yield from comparison_rows(amounts, folder)
    make_images(folder / "images")
    for name in TASK_GOALS:
        if name != "ray" or importlib.util.find_spec("ray"):
            yield task_row(name, amounts.tasks, folder)
    yield files_row(amounts.tasks, folder)
    yield from memory_rows(amounts.cycles, folder)


# ---- a comparison ----


def comparison_rows(amounts: Amounts, folder: Path) -> Iterator[Row]:
    """Yield what a comparison takes in one warm process and in two, with all that its runs share made anew."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "launch.py"), "--data", str(folder / "data")]
    command += ["--seeds", "1", "--methods", amounts.methods, "--targets", amounts.targets]
    # MiniDigits is drawn and split, and files are read from disk once.
    first = ["--methods", "zsclip,coop", "--output", str(folder / "first"), "mini_digits", "OPTIM.MAX_EPOCH", "1"]
    run_all([[*command, *first]])
    printed = [*command, "--output", str(folder / "fresh"), "--print", "mini_digits"]
    lines = subprocess.run(printed, stdout=subprocess.PIPE, encoding="utf-8", check=True).stdout.splitlines()
    runs = [shlex.split(line) for line in lines if "--encode" not in line and "--learn-labels" not in line]
    seconds = {"fresh": run_all([run for run in runs if run and run[0] != "#"])}
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


# ---- tasks that do nothing ----


def task_row(name: str, n_tasks: int, folder: Path) -> Row:
    """What engine and plan take for a task that only says what its options are."""
    engine = make_engine(name, Demand(jobs="1", output=folder), lambda line: print(line, file=sys.stderr))
    try:
        # After a run, so that all that a process keeps is there.
        do_all(engine, [quick_run("ZeroshotCLIP", folder / "images", folder / f"first_{name}")])
        tasks = [task(("--help",), folder / str(i)) for i in range(n_tasks)]
        start = time.perf_counter()
        do_all(engine, tasks)
        seconds = time.perf_counter() - start
    finally:
        engine.close()
    note = f"{n_tasks:,} tasks, train.py --help, by one process that has done a run"
    return Row(
        f"a task that does nothing, {name} engine", 1000 * seconds / n_tasks, None, "ms", TASK_GOALS[name], note=note
    )


def files_row(n_tasks: int, folder: Path) -> Row:
    """What a launcher's own files take for a task: whether its folder is for that run, what that is, who does it."""
    clip = str(REPOSITORY / "assets" / "mini_clip.pt")
    request = Request(["CoOp"], dataset=str(folder / "images"), backbone=clip, output=folder / "files", seeds="1")
    launch = Launch(request, "CoOp")
    runs = [replace(launch.runs[0], folder=launch.base / str(i)) for i in range(n_tasks)]
    tasks = {launch.task(run, str(i), 0): (launch, run) for i, run in enumerate(runs)}
    start = time.perf_counter()
    for i in range(FLUSHES):
        with atomic_write(folder / "files" / f"flush{i}", "w") as handle:
            handle.write("{}")
    flush = (time.perf_counter() - start) / FLUSHES
    with progress(total=n_tasks, description="tasks", unit="run") as bar, contextlib.redirect_stdout(io.StringIO()):
        conduct = Conduct(tasks, {}, lambda trainer, error: print(error, file=sys.stderr), [], bar)
        start = time.perf_counter()
        carry_out(tasks, Nothing(), conduct.begin, conduct.end)
        seconds = (time.perf_counter() - start) / n_tasks
    note = f"{n_tasks:,} tasks that end as they begin; {1000 * flush:.1f} ms flush one file to the disk"
    return Row("the launcher's own files for a task", 1000 * seconds, None, "ms", FILES_GOAL, note=note)


class Nothing:
    """An engine whose tasks end as they begin."""

    slots, several, on_gpu, workers_each = 1, False, None, 0

    def submit(self, task: Task) -> None:
        self.task = task

    def next_end(self) -> Ended:
        return Ended(self.task, 0)

    def interrupt(self, number: int) -> None:
        pass

    def rest(self) -> None:
        pass

    def close(self) -> None:
        pass


def task(words: tuple[str, ...], folder: Path) -> Task:
    """A task of train.py that is told of by its folder's name."""
    return Task(folder.name, words, folder)


def quick_run(trainer: str, images: Path, folder: Path) -> Task:
    """A run of seconds."""
    clip = REPOSITORY / "assets" / "mini_clip.pt"
    return task(tuple(arguments(trainer, "red", images, clip, folder)), folder)


def do_all(engine: Engine, tasks: list[Task]) -> None:
    """Do tasks; RuntimeError where one fails."""
    failed: list[Path] = []
    carry_out(tasks, engine, lambda one: True, lambda one, _: failed.extend([one.task.folder] * bool(one.code)))
    if failed:
        raise RuntimeError(f"a run of the benchmark failed: {failed[0]}")


# ---- memory ----


def memory_rows(cycles: int, folder: Path) -> Iterator[Row]:
    """Yield how the peak memory of a process grows that does a few runs again and again; nothing without /proc."""
    if not Path("/proc/self/status").is_file():
        return
    engine, peaks = LocalEngine(1, lambda line: print(line, file=sys.stderr)), []
    try:
        for cycle in range(cycles):
            place = folder / f"cycle{cycle}"
            tasks = [quick_run(trainer, folder / "images", place / trainer) for trainer in CYCLE]
            do_all(engine, tasks)
            peaks.append(peak_kb(engine.workers[0].process.pid))
    finally:
        engine.close()
    n, note = len(CYCLE), f"{peaks[0] / 1e6:.2f} GB, then {peaks[-1] / 1e6:.2f} GB; runs of {', '.join(CYCLE)} in turns"
    title = f"peak memory of a warm process after {cycles * n} runs to that after {n}"
    yield Row(title, peaks[-1] / peaks[0], None, "times", MEMORY_GOAL, note=note)


def peak_kb(pid: int) -> int:
    """The most memory that a process has had so far, in kB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
