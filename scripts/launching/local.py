"""Jobs on this machine: one warm process for each parallel run."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from common.errors import UserError
from scripts.launching.jobs import Job
from scripts.launching.run_job import CRASHED, Outcome, run_job


def local_gpus(visible: str) -> list[str]:
    """The GPUs for runs: those in CUDA_VISIBLE_DEVICES, or all.

    Raises:
        UserError: it names more GPUs than there are.
    """
    import torch

    n, named = torch.cuda.device_count(), [name.strip() for name in visible.split(",") if name.strip()]
    if not named:
        return [str(i) for i in range(n)]
    if named[0] == "-1":  # CUDA's name for no GPU
        return []
    if n < len(named):
        raise UserError(
            f"CUDA_VISIBLE_DEVICES is {visible!r}, {len(named)} GPUs, but PyTorch finds {n}. Name GPUs that `nvidia-smi "
            "-L` lists, or unset it."
        )
    return named


class LocalEngine:
    """Runs jobs in processes of this machine, each of which runs one job after another.

    Each process is a pool of its own: if it dies, no other run notices.

    Args:
        slots: number of parallel runs.
        gpus: GPUs that the processes share; []: each process sees all GPUs of this one.
    """

    def __init__(self, slots: int, gpus: Sequence[str] = ()) -> None:
        self.slots, self.gpus = slots, gpus
        self.workers: list[_Worker] = []

    def submit(self, job: Job) -> Future[Outcome]:
        """Start a job; at most `slots` jobs run at once."""
        for worker in [worker for worker in self.workers if worker.is_unfit()]:
            self.workers.remove(worker)
            worker.pool.shutdown()
        idle = next((worker for worker in self.workers if worker.job.done()), None)
        if idle is None:
            used = [worker.gpu for worker in self.workers]
            idle = _Worker(min(self.gpus, key=used.count) if self.gpus else None)
            self.workers.append(idle)
        idle.job = idle.pool.submit(run_job, job.arguments, job.folder)
        return idle.job

    def interrupt(self, number: int) -> None:
        """Send a signal to every running job."""
        for worker in self.workers:
            if not worker.job.done():
                with contextlib.suppress(Exception):  # it may just have died
                    os.kill(worker.pid.result(), number)

    def close(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.pool.shutdown()


class _Worker:
    """A process and its current job."""

    def __init__(self, gpu: str | None) -> None:
        self.gpu, self.job = gpu, Future[Outcome]()
        self.pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_process)
        # The launcher has the progress bar.
        changes = {"TQDM_DISABLE": "1", **({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})}
        with _environment(changes), _blocked(signal.SIGINT):
            self.pid = self.pool.submit(os.getpid)

    def is_unfit(self) -> bool:
        """Whether the process has died, or an unexpected exception may have left something behind."""
        return self.job.done() and (self.job.exception() is not None or self.job.result().code == CRASHED)


@contextlib.contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """Change variables within the block, for a process that starts there."""
    before = {**os.environ}
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _blocked(number: int) -> Iterator[None]:
    """Block a signal within the block, also in processes that start there."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare_process() -> None:
    os.setsid()  # Ctrl-C of the terminal reaches the launcher alone, which passes it on
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    multiprocessing.set_start_method(None, force=True)  # loader workers fork, as in train.py
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)  # the log of each run has its output
    threading.Thread(target=_end_with_launcher, daemon=True).start()


def _end_with_launcher() -> None:
    """Wait until the launcher has ended, then end at once, loader workers included."""
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    launcher.join()
    os.killpg(0, signal.SIGKILL)
