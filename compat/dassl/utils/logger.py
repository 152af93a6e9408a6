"""A copy of everything that is printed, in a file."""

import os
import os.path as osp
import sys
import time

from .tools import mkdir_if_missing

__all__ = ["Logger", "setup_logger"]


class Logger:
    """Stands in for ``sys.stdout``: writes to the console and to a file, line by line.

    Args:
        fpath (str): the log file; its folder is made. None: the console only.
        console: the stream to pass everything on to; default: the present ``sys.stdout``.
    """

    def __init__(self, fpath=None, console=None):
        self.console = sys.stdout if console is None else console
        self.file = None
        if hasattr(self.console, "reconfigure"):
            self.console.reconfigure(errors="backslashreplace")
        if fpath is not None:
            mkdir_if_missing(osp.dirname(osp.abspath(fpath)))
            # Line-buffered: the log of a killed run ends with its last line.
            self.file = open(fpath, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getattr__(self, name):
        # isatty, encoding, fileno ... are those of the console.
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)

    def write(self, text):
        """Write ``text`` to both and return its length."""
        self.console.write(text)
        if self.file is not None:
            self.file.write(text)
        if "\n" in text:
            self.console.flush()
        return len(text)

    def flush(self):
        """Flush both."""
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self):
        """Close the file; the console stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output=None):
    """Copy all that is printed from now on to a log file.

    An existing log is kept: the new one then carries the time (``log.txt-2024-09-29-17-03-55``).
    Called again, the copy goes to the new file only.

    Args:
        output (str): a folder (the file is ``log.txt``) or a file ending in .txt or .log; None: do nothing.
    """
    if output is None:
        return
    output = os.fspath(output)
    fpath = output if output.endswith((".txt", ".log")) else osp.join(output, "log.txt")
    if osp.exists(fpath):
        fpath = stamped = fpath + time.strftime("-%Y-%m-%d-%H-%M-%S")
        count = 1
        while osp.exists(fpath):
            count += 1
            fpath = f"{stamped}-{count}"
    console = sys.stdout
    if isinstance(console, Logger):
        console.close()
        console = console.console
    sys.stdout = Logger(fpath, console)
