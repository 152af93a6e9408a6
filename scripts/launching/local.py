"""Run jobs: in a process that may run several, in parallel processes of this machine, or by another engine."""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from argparse import Namespace
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.errors import UserError, recent_warnings
from common.files import make_output_folder, write_json
from common.interruption import Interrupted
from common.locks import run_owner
from common.startup import prepare_imports
from common.threads import plan_threads, share_cores, usable_cores
from scripts.launching.jobs import Job, Plan

FAILED_FILE = "failed.json"  # in the folder of a run that failed: "exit_code" and "reason"
# Exit codes: an exception that train.py does not expect; the process died; another process runs this job.
CRASHED, DIED, BUSY = 70, 71, 75
SECONDS_BETWEEN_LOOKS = 1.0  # at a job of another process


# ---- one job ----


class Outcome(NamedTuple):
    """The end of a job: exit code, the reason of a failure or "", and warnings."""

    code: int
    reason: str = ""
    warnings: tuple[str, ...] = ()


def run_job(arguments: Sequence[str], folder: Path) -> Outcome:
    """Run train.py with these arguments in this process; `folder` is its output folder."""
    prepare_imports()
    import train

    recent_warnings.clear()
    stdout = sys.stdout
    args = train.parse_args(list(arguments))
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
    if outcome.code in (1, CRASHED, DIED):
        with contextlib.suppress(OSError):  # a full disk may be the reason
            make_output_folder(folder)
            write_json(folder / FAILED_FILE, {"exit_code": outcome.code, "reason": outcome.reason})
    return outcome


# ---- many jobs ----


class Engine(Protocol):
    """Runs jobs in other processes; a future raises BrokenExecutor if the process dies."""

    @property
    def slots(self) -> int: ...  # jobs at once
    def submit(self, job: Job) -> Future[Outcome]: ...
    def interrupt(self, number: int) -> None: ...  # first: runs finish their step and end; second: they end at once
    def close(self) -> None: ...


