"""Real process pools: equal numbers, lost processes, signals, two launchers, features computed once."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from conftest import QUICK, numbers
from other_process import pid_and_gpu
from waiting import wait_for

from common.errors import UserError
from common.locks import RUN_LOCK, run_owner
from common.run import read_run_record
from scripts.launching import local
from scripts.launching.jobs import Job
from scripts.launching.local import DIED, LocalEngine, local_gpus

LONG = [*QUICK, "OPTIM.MAX_EPOCH", "30"]
RUN = "output/stripes/CoOp/tiny/default/red/seed1"


@pytest.fixture
def long_run(start, tmp_path, image_folder, clip_file):
    """long_run(NAME="value") -> a launcher of one CoOp run that has completed an epoch."""

    def run(*opts, **environment):
        launcher = start("coop/main.sh", image_folder, clip_file, *LONG, *opts, **{"TARGETS": "red", **environment})
        launcher.wait_for(lambda: (record := read_run_record(tmp_path / RUN)) and record.history)
        return launcher

    return run


def process_of(tmp_path):
    text = (tmp_path / RUN / RUN_LOCK).read_text(encoding="utf-8")
    return json.loads(text)["pid"] if text else None  # the next process has just emptied it


def test_parallel_jobs_compute_features_and_labels_once(start, tmp_path, image_folder, clip_file):
    words = ("compare.sh", image_folder, clip_file, *QUICK)
    code, output = start(*words, METHODS="coop,spg", JOBS="2", TARGETS="red,blue").end()
    assert code == 0 and output.count(": done in ") == 4, output
    lines = [line for path in tmp_path.glob("output/**/log.txt*") for line in path.read_text("utf-8").splitlines()]
    n_encoded = sum(line.startswith("Encoded ") for line in lines)
    assert n_encoded == len(list(tmp_path.glob("output/feature_cache/*.npy"))) > 0
    labels = [line.split()[-1] for line in lines if line.startswith("Stage I: learning the prompt label of ")]
    assert sorted(labels) == ["blue", "green", "red"]


def test_run_of_lost_process_is_retried_once_and_resumed_later(
    long_run, run_launcher, tmp_path, image_folder, clip_file
):
    launcher = long_run(TARGETS="red,blue", JOBS="2")
    first = process_of(tmp_path)
    os.kill(first, signal.SIGKILL)
    launcher.wait_for(lambda: run_owner(tmp_path / RUN) and process_of(tmp_path) not in (None, first))
    os.kill(process_of(tmp_path), signal.SIGKILL)
    code, output = launcher.end()
    assert code == 1 and "failed with exit code 71: its process died" in output
    assert json.loads((tmp_path / RUN / "failed.json").read_text())["exit_code"] == DIED
    assert len(list((tmp_path / RUN).parents[1].glob("blue/seed1/log.txt*"))) == 1  # the other run went on
    words = ("coop/main.sh", image_folder, clip_file, *LONG)
    assert run_launcher(*words, TARGETS="red,blue")[1].count("finished before") == 1
    assert run_launcher(*words, TARGETS="red,blue", OUTPUT="undisturbed")[0] == 0
    assert numbers(tmp_path / "output") == numbers(tmp_path / "undisturbed")


def test_launcher_interrupted_ends_runs_after_their_step(long_run, tmp_path):
    launcher = long_run("OPTIM.MAX_EPOCH", "2000")
    os.killpg(launcher.process.pid, signal.SIGINT)  # as Ctrl-C of a terminal
    code, output = launcher.end()
    assert code == 130 and "interrupted; the same command resumes it" in output and "Traceback" not in output
    assert output.count("ending after this step") == 1 and run_owner(tmp_path / RUN) is None


def test_launcher_second_signal_ends_runs_at_once(long_run, tmp_path):
    launcher = long_run("OPTIM.MAX_EPOCH", "2000")
    os.kill(process_of(tmp_path), signal.SIGSTOP)  # it cannot finish its step
    os.kill(launcher.process.pid, signal.SIGTERM)
    os.kill(launcher.process.pid, signal.SIGTERM)
    os.kill(process_of(tmp_path), signal.SIGCONT)
    code, output = launcher.end()
    assert code == 143 and "interrupted" in output


def test_run_ends_with_its_killed_launcher(long_run, tmp_path):
    launcher = long_run("OPTIM.MAX_EPOCH", "2000", "DATALOADER.NUM_WORKERS", "1")
    command_line = Path(f"/proc/{process_of(tmp_path)}/cmdline")
    launcher.process.send_signal(signal.SIGKILL)
    wait_for(lambda: not command_line.is_file() or not command_line.read_bytes())


def test_failed_run_prints_its_reason_and_each_warning_once(run_launcher, tmp_path, image_folder, clip_file):
    root = shutil.copytree(image_folder, tmp_path / "mine", ignore=shutil.ignore_patterns("spg_coop_splits"))
    shutil.copy(root / "blue/down/1.png", root / "blue/stray.png")
    (root / "red/down/0.png").write_bytes(b"no image")
    code, output, errors = run_launcher("zsclip/main.sh", root, clip_file, *QUICK)
    reason = f"failed with exit code 1: Cannot read the image {root}/red/down/0.png"
    assert code == 1 and f"[3/3] ZeroshotCLIP on mine, target red, seed 1: {reason}" in output
    assert "1 of 3 runs failed:\n" in output and (output + errors).count("they are in no class folder") == 1, output


def test_worker_processes_stay_warm_and_share_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "run_job", pid_and_gpu)
    engine, job = LocalEngine(2, ["5", "7"]), Job("title", (), tmp_path)
    try:
        both = [engine.submit(job), engine.submit(job)]
        (first, gpu), (_, other) = (future.result().reason.split() for future in both)
        assert {gpu, other} == {"5", "7"}
        assert engine.submit(job).result().reason == f"{first} {gpu}"
    finally:
        engine.close()


@pytest.mark.parametrize(("visible", "expected"), [("", ["0", "1"]), ("1", ["1"]), ("1, 0", ["1", "0"]), ("-1", [])])
def test_gpus_follow_cuda_visible_devices(monkeypatch, visible, expected):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert local_gpus(visible) == expected
    with pytest.raises(UserError, match="CUDA_VISIBLE_DEVICES is '0,1,2', 3 GPUs, but PyTorch finds 2"):
        local_gpus("0,1,2")
