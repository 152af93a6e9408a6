"""Who computes on which core."""

import contextlib
import os


def usable_cores():
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def all_cores(on_cpu):
    """Let the model's threads have every core, where loader workers have nothing to do meanwhile."""
    import torch

    threads = torch.get_num_threads()
    share_cores(0, on_cpu)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def share_cores(wanted_workers, on_cpu):
    """Divide the cores that this process may use between loader workers and the model, without oversubscription.

    Workers leave at least one core to the main process; on a CPU, the model's threads get what the workers leave.
    OMP_NUM_THREADS, where set, stays in force.

    Args:
        wanted_workers: DATALOADER.NUM_WORKERS as configured.
        on_cpu: whether the model computes on the CPU.

    Returns:
        the number of workers to start.
    """
    import torch

    cores = usable_cores()
    workers = min(wanted_workers, cores - 1)
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores - workers)
    return workers
