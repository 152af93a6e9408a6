"""Jobs on a SLURM cluster, by submitit: arrays of jobs, which resume after preemption and time limits."""

import os
import shlex
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.interruption import Interrupted
from common.locks import run_owner
from scripts.launching.jobs import Job
from scripts.launching.run_job import BUSY, FAILED_FILE, Outcome, run_job
from scripts.launching.schedule import Report
from scripts.launching.status import queued_jobs, read_plan, save_plan

CLUSTER = "slurm"  # of submitit; tests use "local"
FOLDER = ".slurm"  # in OUTPUT, for files of submitit
SECONDS_BETWEEN_LOOKS = 2.0
MISSING_LOOKS = 3  # after which a job that is not in the queue has ended
TIMEOUTS = 1000  # how often a job may reach its time limit


def check_args() -> None:
    """Raise UserError if submitit or SLURM is missing."""
    if find_spec("submitit") is None:
        raise UserError("ENGINE is slurm, but submitit is missing: pip install 'submitit>=1.5'")
    if CLUSTER == "slurm" and shutil.which("sbatch") is None:
        raise UserError("ENGINE is slurm, but there is no sbatch. Start the launcher on a login node of the cluster.")


class SlurmJob:
    """The function of a SLURM job; submitit calls `checkpoint` before it requeues the job."""

    def __call__(self, job: Job) -> None:
        outcome = run_job(job.arguments, job.folder)
        print(*outcome.warnings, sep="\n")
        if outcome.code in (130, 143):  # SLURM ends or requeues the job, so it has no result
            raise SystemExit(outcome.code)
        if outcome.code not in (0, BUSY):
            raise RuntimeError(outcome.reason)

    def checkpoint(self, job: Job) -> Any:
        """The same call again: train.py resumes after its last completed epoch."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run_jobs(jobs: Sequence[Job], args: Namespace, workers: int, report: Report) -> None:
    """Submit the jobs that are not in SLURM's queue, and wait until all have ended.

    Raises:
        Interrupted: the user stopped the launcher; the SLURM jobs continue.
    """
    planned, queue = read_plan(args.output.absolute()), queued_jobs()
    ids = {job: planned[job.folder]["slurm"] for job in jobs if planned[job.folder]["slurm"] in queue}
    new = [job for job in jobs if job not in ids and run_owner(job.folder) is None]
    failures = {job: _failure_time(job) for job in jobs}
    try:
        for group, found in _submit(new, ids, args, workers):
            ids |= zip(group, found, strict=True)
    finally:
        save_plan(args.output, jobs, ids)
    numbers = " ".join(dict.fromkeys(found.partition("_")[0] for found in ids.values()))
    report.say(f"{len(new)} jobs submitted to SLURM, {len(jobs) - len(new)} were there before: {numbers}")
    try:
        _wait(jobs, ids, failures, args.output.absolute() / FOLDER, report)
    except KeyboardInterrupt as error:
        report.say(
            "The SLURM jobs continue. The same command waits for them again and prints the tables.\n"
            f"  state: python scripts/status.py {args.output}\n  end: scancel {numbers}"
        )
        raise Interrupted(2) from error


def _submit(jobs: Sequence[Job], known: dict[Job, str], args: Namespace, workers: int) -> Any:
    """Submit an array of the independent jobs, then one of the tests of each model; yields jobs and their ids."""
    import submitit

    os.environ.update(PYTHONPATH=args.python_path, TQDM_DISABLE="1")
    executor = submitit.AutoExecutor(args.output.absolute() / FOLDER, CLUSTER, slurm_max_num_timeout=TIMEOUTS)
    # The limit goes to sbatch as it is: submitit knows only minutes.
    options = {
        "requeue": True,
        "time": args.slurm_time or "60",
        "gpus": args.slurm_gpus,
        "partition": args.slurm_partition,
    }
    words = [word.lstrip("-").partition("=") for word in shlex.split(args.slurm_options)]
    options |= {name: value if sign else True for name, sign, value in words}
    options = {name: value for name, value in options.items() if value}
    executor.update_parameters(cpus_per_task=1 + workers, slurm_job_name="spg")
    executor.update_parameters(slurm_array_parallelism=int(args.jobs or 1000))
    ids = {job.folder: found for job, found in known.items()}
    for needs in dict.fromkeys(job.needs for job in jobs):  # trainings, which need nothing, come first
        group = [job for job in jobs if job.needs == needs]
        after = {"dependency": f"afterok:{ids[needs]}", "kill-on-invalid-dep": "yes"} if needs in ids else {}
        executor.update_parameters(slurm_additional_parameters={**options, **after})
        try:
            found = [handle.job_id for handle in executor.map_array(SlurmJob(), group)]
        except submitit.core.utils.FailedJobError as error:
            raise UserError(
                f"SLURM: sbatch failed. {' '.join(str(error).split())} Check the SLURM_ variables."
            ) from error
        ids |= {job.folder: one for job, one in zip(group, found, strict=True)}
        yield group, found


def _wait(jobs: Sequence[Job], ids: dict[Job, str], failures: dict[Job, float], logs: Path, report: Report) -> None:
    """Report jobs as they start and end; `failures` are times of failed.json before they were submitted."""
    waiting, missing = list(jobs), dict.fromkeys(jobs, 0)
    while waiting:
        time.sleep(SECONDS_BETWEEN_LOOKS)
        queue = queued_jobs()
        for job in list(waiting):
            is_running = run_owner(job.folder) is not None
            if is_running:
                report.start(job)
            missing[job] = 0 if is_running or ids.get(job) in queue else missing[job] + 1
            if job.is_finished():
                report.end(job, Outcome(0))
            elif not is_running and _failure_time(job) != failures[job]:
                failure = read_json(job.folder / FAILED_FILE)
                report.end(job, Outcome(failure["exit_code"], failure["reason"]))
            elif missing[job] >= MISSING_LOOKS and CLUSTER == "slurm":
                report.fail(job, f"SLURM job {ids.get(job)} ended without results, its log is in {logs}")
            else:
                continue
            waiting.remove(job)


def _failure_time(job: Job) -> float:
    path = job.folder / FAILED_FILE
    return path.stat().st_mtime if path.is_file() else 0.0
