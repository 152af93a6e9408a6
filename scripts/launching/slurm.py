"""Jobs on a SLURM cluster, by submitit: arrays of jobs, which resume after preemption and time limits."""

import os
import shlex
import shutil
import time
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import submitit

from common.errors import UserError
from common.interruption import Interrupted
from common.locks import run_owner
from scripts.launching.jobs import Job
from scripts.launching.local import BUSY, NO_CODE, JobLog, Outcome, run_job
from scripts.launching.status import FAILED_FILE, PLAN_FILE, queued_jobs, read_or_empty, save_plan

CLUSTER = "slurm"  # of submitit; tests use "local"
FOLDER = ".slurm"  # in OUTPUT, for files of submitit
POLL_SECONDS = 2.0
MISSING_POLLS = 3  # after which a job that is not in the queue has ended
TIMEOUTS = 1000  # how often a job may reach its time limit


class SlurmJob(submitit.helpers.Checkpointable):
    """The function of a SLURM job. SLURM calls it again after a requeue, and train.py resumes the run."""

    def __call__(self, job: Job) -> None:
        outcome = run_job(job.arguments, job.folder)
        print(*outcome.warnings, sep="\n")
        if outcome.code in (130, 143):  # SLURM ends or requeues the job, so it has no result
            raise SystemExit(outcome.code)
        if outcome.code not in (0, BUSY):
            raise RuntimeError(outcome.reason)


def run_jobs(jobs: Sequence[Job], args: Namespace, workers: int, log: JobLog) -> None:
    """Submit the jobs that are not in SLURM's queue, and wait until all have ended; Ctrl-C ends the launcher alone."""
    if CLUSTER == "slurm" and shutil.which("sbatch") is None:
        raise UserError("ENGINE is slurm, but there is no sbatch. Start the launcher on a login node of the cluster.")
    queue = queued_jobs()
    ids = {job: found for job in jobs if (found := read_or_empty(job.folder / PLAN_FILE).get("slurm")) in queue}
    new = [job for job in jobs if job not in ids and run_owner(job.folder) is None]
    try:
        _submit(new, ids, args, workers)
    finally:
        save_plan(jobs, ids)
    numbers = " ".join(dict.fromkeys(found.partition("_")[0] for found in ids.values()))
    log.print(f"{len(new)} jobs submitted to SLURM, {len(jobs) - len(new)} were there before: {numbers}")
    try:
        _wait(jobs, ids, args.output.absolute() / FOLDER, log)
    except KeyboardInterrupt as error:
        log.print(
            "The SLURM jobs continue. The same command waits for them again and prints the tables.\n"
            f"  state: python scripts/status.py {args.output}\n  end: scancel {numbers}"
        )
        raise Interrupted(2) from error


def _submit(jobs: Sequence[Job], ids: dict[Job, str], args: Namespace, workers: int) -> None:
    """Submit an array of the independent jobs, then one of the tests of each model; adds to the ids of SLURM jobs."""
    os.environ.update(PYTHONPATH=args.python_path, TQDM_DISABLE="1")
    executor = submitit.AutoExecutor(args.output.absolute() / FOLDER, CLUSTER, slurm_max_num_timeout=TIMEOUTS)
    # The limit goes to sbatch as it is: submitit knows only minutes.
    options = {"requeue": True, "time": args.slurm_time or "60"}
    options |= {"gpus": args.slurm_gpus, "partition": args.slurm_partition}
    words = [word.lstrip("-").partition("=") for word in shlex.split(args.slurm_options)]
    options |= {name: value if sign else True for name, sign, value in words}
    options = {name: value for name, value in options.items() if value}
    executor.update_parameters(cpus_per_task=1 + workers, slurm_job_name="spg")
    executor.update_parameters(slurm_array_parallelism=int(args.jobs or 1000))
    for needs in dict.fromkeys(job.needs for job in jobs):  # trainings, which need nothing, come first
        group = [job for job in jobs if job.needs == needs]
        before = next((found for job, found in ids.items() if job.folder == needs), None)
        after = {"dependency": f"afterok:{before}", "kill-on-invalid-dep": "yes"} if before else {}
        executor.update_parameters(slurm_additional_parameters={**options, **after})
        for job in group:
            (job.folder / FAILED_FILE).unlink(missing_ok=True)
        try:
            handles = executor.map_array(SlurmJob(), group)
        except submitit.core.utils.FailedJobError as error:
            raise UserError(f"sbatch failed: {' '.join(str(error).split())} Check the SLURM_ variables.") from error
        ids |= {job: handle.job_id for job, handle in zip(group, handles, strict=True)}


def _wait(jobs: Sequence[Job], ids: dict[Job, str], logs: Path, log: JobLog) -> None:
    waiting, missing = list(jobs), dict.fromkeys(jobs, 0)
    while waiting:
        time.sleep(POLL_SECONDS)
        queue = queued_jobs()
        for job in list(waiting):
            is_running = run_owner(job.folder) is not None
            if is_running:
                log.start(job)
            missing[job] = 0 if is_running or ids.get(job) in queue else missing[job] + 1
            if job.is_finished():
                log.end(job, Outcome(0))
            elif not is_running and (failure := read_or_empty(job.folder / FAILED_FILE)):
                log.end(job, Outcome(failure["exit_code"], failure["reason"]))
            elif missing[job] >= MISSING_POLLS and CLUSTER == "slurm":
                log.end(job, Outcome(NO_CODE, f"SLURM job {ids.get(job)} ended without results, its log is in {logs}"))
            else:
                continue
            waiting.remove(job)
