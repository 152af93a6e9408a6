"""Loader workers: sockets that fit any TMPDIR, and errors that reach the main process."""

import multiprocessing.util
import os
import sys
import tempfile
from multiprocessing.queues import Queue
from typing import Any

from common.errors import UserError
from common.files import is_writable

# Linux's limit for the path of a socket, without what multiprocessing appends to the temporary folder.
MAX_FOLDER_BYTES = 107 - len("/pymp-12345678/listener-12345678")
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def prepare_loader_workers(workers: int) -> None:
    """Prepare this process for loaders with this number of workers; call it before a loader starts them.

    Raises:
        UserError: no temporary folder can be used.
    """
    if not workers:
        return
    _use_short_sockets()
    Queue._on_queue_feeder_error = _send_error  # type: ignore[attr-defined]  # not in its stubs


def _use_short_sockets():
    try:
        folder = tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("TMPDIR: no temporary folder is writable. Set TMPDIR to a folder with free space.") from error
    if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES:
        return
    short = next(filter(is_writable, SHORT_FOLDERS), None)
    if short is None:
        raise UserError(
            f"TMPDIR: {folder} is too long for the sockets of loader workers. Set TMPDIR to a folder of at most "
            f"{MAX_FOLDER_BYTES} bytes, or DATALOADER.NUM_WORKERS 0."
        )
    # multiprocessing makes its folder once, and workers inherit it. Other temporary files stay in TMPDIR.
    before = tempfile.tempdir
    tempfile.tempdir = short
    try:
        multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def _send_error(queue: Any, error: Exception, item: Any) -> None:
    """Send an error in the place of the batch that a worker could not send, for which a loader would wait forever."""
    from torch._utils import ExceptionWrapper
    from torch.utils.data import get_worker_info

    if get_worker_info() is not None and isinstance(item, tuple):
        queue.put((item[0], ExceptionWrapper(sys.exc_info(), where="in DataLoader worker process")))
