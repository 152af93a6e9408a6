"""The plan and the state of the runs in an output folder, from the files there."""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.held import held
from common.run.folder import is_finished
from common.run.history import HISTORY_FILE
from common.run.lock import LOCK_FILE, holder
from common.run.records import read_record, write_record
from scripts.launching.run_job import FAILED_FILE

if TYPE_CHECKING:
    from scripts.launching.jobs import Job

PLAN_FILE = "plan.json"  # in OUTPUT: the runs that launchers planned
DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"


@dataclass(frozen=True)
class Planned:
    """A planned run: whether it ends with a test, and the id of its SLURM job or ""."""

    tested: bool = True
    slurm: str = ""


@dataclass(frozen=True)
class State:
    """The state of a run: its folder, DONE, RUNNING, WAITING or FAILED, and details or ""."""

    folder: Path
    what: str
    detail: str


def plan_of(output: Path) -> dict[Path, Planned]:
    """The planned runs of an output folder by their folders; {} if there is no readable plan."""
    try:
        runs = read_record(output / PLAN_FILE)["runs"]
        return {output / name: Planned(**values) for name, values in runs.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}


def save_plan(output: Path, jobs: Iterable["Job"], slurm: Mapping[Path, str] | None = None) -> None:
    """Add jobs to the plan of an output folder; `slurm`: ids of SLURM jobs by folder."""
    output = output.absolute()
    with held(output / PLAN_FILE, "the plan"):
        known = plan_of(output)
        ids = {**{folder: run.slurm for folder, run in known.items()}, **(slurm or {})}
        runs = {**known, **{job.folder: Planned(job.tested, ids.get(job.folder, "")) for job in jobs}}
        if runs != known:
            named = {folder.relative_to(output).as_posix(): asdict(run) for folder, run in runs.items()}
            write_record(output / PLAN_FILE, {"runs": named})


def find_states(folder: Path) -> list[State]:
    """States of all runs below a folder (absolute), planned or started."""
    from scripts.launching.slurm import queued_jobs

    runs = {lock.parent: Planned(not is_finished(lock.parent, tested=False)) for lock in folder.rglob(LOCK_FILE)}
    for output in [*folder.parents, *(path.parent for path in folder.rglob(PLAN_FILE))]:
        runs |= {run: planned for run, planned in plan_of(output).items() if run.is_relative_to(folder)}
    queue = queued_jobs() if any(run.slurm for run in runs.values()) else {}
    return [_state_of(run, planned, queue) for run, planned in sorted(runs.items())]


def _state_of(run: Path, planned: Planned, queue: Mapping[str, str]) -> State:
    job = f"SLURM job {planned.slurm} {queue[planned.slurm]}" if planned.slurm in queue else ""
    process = holder(run)
    progress = _progress_of(run)
    if process is not None:
        return State(run, RUNNING, ", ".join(filter(None, [progress, process, job])))
    if is_finished(run, planned.tested):
        return State(run, DONE, "")
    if job:
        return State(run, RUNNING if " RUNNING" in job else WAITING, ", ".join(filter(None, [progress, job])))
    try:
        failure = read_record(run / FAILED_FILE)
        code, reason = failure["exit_code"], " ".join(failure["reason"].split())
    except (OSError, ValueError, KeyError):
        return State(run, WAITING, progress)
    return State(run, FAILED, f"exit code {code}: {reason or f'its log ends: {_last_line(run)}'}")


def _progress_of(run: Path) -> str:
    """The number of completed epochs: "3 epochs", in stage I "stage I of art, 3 epochs"; "" before the first."""
    found = [path for path in (run / HISTORY_FILE, *run.glob(f"stage1/*/{HISTORY_FILE}")) if path.is_file()]
    with contextlib.suppress(OSError, ValueError, KeyError):  # a process may just replace it
        newest = max(found, key=lambda path: path.stat().st_mtime)
        stage = "" if newest.parent == run else f"stage I of {newest.parent.name}, "
        return f"{stage}{len(read_record(newest)['epochs'])} epochs"
    return ""


def _last_line(run: Path) -> str:
    """The last line of a run's newest log that is not empty."""
    logs = sorted(run.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").split("\n") if logs else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "(no log)")
