"""The plan and the states of the runs in an output folder, from the files there and SLURM's queue."""

import getpass
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import read_json, write_json
from common.locks import RUN_LOCK, creation_lock, run_owner
from common.run.record import RECORD_FILE, is_finished, read_run_record
from scripts.launching.local import FAILED_FILE

if TYPE_CHECKING:
    from scripts.launching.jobs import Job

PLAN_FILE = "plan.json"  # in OUTPUT: "tested" and "slurm", the id of the SLURM job, by the folder of each planned run
DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"


class State(NamedTuple):
    """The state of a run: its folder, DONE, RUNNING, WAITING or FAILED, and details or ""."""

    folder: Path
    what: str
    detail: str = ""


def read_plan(output: Path) -> dict[Path, dict[str, Any]]:
    """The planned runs of an output folder by their folders; {} if there is no readable plan."""
    try:
        return {output / name: planned for name, planned in read_json(output / PLAN_FILE)["runs"].items()}
    except (OSError, ValueError, KeyError):
        return {}


def save_plan(output: Path, jobs: Iterable["Job"], slurm: Mapping["Job", str] | None = None) -> None:
    """Add jobs to the plan of an output folder; `slurm`: ids of their SLURM jobs."""
    output = output.absolute()
    with creation_lock(output / PLAN_FILE, "writes the plan"):
        runs = known = read_plan(output)
        for job in jobs:
            before = known.get(job.folder, {}).get("slurm", "")
            runs = {**runs, job.folder: {"tested": job.tested, "slurm": (slurm or {}).get(job, before)}}
        if runs != known:
            named = {folder.relative_to(output).as_posix(): planned for folder, planned in runs.items()}
            write_json(output / PLAN_FILE, {"runs": named})


def queued_jobs() -> dict[str, str]:
    """States of this user's jobs in SLURM's queue by their ids: {"12_3": "PENDING (Priority)"}."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%r"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 2]
    return {found.strip(): state if reason == "None" else f"{state} ({reason})" for found, state, reason in rows}


def find_states(folder: Path) -> list[State]:
    """States of all runs below a folder (absolute), planned or started."""
    runs = {lock.parent: {"tested": not is_finished(lock.parent, tested=False)} for lock in folder.rglob(RUN_LOCK)}
    for output in [*folder.parents, *(path.parent for path in folder.rglob(PLAN_FILE))]:
        runs |= {run: planned for run, planned in read_plan(output).items() if run.is_relative_to(folder)}
    queue = queued_jobs() if any(planned.get("slurm") for planned in runs.values()) else {}
    return [_state_of(run, planned, queue) for run, planned in sorted(runs.items())]


def _state_of(run: Path, planned: Mapping[str, Any], queue: Mapping[str, str]) -> State:
    in_queue = queue.get(planned.get("slurm", ""), "")
    slurm = f"SLURM job {planned['slurm']} {in_queue}" if in_queue else ""
    process, progress = run_owner(run) or "", _progress_of(run)
    details = ", ".join(filter(None, [progress, process, slurm]))
    if not process and is_finished(run, planned["tested"]):
        return State(run, DONE)
    if process or in_queue:
        return State(run, RUNNING if process or in_queue.startswith("RUNNING") else WAITING, details)
    try:
        failure = read_json(run / FAILED_FILE)
        reason = " ".join(failure["reason"].split()) or f"its log ends: {_last_line(run)}"
        return State(run, FAILED, f"exit code {failure['exit_code']}: {reason}")
    except (OSError, ValueError, KeyError):
        return State(run, WAITING, details)


def _progress_of(run: Path) -> str:
    """The number of completed epochs: "3 epochs", in stage I "stage I of art, 3 epochs"; "" before the first."""
    found = [path for path in (run / RECORD_FILE, *run.glob(f"stage1/*/{RECORD_FILE}")) if path.is_file()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=run / RECORD_FILE)
    record, stage = read_run_record(newest.parent), "" if newest.parent == run else f"stage I of {newest.parent.name}, "
    return f"{stage}{len(record.history)} epochs" if record and record.history else ""


def _last_line(run: Path) -> str:
    logs = sorted(run.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").split("\n") if logs else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "(no log)")
