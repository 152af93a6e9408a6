"""Who computes on which core."""

import os


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

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(wanted_workers, cores - 1)
    if on_cpu and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cores - workers)
    return workers
