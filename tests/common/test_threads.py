"""The number of threads depends on model and machine alone, and a resumed run uses its recorded number."""

import os
import subprocess
import sys

import pytest
import torch
from quick_run import REPOSITORY

from common import threads
from common.run import RunRecord, read_results, read_run_record
from common.threads import LARGE, loader_workers, omp_num_threads, plan_threads

NAMES = ("OMP_NUM_THREADS", *threads.SLEEP, "OPENBLAS_THREAD_TIMEOUT")


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    """Eight cores and no thread settings in the environment. Restores torch's number of threads."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_depend_on_size_cores_and_omp_num_threads(monkeypatch):
    assert (plan_threads(LARGE - 1), plan_threads(LARGE)) == (1, 8)
    assert [loader_workers(wanted) for wanted in (0, 4, 50)] == [0, 4, 8]
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    assert loader_workers(4) == 0
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert plan_threads(1) == plan_threads(LARGE) == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert omp_num_threads() is None


@pytest.mark.parametrize("words", [["train.py", "--trainer", "CoOp"], ["predict.py", "--model-dir", "a", "a.png"]])
def test_commands_set_sleeping_waits_before_importing_torch(words):
    code = (
        "import os, runpy, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch': print(os.environ['OMP_WAIT_POLICY'], flush=True); os._exit(0)\n"
        "sys.meta_path.insert(0, Watch()); sys.argv = sys.argv[1:]; sys.path.insert(0, '')\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", code, *words]
    found = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout == "PASSIVE\n"


@pytest.fixture
def recorded(tmp_path):
    """The folder of a run with other numbers of threads in its record than on this machine."""
    (tmp_path / "run").mkdir()
    RunRecord({}, threads=3).write(tmp_path / "run")
    return tmp_path / "run"


def test_resumed_run_uses_its_recorded_threads_in_both_stages(recorded, train, capsys):
    assert train("SPG", "red") == 0
    assert "Threads: 3, loader workers: " in capsys.readouterr().out
    assert read_results(recorded / "results.json")["threads"] == 3
    records = [read_run_record(path.parent).threads for path in recorded.parent.rglob("run.json")]
    assert records == [3] * 3


def test_resumed_run_with_omp_num_threads_uses_it_and_prints_a_note(recorded, train, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert train("ZeroshotCLIP", "red") == 0
    assert "OMP_NUM_THREADS is 1, but this run used 3 threads so far" in capsys.readouterr().out
    assert read_run_record(recorded).threads == 1
