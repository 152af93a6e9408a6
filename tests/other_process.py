"""Locks that another process holds, and jobs for processes that cannot import the tests' conftest.py."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from quick_run import REPOSITORY
from waiting import MINUTES

HOLD = """
import sys
from pathlib import Path
from common.locks import file_lock
with file_lock(Path(sys.argv[1]), "takes it"):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def lock_elsewhere(path):
    """Lock a file by another process within the block, and kill that process at its end; yields the process."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        env={"PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def owner_seen_elsewhere(folder):
    """The process that runs in a folder, as another process sees it: "process <pid> on <host> since ...", or "None"."""
    code = "import sys; from common.locks import run_owner; print(run_owner(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(folder)]
    environment = {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def pid_and_gpu(arguments, folder):
    """A job that returns its process and its GPU as its reason."""
    from scripts.launching.local import Outcome

    return Outcome(0, f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}")


def die(arguments, folder):
    """A job that kills its process at its first starts; the argument is their number."""
    from scripts.launching.local import Outcome

    folder.mkdir(exist_ok=True)
    with open(folder / "starts", "a+") as starts:
        starts.write("x")
        starts.seek(0)
        if len(starts.read()) <= int(arguments[0]):
            starts.close()
            os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(0)


def sleep(arguments, folder):
    """A job that sleeps and has a child process; it writes their process numbers."""
    child = subprocess.Popen(["sleep", str(MINUTES)])
    (folder / "pids").write_text(f"{os.getpid()} {child.pid}\n")
    time.sleep(MINUTES)


def run_sleeping_job(folder):
    """Run the job `sleep` by an engine, as a launcher does."""
    from scripts.launching import local
    from scripts.launching.jobs import Job

    local.run_job = sleep
    local.LocalEngine(1).submit(Job("title", (), Path(folder))).result()
