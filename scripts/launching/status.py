"""How far the runs in a folder have come, by the files that they keep."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from common.run.folder import is_finished
from common.run.history import HISTORY_FILE
from common.run.lock import LOCK_FILE, holder

from common.files import read_json
from scripts.launching.planned import FAILED_FILE, PLAN_FILE, read_planned
from scripts.launching.runs import ASKED, SHARED_FOLDER

DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"


@dataclass(frozen=True)
class State:
    """Of one run.

    Attributes:
        folder: its own.
        what: DONE, RUNNING, WAITING or FAILED.
        detail: what there is to say of that; "": nothing.
    """

    folder: Path
    what: str
    detail: str


def find_states(folder: Path) -> list[State]:
    """States of all runs below a folder (a whole path): those planned there or above, and those that began.

    Of what is made for several runs, only that which is being made, or failed.
    """
    runs: dict[Path, bool] = {}
    shared: list[State] = []
    for lock in folder.rglob(LOCK_FILE):
        if SHARED_FOLDER in lock.parts:  # no run, but what several need
            shared.append(state_of(lock.parent))
        else:
            runs[lock.parent] = not is_finished(lock.parent, tested=False)
    plans = [path.parent for path in folder.rglob(PLAN_FILE)]
    for output in [*(above for above in folder.parents if (above / PLAN_FILE).is_file()), *plans]:
        runs |= {run: tested for run, tested in read_planned(output).items() if run.is_relative_to(folder)}
    told = [state for state in shared if state.what in (RUNNING, FAILED)]
    return sorted([*told, *(state_of(run, tested) for run, tested in runs.items())], key=lambda state: state.folder)


def state_of(run: Path, tested: bool = True) -> State:
    """State of the run in a folder; `tested`: whether it ends with a test."""
    process = holder(run)
    if process is not None:
        return State(run, RUNNING, ", ".join(filter(None, [progress_of(run), process])))
    if is_finished(run, tested):
        return State(run, DONE, "")
    try:
        failure = read_json(run / ASKED / FAILED_FILE)
        code, error = failure["exit_code"], " ".join(failure.get("error", "").split())
    except (OSError, ValueError, KeyError):
        return State(run, WAITING, progress_of(run))
    return State(run, FAILED, f"exit code {code}{f': {error}' if error else f'; its log ends: {last_line(run)}'}")


def progress_of(run: Path) -> str:
    """How many epochs a run has completed: "3 epochs", of SPG's stage I "stage I of art, 3 epochs"; "": none."""
    found = [run / HISTORY_FILE, *run.glob(f"stage1/*/{HISTORY_FILE}")]
    newest = max((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        return ""
    n_epochs = 0
    with contextlib.suppress(OSError, ValueError, KeyError):  # it may just be replaced
        n_epochs = len(read_json(newest)["epochs"])
    stage = "" if newest.parent == run else f"stage I of {newest.parent.name}, "
    return f"{stage}{n_epochs} epochs"


def last_line(run: Path) -> str:
    """The last line that is not empty of a run's newest log."""
    logs = sorted(run.glob("log.txt*"), key=lambda path: path.stat().st_mtime)
    if not logs:
        return "(there is none)"
    lines = logs[-1].read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "(it is empty)")
