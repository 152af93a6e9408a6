"""Launchers, as a user types them: as processes, and where these are not the point in the process of the tests."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from quick_run import REPOSITORY, run_train


@pytest.fixture
def bash(tmp_path):
    """Run a script in tmp_path: bash("spg/single.sh", words ..., NAME="value") -> finished process."""

    def run(script, *words, **environment):
        return subprocess.run(
            ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHON": sys.executable, "SEEDS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture
def runs_here(monkeypatch):
    """What a launcher starts, train.py and report.py, runs in this process."""
    from scripts.launching.plan import Ended

    from scripts import report
    from scripts.launching import comparison

    class Here:
        slots, workers_each, several, on_gpu = 1, 99, False, None

        def submit(self, task):
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                self.ended = Ended(task, run_train(list(task.arguments)))

        def next_end(self):
            return self.ended

        def interrupt(self, number):
            pass

        def rest(self):
            pass

        def close(self):
            pass

    def do_report(command, **options):
        return subprocess.CompletedProcess(command, report.main(command[2:]))

    monkeypatch.setattr(comparison, "make_engine", lambda *_: Here())
    monkeypatch.setattr(comparison, "subprocess", SimpleNamespace(run=do_report))


@pytest.fixture
def launched(tmp_path, monkeypatch, capsys, runs_here):
    """As bash, in this process: launch.py's main by the arguments that the script gives it."""
    from scripts import launch

    def run(script, *words, **environment):
        protocol, method = Path(script).stem.replace("main", "multi"), Path(script).parent.name
        arguments = ["--protocol", protocol, "--methods", method] if method else ["--compare"]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            for name, value in {"SEEDS": "1", **environment}.items():
                patch.setenv(name, value)
            code = launch.main([*arguments, *map(str, words)])
        return subprocess.CompletedProcess([script, *words], code, *capsys.readouterr())

    return run
