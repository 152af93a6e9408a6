"""How many threads compute and how they wait: by the machine and the model alone, noted, and kept by a run."""

import ast
import json
import os
import subprocess
import sys

import pytest
import torch
from quick_run import REPOSITORY

from common import threads
from common.run.results import read_results
from common.run.threads import THREADS_FILE, read_threads, write_threads
from common.threads import LARGE, Threads, asked_for, loader_workers, plan_threads, settle_waiting, waiting

NAMES = ("OMP_NUM_THREADS", *threads.OPENMP_NAMES, "OPENBLAS_THREAD_TIMEOUT")


@pytest.fixture(autouse=True)
def untouched(monkeypatch):
    """An environment that says nothing of threads, on eight cores; torch's own number comes back."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_threads_sleep_while_they_wait(monkeypatch):
    settle_waiting()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE" and os.environ["KMP_BLOCKTIME"] == "0"
    assert waiting() == "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=200 KMP_BLOCKTIME=0"


@pytest.mark.parametrize("name", threads.OPENMP_NAMES)
def test_what_the_environment_says_of_waiting_stands_alone(monkeypatch, name):
    monkeypatch.setenv(name, "ACTIVE" if name == "OMP_WAIT_POLICY" else "200")
    settle_waiting()
    assert [other for other in threads.OPENMP_NAMES if other in os.environ] == [name]
    assert waiting() == f"{name}={os.environ[name]}"


@pytest.mark.parametrize(
    ("n_weights", "workers", "expected"),
    [
        (LARGE - 1, 0, Threads(1, 1)),
        (LARGE - 1, 4, Threads(1, 1)),
        (LARGE, 0, Threads(8, 8)),
        (LARGE, 4, Threads(8, 4)),
        (LARGE, 7, Threads(8, 1)),
        (LARGE, 8, Threads(8, 1)),
        (LARGE, 50, Threads(8, 1)),
    ],
)
def test_the_number_follows_from_size_cores_and_workers(n_weights, workers, expected):
    assert plan_threads(n_weights, workers) == expected


def test_omp_num_threads_wins(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert plan_threads(1, 4) == plan_threads(LARGE, 0) == Threads(3, 3)
    for text in ("", "many", "0", "-1"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert asked_for() is None


def test_workers_leave_the_main_process_a_core():
    assert [loader_workers(n) for n in (0, 4, 7, 8, 100)] == [0, 4, 7, 7, 7]


def test_what_computes_takes_them():
    from threadpoolctl import threadpool_info

    plan = Threads(3, 2)
    plan.use(workers=1)
    assert torch.get_num_threads() == 2
    assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} == {3}
    with plan.all():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == 2
    plan.use(workers=0)
    assert torch.get_num_threads() == 3
    Threads(1, 1).use(workers=0)


BEFORE_TORCH = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "numpy"):
            print(name, os.environ.get("OMP_WAIT_POLICY"), os.environ.get("OPENBLAS_THREAD_TIMEOUT"), file=sys.stderr)
        if name == "torch":  # what follows comes too late, and takes seconds
            os._exit(0)

sys.meta_path.insert(0, Watch())
import runpy
sys.argv = sys.argv[1:]
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[0])))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--trainer", "CoOp", "--dataset-config-file", "configs/datasets/folder.yaml"],
        ["predict.py", "--model-dir", "missing", "setup.png"],
        ["scripts/variability.py", "missing"],
    ],
    ids=lambda command: command[0],
)
def test_commands_settle_this_before_numpy_and_torch(command):
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    arguments = [sys.executable, "-c", BEFORE_TORCH, *command]
    found = subprocess.run(arguments, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    lines = [line for line in found.stderr.splitlines() if line.startswith(("torch ", "numpy "))]
    assert {line.split()[0] for line in lines} >= {"torch"}, found.stderr
    assert all(line.split()[1:] == ["PASSIVE", "4"] for line in lines), found.stderr


@pytest.mark.parametrize("path", sorted((REPOSITORY / "scripts").glob("[!_]*.py")), ids=lambda path: path.stem)
def test_the_first_import_of_every_other_command_settles_it_too(path):
    body = ast.parse(path.read_text(encoding="utf-8")).body
    first = next(node for node in body if isinstance(node, (ast.Import, ast.ImportFrom)))
    assert isinstance(first, ast.Import) and first.names[0].name == "_repository"


def test_a_run_notes_its_threads_and_says_them_once(train, tmp_path, capsys):
    assert train("SPG", "red") == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Threads: ")]
    assert len(said) == 1
    how = "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=200 KMP_BLOCKTIME=0"
    assert said[0].startswith(f"Threads: 1, beside loader workers 1 ({how}); cores: ")
    found = read_results(tmp_path / "run/results.json")
    assert (found["threads"], found["threads_alone"], found["threads_beside_workers"]) == (1, 1, 1)
    assert json.loads((tmp_path / "run" / THREADS_FILE).read_text())["alone"] == 1


def test_a_run_goes_on_with_the_threads_it_had(train, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    write_threads(tmp_path / "run", Threads(3, 2))
    assert train("CoOp", "red") == 0
    assert "Threads: 3, beside loader workers 2" in capsys.readouterr().out
    found = read_results(tmp_path / "run/results.json")
    assert (found["threads"], found["threads_alone"], found["threads_beside_workers"]) == (3, 3, 2)


def test_the_stages_of_spg_have_the_same_threads(train, tmp_path):
    (tmp_path / "run").mkdir()
    write_threads(tmp_path / "run", Threads(3, 2))
    assert train("SPG", "red") == 0
    assert {read_threads(path.parent, 0) for path in tmp_path.rglob(THREADS_FILE)} == {Threads(3, 2)}


def test_omp_num_threads_wins_over_what_a_run_had_and_that_is_said(train, tmp_path, monkeypatch, capsys):
    (tmp_path / "run").mkdir()
    write_threads(tmp_path / "run", Threads(3, 2))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert train("CoOp", "red") == 0
    printed = capsys.readouterr().out
    assert "OMP_NUM_THREADS is 1, but so far this run computed with 2 threads" in printed
    assert read_threads(tmp_path / "run", 0) == Threads(1, 1)


def test_a_test_of_another_run_leaves_its_threads_as_they_are(train, tmp_path, monkeypatch):
    assert train("CoOp", "red") == 0
    before = (tmp_path / "run" / THREADS_FILE).read_bytes()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert train("CoOp", "red", flags=("--eval-only", "--model-dir", "run")) == 0
    assert (tmp_path / "run" / THREADS_FILE).read_bytes() == before


def test_more_workers_than_cores(train, tmp_path, monkeypatch):
    """As a run's config has them that was made on a larger machine, or Dassl's own command line."""
    from trainers.saved_run import build_run

    assert train("CoOp", "red") == 0
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("NUM_WORKERS: 0", "NUM_WORKERS: 64"))
    monkeypatch.setattr(threads, "LARGE", 0)
    trainer = build_run(tmp_path / "run")
    assert trainer.cfg.DATALOADER.NUM_WORKERS == 7 and trainer.threads == Threads(8, 1)


def test_a_run_from_before_threads_were_noted_had_all_cores(tmp_path):
    assert read_threads(tmp_path, 2) is None
    (tmp_path / "identity.json").write_text("{}")
    assert read_threads(tmp_path, 2) == Threads(8, 6)
    (tmp_path / THREADS_FILE).write_text("{")
    assert read_threads(tmp_path, 2) is None
