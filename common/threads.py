"""The number of threads of a run. Idle threads sleep instead of spinning (docs/reproducibility.md)."""

import functools
import os

# Weights in both towers. One thread suits tiny CLIPs (2 to 6 million), all cores real ones (RN50: 76 million).
LARGE = 8_000_000
# GNU's and Intel's OpenMP. GNU's threads spin 200 times first, which covers the short waits between two loops.
SLEEP = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "200", "KMP_BLOCKTIME": "0"}


def use_sleeping_waits() -> None:
    """Make idle threads sleep, unless the environment says otherwise. Call it before NumPy and PyTorch are imported."""
    if not SLEEP.keys() & os.environ.keys():
        os.environ.update(SLEEP)
    os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")  # NumPy's and SciPy's BLAS: the shortest time


@functools.cache
def usable_cores() -> int:
    """Number of cores that this process may use: CPU affinity and container quota."""
    from joblib import cpu_count

    return cpu_count()


def loader_workers(wanted: int) -> int:
    """Number of loader workers: at most one for each core, and none on a single core."""
    cores = usable_cores()
    return min(wanted, cores) if cores > 1 else 0


def omp_num_threads() -> int | None:
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None


def plan_threads(n_weights: int) -> int:
    """The threads of a new run: OMP_NUM_THREADS, else one for a tiny CLIP, else all cores."""
    # The last digits of sums depend on this number, so it follows from model and machine, not from other processes.
    return omp_num_threads() or (1 if n_weights < LARGE else usable_cores())


def use_threads(threads: int) -> None:
    """Set the number of threads of PyTorch and BLAS."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")


def share_cores(runs: int, threads: int) -> tuple[int, int]:
    """The number of parallel runs, and of loader workers for each, so that all threads together fit on the cores."""
    runs = max(1, min(runs, usable_cores() // threads))
    return runs, max(0, usable_cores() // runs - threads)
