"""Repeating a run from its own record."""

import subprocess
from types import SimpleNamespace

import pytest
from quick_run import run_train

from common.run import read_results, write_results
from scripts import rerun
from scripts.rerun import main


@pytest.fixture
def in_this_process(monkeypatch):
    """Make rerun.py repeat runs in the test process."""

    def run(command, **options):
        return subprocess.CompletedProcess(command, run_train(command[2:]))

    monkeypatch.setattr(rerun, "subprocess", SimpleNamespace(run=run, DEVNULL=None))


def test_rerun_repeats_a_run(finish_run, capsys):
    run = finish_run("SPG")
    capsys.readouterr()
    again = run.with_name("again")
    assert main([str(run), "--output", str(again)]) == 0
    assert "Agrees in every number: accuracy " in capsys.readouterr().out
    assert (again / "prompt_labels").is_dir()  # learned again
    assert main([str(run), "--output", str(again)]) == 1
    assert "again holds a finished run" in capsys.readouterr().err
    (run / "results.json").unlink()
    assert main([str(run)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and "results.json" in error


def test_rerun_with_other_numbers_prints_the_differences(finish_run, in_this_process, capsys):
    run = finish_run("MaPLe")  # its default config has depths of 0, which the backbone defines
    assert main([str(run), "--output", str(run.with_name("same"))]) == 0, capsys.readouterr().out
    write_results(run, {**read_results(run / "results.json"), "accuracy": 12.5, "revision": "another"})
    assert main([str(run), "--output", str(run.with_name("again"))]) == 1
    printed = capsys.readouterr().out
    assert "Does not agree" in printed and "accuracy" in printed and "12.5" in printed and "another" in printed


def test_rerun_repeats_a_test_of_another_run(finish_run, train, in_this_process):
    run = finish_run("CoOp")
    assert train("CoOp", "green", flags=["--eval-only", "--model-dir", "run", "--output-dir", "tested"]) == 0
    assert main([str(run.with_name("tested")), "--output", str(run.with_name("again"))]) == 0
    assert read_results(run.with_name("again") / "results.json")["model_dir"] == str(run)
