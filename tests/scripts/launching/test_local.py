"""Real process pools: lost processes, signals, failures, GPUs."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import QUICK
from other_process import die, pid_and_gpu
from waiting import wait_for

from common.errors import UserError
from common.locks import RUN_LOCK, run_owner
from common.progress import progress
from common.run import read_run_record
from scripts.launching import local
from scripts.launching.jobs import Job
from scripts.launching.local import DIED, JobLog, LocalEngine, local_gpus, run_jobs

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


def test_run_of_lost_process_is_retried_once(monkeypatch, tmp_path):
    monkeypatch.setattr(local, "run_job", die)
    jobs = [Job(f"{n} deaths", (str(n),), tmp_path / str(n)) for n in range(3)]
    with progress(total=3, description="test", unit="run") as bar, contextlib.closing(LocalEngine(2)) as engine:
        log = JobLog(bar)
        run_jobs(jobs, engine, log)
    assert log.failed == {jobs[2]: "failed with exit code 71: its process died (killed, or out of memory)"}
    assert [len((job.folder / "starts").read_text()) for job in jobs] == [1, 2, 2]
    assert json.loads((jobs[2].folder / "failed.json").read_text())["exit_code"] == DIED


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


def test_run_and_its_children_end_with_a_killed_launcher(tmp_path):
    code = f"import sys; sys.path[:0] = {sys.path}; import other_process; other_process.run_sleeping_job(sys.argv[1])"
    launcher, pids = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]), tmp_path / "pids"
    wait_for(lambda: pids.is_file() and pids.read_text().endswith("\n"), lambda: launcher.poll() is None)
    launcher.kill()
    launcher.wait()
    command_lines = [Path(f"/proc/{pid}/cmdline") for pid in pids.read_text().split()]
    wait_for(lambda: not any(path.is_file() and path.read_bytes() for path in command_lines))


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
