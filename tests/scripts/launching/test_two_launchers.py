"""Launchers as processes: two at once on one OUTPUT, and one whose worker is killed; no run is made twice or lost."""

import json
import os
import signal
import subprocess
import sys

import pytest
from quick_run import REPOSITORY
from scripts.launching.conduct import LAUNCHER_LOCK
from scripts.launching.runs import ASKED
from test_launch import QUICK
from waiting import MINUTES, wait_for

from common.run.history import HISTORY_FILE
from common.run.lock import LOCK_FILE, owned
from scripts import kill_trial

WAITS = "does it, so its result is waited for"


class Launcher:
    """A launcher that runs; what it has said so far is in `said()`."""

    def __init__(self, log, command, environment):
        self.log = log
        with open(log, "wb") as handle:
            self.process = subprocess.Popen(
                command, cwd=log.parent, env=environment, stdout=handle, stderr=handle, start_new_session=True
            )

    def said(self):
        return self.log.read_text()

    def wait_for(self, condition):
        wait_for(condition, lambda: self.process.poll() is None, self.said)

    def ends(self):
        code = self.process.wait(timeout=MINUTES)
        return code, self.said()


@pytest.fixture
def start(tmp_path):
    """start("coop/main.sh", words ..., NAME="value") -> Launcher."""
    started = []

    def run(script, *words, **environment):
        environment = {**os.environ, "PYTHON": sys.executable, "SEEDS": "1", **environment}
        command = ["bash", str(REPOSITORY / "scripts" / script), *map(str, words)]
        started.append(Launcher(tmp_path / f"launcher{len(started)}.log", command, environment))
        return started[-1]

    yield run
    for launcher in started:
        if launcher.process.poll() is None:
            launcher.process.kill()
            launcher.process.wait()


def test_two_launchers_share_the_runs(start, tmp_path, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK)
    both = [start(*words), start(*words)]
    ends = [launcher.ends() for launcher in both]
    assert [code for code, _ in ends] == [0, 0], ends
    assert sum(said.count(": done in ") for _, said in ends) == 3
    assert all(said.count("| CoOp ") == 1 for _, said in ends)  # each has the results of all
    runs = list((tmp_path / "output").rglob("results.json"))
    assert len(runs) == 3
    for run in runs:  # begun once
        assert len(list(run.parent.glob("log.txt*"))) == 1


def test_what_a_killed_launcher_did_another_one_ends(start, launched, tmp_path, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK, "OPTIM.MAX_EPOCH", "60")
    run = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1"
    first = start(*words, TARGETS="red")
    first.wait_for((run / HISTORY_FILE).is_file)
    worker = json.loads((run / LOCK_FILE).read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)  # until another launcher is there
    second = start(*words, TARGETS="red")
    second.wait_for(lambda: WAITS in second.said())
    assert not (run / "results.json").is_file()
    first.process.send_signal(signal.SIGKILL)
    os.kill(worker, signal.SIGCONT)
    code, said = second.ends()
    assert code == 0, said
    assert said.count(WAITS) == 1 and "going on, log in the newest " in said and "/log.txt-*" in said
    assert launched(*words, TARGETS="red", OUTPUT="undisturbed").returncode == 0
    assert kill_trial.outcome(run) == kill_trial.outcome(
        tmp_path / "undisturbed" / run.relative_to(tmp_path / "output")
    )


def test_a_run_whose_process_is_killed_is_ended_by_another(start, launched, tmp_path, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK, "OPTIM.MAX_EPOCH", "60")
    run = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1"
    launcher = start(*words, TARGETS="red")
    launcher.wait_for((run / HISTORY_FILE).is_file)
    os.kill(json.loads((run / LOCK_FILE).read_text())["pid"], signal.SIGKILL)
    code, said = launcher.ends()
    assert code == 0, said
    assert said.count("its process died (SIGKILL); once more, going on where it stopped") == 1
    assert launched(*words, TARGETS="red", OUTPUT="undisturbed").returncode == 0
    assert kill_trial.outcome(run) == kill_trial.outcome(
        tmp_path / "undisturbed" / run.relative_to(tmp_path / "output")
    )


def test_a_waiting_launcher_goes_on_with_others(start, tmp_path, image_folder, clip_file):
    base = tmp_path / "output/stripes/ZeroshotCLIP/tiny/default"
    held = base / "blue/seed1" / ASKED
    held.mkdir(parents=True)
    with owned(held, LAUNCHER_LOCK):
        launcher = start("zsclip/main.sh", image_folder, clip_file, "DATALOADER.NUM_WORKERS", "0")
        launcher.wait_for(lambda: launcher.said().count(": done in ") == 2)
        assert f"process {os.getpid()} on " in launcher.said()
        assert not (base / "blue/seed1/results.json").is_file()
    code, said = launcher.ends()
    assert code == 0 and said.count(": done in ") == 3


def test_a_launcher_that_waits_can_be_interrupted(start, tmp_path, image_folder, clip_file):
    held = tmp_path / "output/stripes/ZeroshotCLIP/tiny/default/blue/seed1" / ASKED
    held.mkdir(parents=True)
    with owned(held, LAUNCHER_LOCK):
        launcher = start("zsclip/main.sh", image_folder, clip_file, TARGETS="blue")
        launcher.wait_for(lambda: WAITS in launcher.said())
        launcher.process.send_signal(signal.SIGTERM)
        code, said = launcher.ends()
    assert code == 143 and "Traceback" not in said
