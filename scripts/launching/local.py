"""Jobs on this machine: one warm process for each parallel run."""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor

from common.errors import UserError
from scripts.launching.jobs import Job
from scripts.launching.run_job import CRASHED, Outcome, run_job


def local_gpus(visible: str) -> list[str]:
    """The GPUs for runs: those in CUDA_VISIBLE_DEVICES, or all; UserError if it names more than there are."""
    import torch

    n, named = torch.cuda.device_count(), [name.strip() for name in visible.split(",") if name.strip()]
    if not named:
        return [str(i) for i in range(n)]
    if named[0] == "-1":  # CUDA's name for no GPU
        return []
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
        for worker in [worker for worker in self.workers if worker.is_unfit()]:
            self.workers.remove(worker)
            worker.pool.shutdown()
        idle = next((worker for worker in self.workers if worker.job is None or worker.job.done()), None)
        if idle is None:
            used = [worker.gpu for worker in self.workers]
            idle = _Worker(min(self.gpus, key=used.count) if self.gpus else None)
            self.workers.append(idle)
        idle.job = idle.pool.submit(run_job, job.arguments, job.folder)
        return idle.job

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

    def is_unfit(self) -> bool:
        """Whether the process has died, or an unexpected exception may have left something behind."""
        job = self.job
        return job is not None and job.done() and (job.exception() is not None or job.result().code == CRASHED)


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
