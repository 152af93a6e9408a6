"""A process that does train.py's runs one after another, so that packages are imported once, and the CLIP loaded.

It reads lines of JSON from stdin, train.py's arguments. It answers each on stdout by lines with warnings, and a last
one with the exit code and, if it failed, why. It ends at once with its loader workers when stdin ends, which means that
its launcher has ended.
"""

import contextlib
import gc
import json
import os
import queue
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from typing import IO

from common.errors import show_warnings
from common.kept import keep_between_runs


def main() -> None:
    """Do what comes, until nothing more comes."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    with open(os.devnull, "r+") as nowhere:  # a run's log has all that it prints
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        tasks = os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=0)
        os.dup2(nowhere.fileno(), sys.stdin.fileno())
    keep_between_runs()
    # Between runs nothing is lost. Ray blocks it in all that it starts.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    for arguments in _arriving(tasks):
        # Tasks that make something for several runs look at one domain alone; the runs warn of the whole set.
        is_run = not {"--encode", "--learn-labels"}.intersection(arguments)
        try:
            with show_warnings((lambda line: _answer(answers, warning=line)) if is_run else None):
                (code, error), fit = do(arguments), True
        except Exception as exception:
            traceback.print_exc()
            code, error = 1, "".join(traceback.format_exception_only(exception)).strip()
            fit = False  # who knows what it left behind
        _answer(answers, code=code, error=error, fit=fit)
        if not fit:
            return
        gc.collect()  # before the next run takes its memory, too
        give_gpu_back()
        gc.freeze()  # what is left is there for good, mostly packages, and looking through it takes 0.1 s


def _answer(answers: IO[str], **content: object) -> None:
    print(json.dumps(content), file=answers, flush=True)


def give_gpu_back() -> None:
    """Let go of the GPU's memory that is not in use, for processes beside this one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def do(arguments: Sequence[str]) -> tuple[int, str]:
    """One run in this process; returns its exit code and, if it failed, why."""
    import train

    stdout, stderr = sys.stdout, sys.stderr
    try:
        return train.attempt(list(arguments))
    except SystemExit as error:  # the command line is wrong
        return (error.code if isinstance(error.code, int) else 1), "train.py does not take its command line"
    finally:  # Dassl's logger takes the place of stdout
        with contextlib.suppress(ValueError):
            sys.stdout.flush()
        sys.stdout, sys.stderr = stdout, stderr


def _arriving(tasks: IO[bytes]) -> Iterator[list[str]]:
    """What arrives, while a thread watches that its source is still there."""
    arrived: queue.SimpleQueue[list[str]] = queue.SimpleQueue()

    def watch() -> None:
        for line in tasks:
            arrived.put(json.loads(line))
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    while True:
        yield arrived.get()
