"""A run goes on with the threads that it began with: the last digits of its numbers depend on them."""

from pathlib import Path

from common.run.threads import read_threads, write_threads
from common.threads import Threads, asked_for, usable_cores, waiting


def threads_of_run(folder: str | Path, planned: Threads, n_workers: int, note: bool, tell: bool) -> Threads:
    """The threads to compute a run with.

    Args:
        folder: of the run, which may have begun.
        planned: those of a new one.
        n_workers: of its loaders.
        note: whether the folder is to hold those of a new one.
        tell: whether they are told.

    Returns:
        those that it began with, or where OMP_NUM_THREADS is set or it is a new one those planned.
    """
    threads = _threads_of_run(folder, planned, n_workers, note)
    if tell:
        print(
            f"Threads: {threads.alone}, beside loader workers {threads.beside_workers} ({waiting()}); "
            f"cores: {usable_cores()}"
        )
    return threads


def _threads_of_run(folder, planned, n_workers, note):
    known = read_threads(folder, n_workers)
    if asked_for() is None and known is not None:
        return known
    if known not in (None, planned):
        print(
            f"Note: OMP_NUM_THREADS is {asked_for()}, but so far this run computed with {known.beside_workers} "
            f"threads and, where no loader workers ran, with {known.alone}; the last digits may differ."
        )
    if note and known != planned:
        write_threads(folder, planned)
    return planned
