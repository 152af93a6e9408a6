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

from yacs.config import CfgNode

from common.errors import UserError, recent_warnings
from common.files import make_output_folder, write_json
from common.interruption import Interrupted
from common.locks import run_owner
from common.startup import prepare_imports
from common.threads import plan_threads, share_cores, usable_cores
from scripts.launching.jobs import Job, Plan
from scripts.launching.status import FAILED_FILE

# Exit codes: an exception that train.py does not expect; the process died; another process runs this job.
CRASHED, DIED, BUSY = 70, 71, 75
NO_CODE = -1  # of a job without an exit code: it was skipped, or lost by SLURM
POLL_SECONDS = 0.5  # how often the launcher checks jobs


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
        gc.freeze()  # the next collection skips the packages
        if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    # train.py ends with 1 if another process has locked the folder.
    if code == 1 and (owner := run_owner(folder)):
        return Outcome(BUSY, owner)
    return save_failure(folder, Outcome(code, reason, tuple(recent_warnings)))


def save_failure(folder: Path, outcome: Outcome) -> Outcome:
    """Write failed.json for `scripts/status.py`, unless the run was interrupted; returns the outcome."""
    if outcome.code in (1, CRASHED, DIED):
        with contextlib.suppress(OSError):  # a full disk may be the reason
            make_output_folder(folder)
            write_json(folder / FAILED_FILE, {"exit_code": outcome.code, "reason": outcome.reason})
    return outcome


class JobLog:
    """Prints the lines of a launcher above its progress bar; `failed` has the reasons of failures by job."""

    def __init__(self, bar: Any) -> None:
        self.bar, self.failed, self.started, self.printed = bar, dict[Job, str](), dict[Job, float](), set[str]()

    def print(self, line: str, stream: Any = None) -> None:
        """Print a line, unless it was printed before; runs on one data set have the same warnings."""
        if line not in self.printed:
            self.printed.add(line)
            self.bar.write(line, file=stream or sys.stdout)
            sys.stdout.flush()

    def start(self, job: Job) -> None:
        self.started.setdefault(job, time.time())
        self.print(f"{job.title}: started, log in {job.folder}")

    def end(self, job: Job, outcome: Outcome) -> None:
        for line in outcome.warnings:
            self.print(line, sys.stderr)
        text = outcome.reason or f"done in {time.time() - self.started.get(job, time.time()):.0f} s"
        if outcome.code:
            text = self.failed[job] = f"failed with exit code {outcome.code}: {text}" if outcome.code > 0 else text
        self.print(f"{job.title}: {text}")
        self.bar.update()


class Engine(Protocol):
    """Runs at most `slots` jobs at once; `interrupt` sends a signal to all of them."""

    @property
    def slots(self) -> int: ...
    def submit(self, job: Job) -> Future[Outcome]: ...
    def interrupt(self, number: int) -> None: ...
    def close(self) -> None: ...


def run_by_engine(jobs: list[Job], plan: Plan, args: Namespace, log: JobLog) -> None:
    """Run jobs of a plan by the engine that a command line names."""
    cfg, *others = plan.configs.values()
    workers = max(one.DATALOADER.NUM_WORKERS for one in (cfg, *others))
    if args.engine == "slurm":
        from scripts.launching.slurm import run_jobs as run_slurm_jobs

        run_slurm_jobs(jobs, args, workers, log)
        return
    engine: Engine = LocalEngine(1)
    if args.engine == "ray":
        from scripts.launching.ray import RayEngine

        roots = sorted({os.path.abspath(one.root) for one in plan.sets if os.path.isdir(one.root)})
        engine = ray_engine = RayEngine(args, roots, cfg, workers)
        workers = ray_engine.loader_workers
    elif args.jobs not in (None, "1"):
        gpus = local_gpus(args.visible_gpus) if cfg.USE_CUDA else []
        threads = 1 if gpus else count_threads(cfg)
        n_runs, most_workers = share_cores(int(args.jobs), threads)
        if n_runs < int(args.jobs):
            uses = f"a run uses {threads} of {usable_cores()} cores, so the launcher runs {n_runs} at a time"
            log.print(f"Note: JOBS is {args.jobs}, but {uses}. OMP_NUM_THREADS sets the threads of a run.", sys.stderr)
        engine, workers = LocalEngine(n_runs, gpus), workers if n_runs == 1 else min(workers, most_workers)
    with contextlib.closing(engine):
        arguments = "DATALOADER.NUM_WORKERS", str(workers)
        run_jobs([replace(job, arguments=(*job.arguments, *arguments)) for job in jobs], engine, log)


def count_threads(cfg: CfgNode) -> int:
    from trainers.modules.clip.backbone import load_backbone

    backbone = load_backbone(cfg.MODEL.BACKBONE.NAME, root=cfg.MODEL.BACKBONE.PATH)
    return plan_threads(backbone.n_tower_weights)


