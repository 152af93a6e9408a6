"""Jobs on a SLURM cluster, by submitit: arrays of jobs, which SLURM requeues and which then resume."""

import getpass
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.dassl_path import REPOSITORY
from common.errors import UserError
from common.interruption import Interrupted
from common.run.lock import holder
from common.run.records import read_record
from scripts.launching.jobs import Job, Request
from scripts.launching.run_job import BUSY, FAILED_FILE, Outcome, run_job
from scripts.launching.schedule import Report
from scripts.launching.status import plan_of, save_plan

CLUSTER = "slurm"  # of submitit; tests use "local"
FOLDER = ".slurm"  # in OUTPUT, for files of submitit
SECONDS_BETWEEN_LOOKS = 2.0
TIMEOUTS = 1000  # how often a job may run out of time
TIME = re.compile(r"(?:(?P<d>\d+)-)?(?P<a>\d+)(?::(?P<b>\d+))?(?::(?P<c>\d+))?")


def check_request(request: Request) -> None:
    """Raise UserError if submitit or SLURM is missing, or a variable is wrong."""
    if find_spec("submitit") is None:
        raise UserError(
            f"ENGINE is slurm, but submitit is missing: pip install -r {REPOSITORY / 'requirements-cluster.txt'}"
        )
    if CLUSTER == "slurm" and shutil.which("sbatch") is None:
        raise UserError("ENGINE is slurm, but there is no sbatch. Start the launcher on a login node of the cluster.")
    _minutes(request.slurm_time)
    _options(request.slurm_options)


def _minutes(text: str) -> int:
    """Minutes of a time as sbatch accepts it: 90, 8:00:00, 1-12, 1-12:30."""
    found = TIME.fullmatch(text or "60")
    if found is None:
        raise UserError(f"SLURM_TIME is {text!r}; accepted: minutes, <hours>:<minutes>:<seconds> or <days>-<hours>.")
    days, a, b, c = (int(found[name] or 0) for name in "dabc")
    if found["d"] is not None:
        return 1440 * days + 60 * a + b
    return 60 * a + b if found["c"] else a


def _options(text: str) -> dict[str, Any]:
    """More options of sbatch: "--qos=long --exclusive" or "qos=long"."""
    words = [word.lstrip("-").partition("=") for word in shlex.split(text)]
    if wrong := [name for name, _, _ in words if not re.fullmatch(r"[a-z][a-z-]*", name)]:
        raise UserError(f"SLURM_OPTIONS has {wrong[0]!r}; accepted: options of sbatch as --name=value, --qos=long.")
    return {name: value if sign else True for name, sign, value in words}


class SlurmJob:
    """The function of a SLURM job. submitit calls `checkpoint` before it requeues the job."""

    def __call__(self, job: Job) -> None:
        outcome = run_job(job.arguments, job.folder)
        if outcome.code in (130, 143):  # SLURM ends or requeues the job: no result
            raise SystemExit(outcome.code)
        for line in outcome.warnings:
            print(line)
        if outcome.code and outcome.code != BUSY:
            raise RuntimeError(outcome.reason)

    def checkpoint(self, job: Job) -> Any:
        """The same call again: train.py resumes after its last checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run_jobs(jobs: Sequence[Job], request: Request, workers: int, report: Report) -> None:
    """Submit jobs that are not in SLURM's queue, and wait until all have ended.

    Raises:
        Interrupted: the user stopped waiting; the jobs go on.
    """
    output = request.output.absolute()
    planned, queue = plan_of(output), queued_jobs()
    ids = {job: planned[job.folder].slurm for job in jobs if planned[job.folder].slurm in queue}
    new = [job for job in jobs if job not in ids and holder(job.folder) is None]
    try:
        ids |= _submit(new, ids, request, workers)
    finally:
        save_plan(output, jobs, {job.folder: found for job, found in ids.items()})
    numbers = sorted({found.partition("_")[0] for found in ids.values()})
    report.say(f"{len(new)} jobs submitted to SLURM, {len(jobs) - len(new)} in its queue before: {' '.join(numbers)}")
    try:
        _wait(jobs, ids, output, report)
    except KeyboardInterrupt:
        report.say(
            "SLURM goes on with the jobs. The same command waits for them again and prints the tables; "
            f"`python scripts/status.py {request.output}` shows their state; `scancel {' '.join(numbers)}` ends them."
        )
        raise Interrupted(2) from None


def _submit(jobs: Sequence[Job], known: dict[Job, str], request: Request, workers: int) -> dict[Job, str]:
    """Submit an array of the independent jobs, then one for the tests of each model; returns their ids."""
    import submitit

    os.environ["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["TQDM_DISABLE"] = "1"
    executor = submitit.AutoExecutor(request.output.absolute() / FOLDER, CLUSTER, slurm_max_num_timeout=TIMEOUTS)
    gpus = {"gpus": request.slurm_gpus} if request.slurm_gpus else {}
    options = {"requeue": True, **gpus, **_options(request.slurm_options)}
    parameters: dict[str, Any] = {"timeout_min": _minutes(request.slurm_time), "slurm_job_name": "spg"}
    parameters |= {"slurm_array_parallelism": request.n_jobs or 1000, "cpus_per_task": 1 + workers}
    parameters |= {"slurm_partition": request.slurm_partition} if request.slurm_partition else {}
    ids = dict(known)
    for needs in dict.fromkeys(job.needs for job in jobs):  # None comes first: trainings precede their tests
        training = next((found for job, found in ids.items() if job.folder == needs), None)
        after = {"dependency": f"afterok:{training}", "kill-on-invalid-dep": "yes"} if training else {}
        executor.update_parameters(**parameters, slurm_additional_parameters={**options, **after})
        group = [job for job in jobs if job.needs == needs]
        submitted = executor.map_array(SlurmJob(), group)
        ids |= {job: handle.job_id for job, handle in zip(group, submitted, strict=True)}
    return ids


def queued_jobs() -> dict[str, str]:
    """States of this user's jobs in SLURM's queue, by their ids: {"12_3": "PENDING (Priority)"}."""
    if shutil.which("squeue") is None:
        return {}
    command = ["squeue", "--noheader", "--array", "--user", getpass.getuser(), "--format", "%i|%T|%r"]
    lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    rows = [line.split("|") for line in lines if line.count("|") == 2]
    return {found.strip(): state if reason in ("None", "") else f"{state} ({reason})" for found, state, reason in rows}


def _wait(jobs: Sequence[Job], ids: dict[Job, str], output: Path, report: Report) -> None:
    waiting, missing = list(jobs), dict[Job, int]()
    before = {job: _failure_time(job) for job in jobs}
    while waiting:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        queue = queued_jobs()
        for job in list(waiting):
            # Files last: a job writes them before it leaves the queue.
            is_running, is_queued = holder(job.folder) is not None, ids.get(job) in queue
            if is_running and job not in report.started:
                report.start(job)
            missing[job] = 0 if is_running or is_queued else missing.get(job, 0) + 1
            if job.is_finished():
                report.end(job, Outcome(0))
            elif _failure_time(job) != before[job] and not is_running:
                failure = read_record(job.folder / FAILED_FILE)
                report.end(job, Outcome(failure["exit_code"], failure["reason"]))
            elif missing[job] > 2 and CLUSTER == "slurm":
                report.fail(job, f"its SLURM job {ids.get(job)} ended without results; its log is in {output / FOLDER}")
            else:
                continue
            waiting.remove(job)
        sys.stdout.flush()


def _failure_time(job: Job) -> float:
    path = job.folder / FAILED_FILE
    return path.stat().st_mtime if path.is_file() else 0.0
