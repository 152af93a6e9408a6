"""Loader workers: their priority, sockets in a long TMPDIR, and errors that reach the main process."""

import contextlib
import multiprocessing.util
import os
import sys
import tempfile
from multiprocessing.queues import Queue
from typing import Any

# Linux's limit for the path of a socket, less the names that multiprocessing appends to the temporary folder.
MAX_FOLDER_BYTES = 107 - len("/pymp-12345678/listener-12345678")


def prepare_loader_workers(workers: int) -> None:
    """Prepare this process for loaders with `workers` workers, before one starts."""
    if workers:
        Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]  # not in its stubs
    if workers and len(os.fsencode(tempfile.gettempdir())) > MAX_FOLDER_BYTES:
        # multiprocessing creates its folder once, and workers inherit it. Other temporary files stay in TMPDIR.
        before, tempfile.tempdir = tempfile.tempdir, "/tmp"
        multiprocessing.util.get_temp_dir()
        tempfile.tempdir = before


def lower_priority(worker: int) -> None:
    with contextlib.suppress(OSError):  # not allowed
        os.nice(5)  # workers on all cores do not slow down the main process


def _send_error(queue: Any, error: Exception, item: Any) -> None:
    """Send an error instead of a batch that a worker could not send: the loader would wait for that batch forever."""
    from torch._utils import ExceptionWrapper
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None and isinstance(item, tuple):
        queue.put((item[0], ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process")))
