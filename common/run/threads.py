"""threads.json: the numbers of threads that a run computes with, so that it goes on with them where it is resumed."""

from dataclasses import asdict
from pathlib import Path

from common.run.folder import has_begun
from common.run.records import read_record, write_record
from common.threads import Threads, by_cores

THREADS_FILE = "threads.json"


def write_threads(folder: str | Path, threads: Threads) -> None:
    """Note the threads of the run in a folder."""
    write_record(Path(folder) / THREADS_FILE, asdict(threads))


def read_threads(folder: str | Path, workers: int) -> Threads | None:
    """The threads that the run in a folder has computed with so far; None for one that has not begun.

    Args:
        workers: loader workers, for a run that was begun when all models took all cores, and nothing was noted.
    """
    try:
        return Threads(**read_record(Path(folder) / THREADS_FILE))
    except FileNotFoundError:
        return by_cores(workers) if has_begun(folder) else None
    except (OSError, ValueError, TypeError):
        return None
