"""Launchers as processes, and in the process of the tests where processes are not the point."""

import contextlib
import io
import os
import signal
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import pytest
from quick_run import REPOSITORY
from waiting import MINUTES, wait_for

from common.run import read_results

CLIP = str(REPOSITORY / "assets/mini_clip.pt")
QUICK = [
    *("DATALOADER.NUM_WORKERS", "0", "DATALOADER.TRAIN_X.BATCH_SIZE", "8", "OPTIM.MAX_EPOCH", "2"),
    *("TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',2]"),
]


class Launcher:
    """A launcher in a process group of its own; `text()` is its output so far."""

    def __init__(self, log, command, environment):
        self.log = log
        with open(log, "wb") as handle:
            streams = {"stdout": handle, "stderr": handle}
            self.process = subprocess.Popen(command, cwd=log.parent, env=environment, start_new_session=True, **streams)

    def text(self):
        return self.log.read_text(encoding="utf-8")

    def wait_for(self, condition):
        wait_for(condition, lambda: self.process.poll() is None, self.text)

    def end(self):
        """Wait for the end; returns exit code and output."""
        return self.process.wait(timeout=MINUTES), self.text()


@pytest.fixture
def start(tmp_path):
    """start("coop/main.sh", words ..., NAME="value") -> Launcher in tmp_path."""
    launchers = []

    def run(script, *words, **environment):
        environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "1", "OMP_NUM_THREADS": "1", **environment}
        command = ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)]
        launchers.append(Launcher(tmp_path / f"launcher{len(launchers)}.log", command, environment))
        return launchers[-1]

    yield run
    for launcher in launchers:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.process.pid, signal.SIGKILL)
        launcher.process.wait()


class Here:
    """An engine that runs jobs in this process."""

    slots = 1

    def submit(self, job):
        from scripts.launching.local import run_job

        future = Future()
        with contextlib.redirect_stdout(io.StringIO()):
            future.set_result(run_job(job.arguments, job.folder))
        return future

    def interrupt(self, number):
        pass

    def close(self):
        pass


@pytest.fixture
def run_launcher(tmp_path, monkeypatch, capsys):
    """Run a launcher in process: run_launcher("coop/main.sh", words ..., NAME="value") -> (code, output, errors)."""
    from scripts import launch
    from scripts.launching import local

    def run(script, *words, **environment):
        protocol, method = Path(script).stem.replace("main", "multi"), Path(script).parent.name
        words = [*(["--protocol", protocol, "--methods", method] if method else ["--compare"]), *map(str, words)]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(local, "LocalEngine", lambda *args: Here())
            for name, value in {"SEEDS": "1", **environment}.items():
                patch.setenv(name, value)
            code = launch.main(words)
        return code, *capsys.readouterr()

    return run


def numbers(output):
    """All reproducible results of an output folder, by run folder."""
    keys, found = ("accuracy", "macro_f1", "accuracy_by_domain", "val_history", "loss_history"), {}
    for path in Path(output).rglob("results.json"):
        results = read_results(path)
        files = [(path.parent / name).read_bytes() for name in ("logits.npy", "predictions.csv")]
        found[str(path.relative_to(output))] = [results[key] for key in keys] + files
    return found
