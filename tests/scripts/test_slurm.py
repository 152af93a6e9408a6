"""scripts/cluster/slurm.sbatch, with stand-ins for SLURM, Ray and the launcher."""

import os
import shutil
import signal
import subprocess

import pytest
from quick_run import REPOSITORY
from waiting import MINUTES, wait_for

# Notes what Ray is started with, and that it ends.
PYTHON = """#!/usr/bin/env bash
case "$*" in
    *get_node_ip*) echo 10.0.0.1 ;;
    *token_hex*) echo secret ;;
    "-m ray.scripts.scripts start"*)
        echo "$*" >> calls
        trap 'echo "ray ended" >> calls; exit' TERM
        while :; do sleep 0.05; done ;;
    "- "*)
        cat > /dev/null
        until [ "$(grep -c "start --block" calls)" -ge $(($2 < 2 ? 1 : 2)) ]; do sleep 0.05; done
        echo "waited for $2 nodes" >> calls ;;
esac
"""
SRUN = """#!/usr/bin/env bash
echo "srun start --block $*" >> calls
"""
LAUNCHER = """
trap 'echo "finishing the step"; sleep 0.3; exit 143' TERM
echo "$ENGINE $RAY_ADDRESS $RAY_AUTH_MODE $RAY_AUTH_TOKEN $1"
touch began
[ "$1" = short ] && exit 3
while :; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path):
    """job(words ..., NAME="value") -> its process, in tmp_path."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "launcher").write_text(LAUNCHER)
    (tmp_path / "calls").touch()
    (tmp_path / "scripts" / "setup.sh").write_text('PYTHON="$PWD/python"; export PYTHON\n')
    for name, text in {"python": PYTHON, "srun": SRUN}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    shutil.copy(REPOSITORY / "scripts/cluster/slurm.sbatch", tmp_path / "job")
    slurm = {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "123456", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURMD_NODENAME": "first", "PATH": f"{tmp_path}:{os.environ['PATH']}"}

    def start(*words, **environment):
        command, pipe = ["bash", str(tmp_path / "job"), *words], subprocess.PIPE
        return subprocess.Popen(
            command, cwd="/", env={**os.environ, **slurm, **environment}, stdout=pipe, stderr=pipe, text=True
        )

    return start


def test_ray_is_there_as_long_as_the_launcher(job, tmp_path):
    process = job("bash", "launcher", "short")
    out, _ = process.communicate(timeout=MINUTES)
    assert process.returncode == 3
    assert out == "ray 10.0.0.1:23456 token secret short\n"
    head, waited, ended = (tmp_path / "calls").read_text().splitlines()
    assert " start --block --num-cpus=" in head and " --head --node-ip-address=10.0.0.1 --port=23456 " in head
    assert (waited, ended) == ("waited for 1 nodes", "ray ended")


def test_ray_is_started_on_the_other_nodes(job, tmp_path):
    assert job("bash", "launcher", "short", SLURM_JOB_NUM_NODES="3").wait(MINUTES) == 3
    calls = (tmp_path / "calls").read_text()
    assert "srun start --block --nodes=2 --ntasks=2 --ntasks-per-node=1 --exclude=first " in calls
    assert "--address=10.0.0.1:23456" in calls
    assert calls.index("waited for 1") < calls.index("srun") < calls.index("waited for 3")


def test_a_warning_reaches_the_launcher_which_ends_first(job, tmp_path):
    process = job("bash", "launcher", "long")
    wait_for((tmp_path / "began").exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=MINUTES)
    assert process.returncode == 143
    assert out.endswith("finishing the step\n")
    assert (tmp_path / "calls").read_text().endswith("ray ended\n")


def test_without_a_launcher_nothing_starts(job, tmp_path):
    process = job()
    _, error = process.communicate(timeout=MINUTES)
    assert process.returncode == 1
    assert error.startswith("Error: name a launcher: sbatch scripts/cluster/slurm.sbatch bash ")
    assert not (tmp_path / "calls").read_text()
