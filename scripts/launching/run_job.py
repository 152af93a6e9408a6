"""Run one job in this process, which may run others before and after it."""

import contextlib
import gc
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from common.errors import recent_warnings
from common.files import make_output_folder, write_json
from common.locks import run_owner
from common.startup import prepare_imports

FAILED_FILE = "failed.json"  # in the folder of a run that failed: "exit_code" and "reason"
CRASHED, BUSY = 70, 75  # exit codes: an exception that train.py does not expect; another process runs this job


class Outcome(NamedTuple):
    """The end of a job: exit code, the reason of a failure or "", and warnings."""

    code: int
    reason: str = ""
    warnings: tuple[str, ...] = ()


def run_job(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run train.py with these arguments; `folder` is its output folder."""
    prepare_imports()
    import train

    recent_warnings.clear()
    stdout = sys.stdout
    try:
        args = train.parse_args(list(arguments))
    except SystemExit:
        return save_failure(folder, Outcome(2, "train.py does not accept its arguments"))
    (folder / FAILED_FILE).unlink(missing_ok=True)
    try:
        code, reason = train.execute(args)
    except Exception as error:
        traceback.print_exc()
        code, reason = CRASHED, "".join(traceback.format_exception_only(error)).strip()
    finally:
        sys.stdout = stdout  # Dassl's logger replaces it
        gc.collect()  # frees memory before the next job
        gc.freeze()  # the packages stay: the next collection need not look at them
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    if code == 1 and (owner := run_owner(folder)):
        return Outcome(BUSY, owner, tuple(recent_warnings))
    return save_failure(folder, Outcome(code, reason, tuple(recent_warnings)))


def save_failure(folder: Path, outcome: Outcome) -> Outcome:
    """Write failed.json for `scripts/status.py`, unless the run was interrupted; returns the outcome."""
    if outcome.code in (1, 2, CRASHED):
        with contextlib.suppress(OSError):  # a full disk may be the reason
            make_output_folder(folder)
            write_json(folder / FAILED_FILE, {"exit_code": outcome.code, "reason": outcome.reason})
    return outcome
