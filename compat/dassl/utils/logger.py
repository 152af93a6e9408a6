"""Copies of the printed lines in a log file."""

import os
import os.path as osp
import sys
import time
from typing import Any, TextIO

from .tools import mkdir_if_missing


class Logger:
    """Replaces ``sys.stdout``: writes to the console and, line by line, to a file (None: to the console alone)."""

    def __init__(self, fpath: str | None = None, console: TextIO | None = None) -> None:
        self.console = sys.stdout if console is None else console
        self.file = None
        if hasattr(self.console, "reconfigure"):
            self.console.reconfigure(errors="backslashreplace")
        if fpath is not None:
            mkdir_if_missing(osp.dirname(osp.abspath(fpath)))
            # Line-buffered: the log of a killed run ends with its last line.
            self.file = open(fpath, "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115

    def __getattr__(self, name: str) -> Any:
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)  # isatty, encoding, fileno ...

    def write(self, text: str) -> int:
        self.console.write(text)
        if self.file is not None:
            self.file.write(text)
        if "\n" in text:
            self.console.flush()
        return len(text)

    def flush(self) -> None:
        self.console.flush()
        if self.file is not None:
            self.file.flush()

    def close(self) -> None:
        """Close the file; the console stays open."""
        if self.file is not None:
            self.file.close()
            self.file = None


def setup_logger(output: str | None = None) -> None:
    """Copy printed lines to ``output``: a folder (for log.txt) or a .txt or .log file. A new log never overwrites one.

    The second log of a folder has the time in its name: ``log.txt-2024-09-29-17-03-55``.
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
