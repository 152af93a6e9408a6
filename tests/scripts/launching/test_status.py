"""scripts/status.py: runs that are done, running, waiting or failed."""

import subprocess
import sys

import pytest
from quick_run import REPOSITORY

from common.locks import run_owner
from common.run import RunRecord
from scripts import status
from scripts.launching import status as states
from scripts.launching.jobs import Job
from scripts.launching.local import Outcome, save_failure

HOLD = """
import sys; sys.path.insert(0, {repository!r})
from common.locks import run_lock
with run_lock({folder!r}):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """hold(folder): another process locks it until the test ends; returns the process id."""
    processes = []

    def start(folder):
        code = HOLD.format(repository=str(REPOSITORY), folder=str(folder))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen([sys.executable, "-c", code], **pipes))
        assert processes[-1].stdout.readline() == "held\n"
        return processes[-1].pid

    yield start
    for process in processes:
        process.communicate("")


def test_status_prints_every_state(tmp_path, capsys, hold, monkeypatch):
    output = tmp_path / "output"
    jobs = {name: Job(name, (), output / "set" / name) for name in ("done", "fails", "queued", "runs", "waits")}
    for job in jobs.values():
        job.folder.mkdir(parents=True)
    states.save_plan(jobs.values(), {jobs["queued"]: "12_3"})
    states.save_plan(jobs.values())  # another launcher keeps the id
    (jobs["done"].folder / "results.json").write_text("{}")
    save_failure(jobs["fails"].folder, Outcome(1, "There is no folder data."))
    RunRecord({}, history=[{}, {}]).write(jobs["runs"].folder)
    pid = hold(jobs["runs"].folder)
    assert run_owner(jobs["runs"].folder).startswith(f"process {pid} on ")
    monkeypatch.setattr(states, "queued_jobs", lambda: {"12_3": "PENDING (Priority)"})
    assert status.main([str(output)]) == 0
    fails, queued, runs, waits, summary = capsys.readouterr().out.splitlines()
    assert fails == "failed   set/fails: exit code 1: There is no folder data."
    assert queued == "waiting  set/queued: SLURM job 12_3 PENDING (Priority)"
    assert runs.startswith(f"running  set/runs: 2 epochs, process {pid} on ")
    assert waits == "waiting  set/waits"
    assert summary == "5 runs: 1 done, 1 failed, 1 running, 2 waiting"
    assert status.main(["--all", str(output / "set/done")]) == 0
    assert "1 done" in capsys.readouterr().out


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_status_of_folder_without_runs_is_an_error(tmp_path, monkeypatch, capsys, folder):
    monkeypatch.chdir(tmp_path)
    assert status.main([folder]) == 1
    assert folder in capsys.readouterr().err