class Report:
    """Prints the lines of a launcher above its progress bar; `failed` has the reasons of failures by job."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.failed, self.started, self.warned = bar, dict[Job, str](), dict[Job, float](), set[str]()

    def say(self, line: str, stream: Any = None) -> None:
        self.bar.write(line, file=stream or sys.stdout)
        sys.stdout.flush()

    def start(self, job: Job) -> None:
        if job not in self.started:
            self.started[job] = time.time()
            self.say(f"{job.title}: started, log in {job.folder}")

    def end(self, job: Job, outcome: Outcome) -> None:
        for line in outcome.warnings:
            if line not in self.warned:  # runs on one data set have the same warnings
                self.warned.add(line)
                self.say(line, sys.stderr)
        if outcome.code:
            self.fail(job, f"failed with exit code {outcome.code}: {outcome.reason}")
            return
        seconds = time.time() - self.started.get(job, time.time())
        self.say(f"{job.title}: {outcome.reason or f'done in {seconds:.0f} s'}")
        self.bar.update()

    def fail(self, job: Job, reason: str) -> None:
        self.failed[job] = reason
        self.say(f"{job.title}: {reason}")
        self.bar.update()


def run_by_engine(jobs: list[Job], plans: Sequence[Plan], args: Namespace, report: Report) -> None:
    """Run jobs by the engine that a command line names."""
    from scripts.launching import ray, slurm
    from trainers.modules.clip.backbone import load_backbone

    workers, uses_cuda = max(p.cfg.DATALOADER.NUM_WORKERS for p in plans), any(p.cfg.USE_CUDA for p in plans)
    if args.engine == "slurm":
        slurm.run_jobs(jobs, args, workers, report)
        return
    n_jobs, named = int(args.jobs or 1), plans[0].cfg.MODEL.BACKBONE
    gpus = local_gpus(args.visible_gpus) if uses_cuda and n_jobs > 1 else []
    is_plain = args.engine == "local" and (n_jobs == 1 or gpus)  # threads do not matter
    threads = 1 if is_plain else plan_threads(load_backbone(named.NAME, root=named.PATH).n_tower_weights, 0).alone
    engine: Engine
    if args.engine == "ray":
        roots = {os.path.abspath(one.root) for plan in plans for one in plan.sets if os.path.isdir(one.root)}
        engine = ray.RayEngine(args, sorted(roots), threads, workers, uses_cuda)
        workers = engine.workers
    else:
        n_runs, most_workers = share_cores(n_jobs, threads)
        if n_runs < n_jobs:
            text = f"Note: JOBS is {n_jobs}, but a run has {threads} threads, and {usable_cores()} cores have room for"
            print(f"{text} {n_runs}.", file=sys.stderr)
        workers = workers if n_runs == 1 else min(workers, most_workers)
        engine = LocalEngine(n_runs, gpus)
    try:
        arguments = "DATALOADER.NUM_WORKERS", str(workers)
        run_jobs([replace(job, arguments=(*job.arguments, *arguments)) for job in jobs], engine, report)
    finally:
        engine.close()


def run_jobs(jobs: Sequence[Job], engine: Engine, report: Report) -> None:
    """Run jobs by an engine, in their order where possible; raises Interrupted after a signal, when all have ended.

    Jobs that another process runs come last; if that process dies, this launcher runs them.
    """
    signals: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    try:
        _run_jobs(list(jobs), engine, report, signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Interrupted(signals[0])


def _run_jobs(waiting: list[Job], engine: Engine, report: Report, signals: Sequence[int]) -> None:
    running: dict[Future[Outcome], Job] = {}
    looked: dict[Job, float] = {}  # when another process was found to run it
    retried: set[Job] = set()
    n_passed_on = 0
    while running or (waiting and not signals):
        while not signals and len(running) < engine.slots and (job := _next_job(waiting, running, looked, report)):
            if owner := run_owner(job.folder):
                _skip(job, owner, looked, report)
                continue
            waiting.remove(job)
            if job.is_finished():
                report.end(job, Outcome(0, "skipped: finished by another process"))
            else:
                report.start(job)
                running[engine.submit(job)] = job
        for number in signals[n_passed_on:]:
            engine.interrupt(number)
            n_passed_on += 1
        if not running:
            time.sleep(SECONDS_BETWEEN_LOOKS / 4)
        for future in wait(running, SECONDS_BETWEEN_LOOKS / 4, FIRST_COMPLETED).done:
            job, outcome = running.pop(future), _outcome(future)
            if signals and outcome.code:
                report.say(f"{job.title}: interrupted; the same command resumes it")
            elif outcome.code == BUSY:
                _skip(job, outcome.reason, looked, report)
                waiting.append(job)
            elif outcome.code == DIED and job not in retried:
                report.say(f"{job.title}: {outcome.reason}; one retry")
                retried.add(job)
                waiting.insert(0, job)
            else:
                report.end(job, save_failure(job.folder, outcome))


def _skip(job: Job, owner: str, looked: dict[Job, float], report: Report) -> None:
    if job not in looked:
        report.say(f"{job.title}: skipped for now, {owner} runs it")
    looked[job] = time.monotonic()


def _next_job(waiting: list[Job], running: dict, looked: dict[Job, float], report: Report) -> Job | None:
    """The next job that can start, if any; drops tests whose training failed."""
    for failed in list(report.failed):
        for job in [job for job in waiting if job.needs == failed.folder]:
            waiting.remove(job)
            report.fail(job, f"skipped: it depends on {failed.title}, which failed")
    unfinished, recent = {job.folder for job in (*waiting, *running.values())}, time.monotonic() - SECONDS_BETWEEN_LOOKS
    ready = [job for job in waiting if job.needs not in unfinished and looked.get(job, 0.0) < recent]
    return min(ready, key=lambda job: looked.get(job, 0.0), default=None)


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenExecutor:
        return Outcome(DIED, "its process died (killed, or out of memory)")
    except BaseException as error:  # KeyboardInterrupt comes from a process that was just starting
        text = str(error).strip() or type(error).__name__
        print(text, file=sys.stderr)
        return Outcome(DIED, text.splitlines()[-1])


# ---- parallel processes of this machine ----


def local_gpus(visible: str) -> list[str]:
    """The GPUs for runs: those in CUDA_VISIBLE_DEVICES, or all; UserError if it names more than there are."""
    import torch

    n, named = torch.cuda.device_count(), [name.strip() for name in visible.split(",") if name.strip()]
    if not named or named[0] == "-1":  # CUDA's name for no GPU
        return [] if named else [str(i) for i in range(n)]
    if n < len(named):
        text = f"CUDA_VISIBLE_DEVICES is {visible!r}, {len(named)} GPUs, but PyTorch finds {n}."
        raise UserError(f"{text} Name GPUs that `nvidia-smi -L` lists, or unset it.")
    return named


class LocalEngine:
    """Runs jobs in warm processes, which share the GPUs. Each is a pool of its own: if one dies, no other notices."""

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.gpus = slots, gpus
        self.workers: list[_Worker] = []

    def submit(self, job: Job) -> Future[Outcome]:
        while True:
            worker = next((worker for worker in self.workers if worker.job is None or worker.job.done()), None)
            if worker is None:
                used = [worker.gpu for worker in self.workers]
                worker = _Worker(min(self.gpus, key=used.count) if self.gpus else None)
                self.workers.append(worker)
            with contextlib.suppress(BrokenExecutor):  # an idle process died
                if not worker.has_failed():
                    worker.job = worker.pool.submit(run_job, job.arguments, job.folder)
                    return worker.job
            self.workers.remove(worker)
            worker.pool.shutdown()

    def interrupt(self, number: int) -> None:
        for worker in self.workers:
            if worker.job is not None and not worker.job.done():
                with contextlib.suppress(Exception):  # it may just have died
                    os.kill(worker.pid.result(), number)

    def close(self) -> None:
        for worker in self.workers:
            worker.pool.shutdown()


class _Worker:
    """A process, and its current job."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.job: Future[Outcome] | None = None
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_process, (gpu,))
        # Ctrl-C of the terminal must not reach a process that is just starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid = self.pool.submit(os.getpid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def has_failed(self) -> bool:
        """Whether the last job raised an unexpected exception, which may have left something behind."""
        return self.job is not None and (self.job.exception() is not None or self.job.result().code == CRASHED)


def _prepare_process(gpu: str | None) -> None:
    if gpu is not None:
        os.environ.update(CUDA_VISIBLE_DEVICES=gpu)
    os.environ.update(TQDM_DISABLE="1")  # the launcher has the progress bar
    os.setsid()  # Ctrl-C of the terminal reaches the launcher alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    multiprocessing.set_start_method(None, force=True)  # loader workers fork, as in train.py
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the log of each run has its output
    threading.Thread(target=_end_with_launcher, daemon=True).start()


def _end_with_launcher() -> None:
    """Wait until the launcher has ended, then end at once, loader workers included."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.killpg(0, signal.SIGKILL)