def run_jobs(jobs: Sequence[Job], engine: Engine, log: JobLog) -> None:
    """Run jobs by an engine, in their order where possible; raises Interrupted after a signal, when all have ended."""
    waiting, running, signals = list(jobs), dict[Future[Outcome], Job](), list[int]()
    retried, n_passed_on = set[Job](), 0
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda number, _: signals.append(number)) for number in numbers}
    try:
        while running or (waiting and not signals):
            if not signals:
                _start_jobs(waiting, running, engine, log)
            for number in signals[n_passed_on:]:
                engine.interrupt(number)
                n_passed_on += 1
            if not running:
                time.sleep(POLL_SECONDS)
            for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                job, outcome = running.pop(future), _outcome(future)
                if signals and outcome.code:
                    log.print(f"{job.title}: interrupted; the same command resumes it")
                elif outcome.code == BUSY:
                    waiting.append(job)
                elif outcome.code == DIED and job not in retried:
                    log.print(f"{job.title}: {outcome.reason}; one retry")
                    retried.add(job)
                    waiting.insert(0, job)
                else:
                    log.end(job, save_failure(job.folder, outcome))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        raise Interrupted(signals[0])


def _start_jobs(waiting: list[Job], running: dict[Future[Outcome], Job], engine: Engine, log: JobLog) -> None:
    """Start jobs that can run now, as many as fit; drop tests after a failed training."""
    for job in list(waiting):
        failed = next((one for one in log.failed if one.folder == job.needs), None)
        if failed is not None:
            waiting.remove(job)
            log.end(job, Outcome(NO_CODE, f"skipped: it depends on {failed.title}, which failed"))
        elif len(running) >= engine.slots or job.needs in {one.folder for one in (*waiting, *running.values())}:
            continue
        elif owner := run_owner(job.folder):
            log.print(f"{job.title}: skipped for now, {owner} runs it")
        else:
            waiting.remove(job)
            if job.is_finished():
                log.end(job, Outcome(0, "skipped: finished by another process"))
            else:
                log.start(job)
                running[engine.submit(job)] = job


def _outcome(future: Future[Outcome]) -> Outcome:
    try:
        return future.result()
    except BrokenExecutor:
        return Outcome(DIED, "its process died (killed, or out of memory)")
    except BaseException as error:  # KeyboardInterrupt comes from a process that was just starting
        text = str(error).strip() or type(error).__name__
        print(text, file=sys.stderr)
        return Outcome(DIED, text.splitlines()[-1])


def local_gpus(visible: str) -> list[str]:
    """The GPUs for runs: those in CUDA_VISIBLE_DEVICES, or all; UserError if it names more than there are."""
    import torch

    n = torch.cuda.device_count()
    named = [name.strip() for name in visible.split(",") if name.strip()] or [str(i) for i in range(n)]
    if named[:1] == ["-1"]:  # CUDA's name for no GPU
        return []
    if n < len(named):
        raise UserError(f"CUDA_VISIBLE_DEVICES is {visible!r}, {len(named)} GPUs, but PyTorch finds {n}. Name fewer.")
    return named


class LocalEngine:
    """Runs jobs in warm processes, which share the GPUs. Each is a pool of its own: if one dies, no other notices."""

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.gpus = slots, gpus
        self.processes: list[_Process] = []

    def submit(self, job: Job) -> Future[Outcome]:
        while True:
            process = next((one for one in self.processes if one.future is None or one.future.done()), None)
            if process is None:
                used = [one.gpu for one in self.processes]
                process = _Process(min(self.gpus, key=used.count) if self.gpus else None)
                self.processes.append(process)
            with contextlib.suppress(BrokenExecutor):  # an idle process died
                if not process.has_crashed():
                    process.future = process.pool.submit(run_job, job.arguments, job.folder)
                    return process.future
            self.processes.remove(process)
            process.pool.shutdown()

    def interrupt(self, number: int) -> None:
        for process in self.processes:
            if process.future is not None and not process.future.done():
                with contextlib.suppress(Exception):  # it may just have died
                    os.kill(process.pid_future.result(), number)

    def close(self) -> None:
        for process in self.processes:
            process.pool.shutdown()


class _Process:
    def __init__(self, gpu: str | None) -> None:
        self.gpu = gpu
        self.future: Future[Outcome] | None = None
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_process, (gpu,))
        # Ctrl-C of the terminal must not reach a process that is just starting.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self.pid_future = self.pool.submit(os.getpid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def has_crashed(self) -> bool:
        """Whether the last job raised an unexpected exception, which may have left something behind."""
        return self.future is not None and bool(self.future.exception() or self.future.result().code == CRASHED)


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
    launcher = multiprocessing.parent_process()
    assert launcher is not None

    def end_with_launcher() -> None:
        launcher.join()
        os.killpg(0, signal.SIGKILL)  # loader workers included

    threading.Thread(target=end_with_launcher, daemon=True).start()
