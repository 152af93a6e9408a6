"""Repeating a run from its own record."""

import json
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from quick_run import run_train

from common.run import read_results, write_results
from scripts import rerun
from scripts.rerun import compare, main


@pytest.fixture
def in_this_process(monkeypatch):
    """Make rerun.py repeat runs in the test process."""

    def run(command, **options):
        return subprocess.CompletedProcess(command, run_train(command[2:]))

    return lambda: monkeypatch.setattr(rerun, "subprocess", SimpleNamespace(run=run, DEVNULL=None))


def test_rerun_repeats_a_run(finish_run, tmp_path, in_this_process, capsys):
    finish_run("SPG")
    capsys.readouterr()
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0
    assert "Agrees in every number: accuracy " in capsys.readouterr().out
    assert (tmp_path / "again/prompt_labels").is_dir()  # learned again

    record = read_results(tmp_path / "run/results.json")
    write_results(tmp_path / "run", {**record, "accuracy": 12.5, "revision": "another"})
    shutil.rmtree(tmp_path / "again")
    in_this_process()
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 1
    printed = capsys.readouterr().out
    assert "Does not agree" in printed
    assert "accuracy" in printed and "12.5" in printed
    assert "another" in printed

    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 1
    assert "holds a finished run" in capsys.readouterr().err


def test_rerun_repeats_a_test_of_another_run(finish_run, train, tmp_path, in_this_process):
    in_this_process()
    finish_run("CoOp")
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    assert train("CoOp", "green", flags=flags) == 0
    assert main([str(tmp_path / "tested"), "--output", str(tmp_path / "again")]) == 0
    assert json.loads((tmp_path / "again/results.json").read_text())["model_dir"] == str(tmp_path / "run")


@pytest.mark.parametrize("trainer", ["MaPLe", "PromptSRC"])
def test_rerun_with_depths_from_the_backbone_agrees(finish_run, tmp_path, in_this_process, capsys, trainer):
    finish_run(trainer)  # its default config has depths of 0
    in_this_process()
    assert main([str(tmp_path / "run"), "--output", str(tmp_path / "again")]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("missing", ["results.json", "config.yaml"])
def test_rerun_without_a_record_is_an_error(finish_run, tmp_path, capsys, missing):
    finish_run("ZeroshotCLIP")
    (tmp_path / "run" / missing).unlink()
    capsys.readouterr()
    assert main([str(tmp_path / "run")]) == 1
    message = capsys.readouterr().err
    assert message.startswith("Error: ")
    assert missing in message


def test_differences_are_named_to_the_entry():
    before = {"accuracy": 1.0, "val_history": [1, 2], "versions": {"torch": "2"}, "seconds": 1}
    text, agrees = compare(before, {"accuracy": 1.0, "val_history": [1, 3], "versions": {"torch": "3"}, "seconds": 2})
    numbers, _, causes = text.partition("Possible causes")
    assert not agrees and "val_history.1" in numbers and "versions.torch" in causes
    assert "accuracy" not in text and "seconds" not in text
    assert compare(before, {**before, "versions": {"torch": "3"}, "seconds": 3})[1]
