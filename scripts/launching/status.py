"""The plan and the states of the runs in an output folder, from the files there and SLURM's queue."""

import getpass
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common.files import make_output_folder, read_json, write_json
from common.locks import RUN_LOCK, run_owner
from common.run import RECORD_FILE, is_finished, read_run_record

if TYPE_CHECKING:
    from scripts.launching.jobs import Job

PLAN_FILE = "planned.json"  # in the folder of each planned run: "tested" and "slurm", the id of its SLURM job
FAILED_FILE = "failed.json"  # in the folder of a run that failed: "exit_code" and "reason"
DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"


class State(NamedTuple):
    """The state of a run: its folder, DONE, RUNNING, WAITING or FAILED, and details or ""."""

    folder: Path
    status: str
    detail: str = ""


def read_or_empty(path: Path) -> dict[str, Any]:
    """The content of a JSON file; {} if it is missing or damaged."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def save_plan(jobs: Iterable["Job"], slurm: Mapping["Job", str] | None = None) -> None:
    """Write the plan of jobs into their folders; `slurm`: ids of their SLURM jobs."""
    for job in jobs:
        before = read_or_empty(job.folder / PLAN_FILE)
        planned = {"tested": job.has_test, "slurm": (slurm or {}).get(job, before.get("slurm", ""))}
        if planned != before:
            make_output_folder(job.folder)
            write_json(job.folder / PLAN_FILE, planned)


def queued_jobs() -> dict[str, str]:
    """States of this user's jobs in SLURM's queue by their ids: {"12_3": "PENDING (Priority)"}."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%r"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 2]
    return {found.strip(): state if reason == "None" else f"{state} ({reason})" for found, state, reason in rows}


def find_states(*folders: Path) -> list[State]:
    """States of all runs below folders (absolute), planned or started."""
    runs = {path.parent for folder in folders for name in (RUN_LOCK, PLAN_FILE) for path in folder.rglob(name)}
    plans = {run: read_or_empty(run / PLAN_FILE) for run in sorted(runs)}
    queue = queued_jobs() if any(planned.get("slurm") for planned in plans.values()) else {}
    return [_state_of(run, planned, queue) for run, planned in plans.items()]


def _state_of(run: Path, planned: Mapping[str, Any], queue: Mapping[str, str]) -> State:
    in_queue = queue.get(planned.get("slurm", ""), "")
    slurm = f"SLURM job {planned['slurm']} {in_queue}" if in_queue else ""
    process, progress = run_owner(run) or "", _progress_of(run)
    details = ", ".join(filter(None, [progress, process, slurm]))
    # Without a plan it is unknown whether the run has a test, so it may end with its training.
    has_ended = is_finished(run, planned.get("tested", True)) or ("tested" not in planned and is_finished(run, False))
    if has_ended and not process:
        return State(run, DONE)
    if process or in_queue:
        return State(run, RUNNING if process or in_queue.startswith("RUNNING") else WAITING, details)
    if failure := read_or_empty(run / FAILED_FILE):
        return State(run, FAILED, f"exit code {failure['exit_code']}: {' '.join(failure['reason'].split())}")
    return State(run, WAITING, details)


def _progress_of(run: Path) -> str:
    """The number of completed epochs: "3 epochs", in stage I "stage I of art, 3 epochs"; "" before the first."""
    found = [path for path in (run / RECORD_FILE, *run.glob(f"stage1/*/{RECORD_FILE}")) if path.is_file()]
    newest = max(found, key=lambda path: path.stat().st_mtime, default=run / RECORD_FILE)
    record, stage = read_run_record(newest.parent), "" if newest.parent == run else f"stage I of {newest.parent.name}, "
    return f"{stage}{len(record.history)} epochs" if record and record.history else ""
