"""Real jobs on a local Ray."""

import os
import signal

import pytest
from conftest import QUICK, numbers

from common.run import read_run_record
from scripts.launching import ray as engine

pytest.importorskip("ray")


def test_ray_runs_change_no_number_also_after_an_interruption(start, run_launcher, tmp_path, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK, "OPTIM.MAX_EPOCH", "60")
    settings = {"TARGETS": "blue,red", "JOBS": "1"}
    launcher = start(*words, ENGINE="ray", **settings)
    second = tmp_path / "output/stripes/CoOp/tiny/default/red/seed1"
    launcher.wait_for(lambda: (record := read_run_record(second)) and record.history)
    os.kill(launcher.process.pid, signal.SIGINT)
    code, output = launcher.end()
    assert code == 130 and "interrupted; the same command resumes it" in output and "Traceback" not in output
    assert output.count(": done in ") == 1 and not (second / "results.json").exists()
    for folder in ("output", "local"):
        assert run_launcher(*words, OUTPUT=folder, **settings)[0] == 0
    assert numbers(tmp_path / "output") == numbers(tmp_path / "local")


def test_ray_node_lists_its_differences(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / engine.OUTPUT_ID).write_text("here", encoding="utf-8")
    expected = engine.node_facts(str(tmp_path), (str(tmp_path / "data"),))
    assert engine.node_differences(expected) == ""
    other = {**expected, "torch": "1.0", str(tmp_path): "there", str(tmp_path / "data"): "art, photo"}
    found = engine.node_differences(other)
    assert "torch is " in found and f"{tmp_path} is here, not there" in found
    assert f"{tmp_path / 'data'} is missing, not art, photo" in found


def test_ray_with_wrong_settings_prints_one_message(run_launcher, image_folder):
    for environment, message in (
        ({"TASK_GPUS": "1.5"}, "TASK_GPUS is '1.5'"),
        ({"RAY_ADDRESS": "127.0.0.1:9"}, "RAY_ADDRESS is '127.0.0.1:9', and no Ray answers there"),
    ):
        code, _, errors = run_launcher("coop/main.sh", image_folder, ENGINE="ray", **environment)
        assert code == 1 and f"Error: {message}" in errors
