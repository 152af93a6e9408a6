"""How many threads compute, and how they wait for each other: all that a run knows of the machine's cores.

Threads of a parallel loop wait for the last one. By default they spin meanwhile, so that where other work has the core
of one of them, the others burn theirs, thousands of times a second. On 2 cores, whole runs of SPG on MiniDigits
(`TARGETS=sketch SEEDS=1 bash scripts/spg/main.sh mini_digits`), then five steps of CoOp with a CLIP of ViT-B/16's size:

                                   alone   beside one busy loop   two at once
    SPG, as PyTorch has it         17.9 s         401 s             314 s
    SPG, one thread that sleeps    18.7 s          21 s              22 s
    CoOp, as PyTorch has it         5.0 s        14.5 s             20 s
    CoOp, two that sleep at once    5.6 s         9.4 s             9.8 s
    CoOp, that spin 200 times       5.3 s         8.8 s             9.4 s
    CoOp, that spin 2,000 times     4.8 s        10.3 s            10.5 s

Two threads on two cores beside a third get four thirds of a core: 1.5 times alone at best. How many threads pay: with
two instead of one a step of CoOp (7 classes) is 1.06 times as fast with 1.7 million weights in the towers, 1.25 with 6,
1.4 with 13, 1.5 with 43 and 1.6 with 124 (ViT-B/16); beside other load the second costs a tiny CLIP more than that.
"""

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

# Between the tiny CLIPs (2 to 6 million weights in both towers, without the vocabulary) and any real one (RN50: 76).
LARGE = 8_000_000

# Of GNU's OpenMP, which PyTorch comes with, and of Intel's. GNU's threads look so many times before they sleep: long
# enough for the short waits between two loops, too short to hurt beside other load (see the table).
OPENMP_WAITING = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "200", "KMP_BLOCKTIME": "0"}
OPENMP_NAMES = tuple(OPENMP_WAITING)
# NumPy's and SciPy's OpenBLAS: as a power of two, cycles until an idle thread sleeps; this is the least.
BLAS_WAITING = ("OPENBLAS_THREAD_TIMEOUT", "4")


def settle_waiting() -> None:
    """Have threads that wait for each other sleep instead of spinning, unless the environment says how they wait.

    It counts only before NumPy and PyTorch are imported, and passes on to processes that are started.
    """
    if not any(name in os.environ for name in OPENMP_NAMES):
        os.environ.update(OPENMP_WAITING)
    os.environ.setdefault(*BLAS_WAITING)


def waiting() -> str:
    """How threads wait, by the environment: "OMP_WAIT_POLICY=PASSIVE KMP_BLOCKTIME=0"."""
    return " ".join(f"{name}={os.environ[name]}" for name in OPENMP_NAMES if name in os.environ) or "as OpenMP has it"


@functools.cache
def usable_cores() -> int:
    """Number of cores that this process may use, by its affinity and the quota of its container."""
    from joblib import cpu_count

    return cpu_count()


def loader_workers(wanted: int) -> int:
    """The number of loader workers to start: as DATALOADER.NUM_WORKERS has it, but one core is the main process's."""
    return min(wanted, usable_cores() - 1)


@dataclass(frozen=True)
class Threads:
    """Numbers of threads that a model computes with.

    Attributes:
        alone: where nothing else of the run computes.
        beside_workers: while loader workers decode images.
    """

    alone: int
    beside_workers: int

    def use(self, workers: int) -> None:
        """Compute with these from now on.

        Args:
            workers: how many loader workers decode meanwhile.
        """
        import torch
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(self.beside_workers if workers else self.alone)
        threadpool_limits(self.alone, user_api="blas")

    @contextlib.contextmanager
    def all(self) -> Iterator[None]:
        """Within the block, compute with those of a model alone: loader workers have nothing to do meanwhile."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.alone)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def plan_threads(n_weights: int, workers: int) -> Threads:
    """The threads for a model: by its size and the machine alone, so that a command repeats its numbers on any day.

    OMP_NUM_THREADS, where set, is in force instead.

    Args:
        n_weights: of the model's towers.
        workers: loader workers, from `loader_workers`.
    """
    number = asked_for()
    if number is None and n_weights < LARGE:
        number = 1
    if number is not None:
        return Threads(number, number)
    return by_cores(workers)


@dataclass(frozen=True)
class Share:
    """What each of several runs at once may take of the machine.

    Attributes:
        runs: how many at once.
        workers: loader workers of each, at most.
    """

    runs: int
    workers: int


def share_cores(runs: int, threads: int) -> Share:
    """The cores shared by runs at once: all together they take no more threads than there are cores.

    A run's threads stay what they are, so that its numbers do not depend on how many run beside it: there are fewer
    loader workers, and fewer runs where the model takes all cores.

    Args:
        runs: how many are wanted.
        threads: that each computes with.
    """
    cores = usable_cores()
    runs = max(1, min(runs, cores // threads))
    return Share(runs, max(0, cores // runs - threads))


def by_cores(workers: int) -> Threads:
    """All cores for the model, but for those that loader workers take."""
    cores = usable_cores()
    return Threads(cores, max(1, cores - workers))


def asked_for() -> int | None:
    """OMP_NUM_THREADS; None where it is not set, or no number that OpenMP takes."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(first) if first.isdecimal() and int(first) > 0 else None
