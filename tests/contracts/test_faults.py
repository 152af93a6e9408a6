"""Killed, interrupted, two at once, out of space, damaged: the numbers stay equal, or one message says the cause."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import time
from functools import partial

import pytest
import torch
from commands import CLIP, QUICK, numbers, run, run_train, script, start, train
from waiting import MINUTES, wait_for

LONG = [*QUICK, *["OPTIM.MAX_EPOCH", "25", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH',10]"]]
COOP, SPG = train("CoOp", "run", *LONG), train("SPG", "run", *LONG, "DATALOADER.NUM_WORKERS", "1")


@pytest.fixture(scope="session")
def undisturbed(images, tmp_path_factory):
    """Numbers of a CoOp and an SPG run that nothing disturbed."""
    found = {}
    for trainer in ("CoOp", "SPG"):
        folder = tmp_path_factory.mktemp(trainer)
        run_train(folder, train(trainer, "run", *LONG, images=images))
        found[trainer] = numbers(folder / "run")
    return found


def stop_when(folder, command, is_reached, number=signal.SIGKILL, delay=0.0):
    """Start a command, send it a signal some seconds after a condition holds, and return its exit code."""
    process = start(folder, command)
    wait_for(is_reached, lambda: process.poll() is None)
    time.sleep(delay)
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.communicate(timeout=MINUTES)
    return process.returncode


def checkpoints(folder):
    """Checkpoints of a CoOp run, the newest last."""
    return sorted(folder.glob("run/prompt_learner/model.pth.tar-*"), key=lambda path: int(path.name.split("-")[-1]))


def test_sigkill_at_random_moments_changes_no_number(undisturbed, folder):
    rng = random.Random(5)
    for _ in range(int(os.environ.get("KILLS", "3"))):
        logs = set(folder.rglob("log.txt*"))
        is_reached = partial(lambda logs: set(folder.rglob("log.txt*")) != logs, logs)
        assert stop_when(folder, SPG, is_reached, delay=rng.uniform(0.0, 2.0)) in (0, -signal.SIGKILL)
    run_train(folder, SPG)
    assert numbers(folder / "run") == undisturbed["SPG"]


def test_sigint_ends_with_130_and_resumes(undisturbed, folder):
    code = stop_when(folder, COOP, lambda: checkpoints(folder), signal.SIGINT)
    assert code == 130 and not (folder / "run/results.json").exists()
    run_train(folder, COOP)
    assert numbers(folder / "run") == undisturbed["CoOp"]


class RunsCode:
    def __reduce__(self):
        return (os.mkdir, ("ran",))


@pytest.mark.parametrize("damage", ["cut off", "code"])
def test_a_damaged_checkpoint_changes_no_number(undisturbed, folder, damage):
    stop_when(folder, COOP, lambda: len(checkpoints(folder)) > 1)
    path = checkpoints(folder)[-1]
    if damage == "code":
        torch.save(RunsCode(), path)
    else:
        path.write_bytes(path.read_bytes()[:1000])
    run_train(folder, COOP)
    assert numbers(folder / "run") == undisturbed["CoOp"]
    assert not (folder / "ran").exists()


def test_two_launchers_on_one_output_share_the_runs(folder):
    command = script("coop/main.sh", "images", CLIP, *QUICK)
    for launcher in [start(folder, command), start(folder, command)]:
        stdout, stderr = launcher.communicate(timeout=MINUTES)
        assert launcher.returncode == 0, stdout + stderr
        assert "| CoOp " in stdout
    found = list(folder.glob("output/**/results.json"))
    assert len(found) == 3
    assert all(len(list(path.parent.glob("log.txt*"))) == 1 for path in found)  # each run started once


def test_a_full_disk_is_one_message_and_the_run_resumes(undisturbed, folder):
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs `unshare -rm`, which mounts a small disk")
    (folder / "disk").mkdir()
    command = shlex.join(map(str, train("SPG", "disk/run", *LONG, "TRAINER.SPG.LABEL_DIR", "labels")))
    lines = f"""
    mount -t tmpfs -o size=4m none disk
    {command}; test $? = 1 || exit 9
    test ! -e disk/run/results.json || exit 8
    mount -o remount,size=256m disk
    {command} && cp -r disk/run run"""
    stderr = run(folder, ["unshare", "-rm", "bash", "-c", lines])[1]
    assert "disk is full" in stderr or "No space left" in stderr
    assert numbers(folder / "run") == undisturbed["SPG"]


@pytest.mark.parametrize(
    ("trainer", "place", "tensor", "flags", "named"),
    [
        ("ZeroshotCLIP", "clip.pt", "text_projection", (), ("clip.pt", "text_projection")),
        ("CoOp", "run/*/model-best.pth.tar", "ctx", ("--eval-only", "--model-dir", "run"), ("ctx",)),
        ("SPG", "prompt_labels/**/blue.pt", "ctx", (), ("blue.pt",)),
    ],
)
def test_nan_in_a_file_is_an_error(folder, trainer, place, tensor, flags, named):
    shutil.copy(CLIP, folder / "clip.pt")
    run_train(folder, train(trainer, "run", backbone="clip.pt"))
    (path,) = folder.glob(place)
    weights = torch.load(path, map_location="cpu", weights_only=True)
    tensors = weights.get("state_dict", weights) if isinstance(weights, dict) else {tensor: weights}
    tensors[tensor].view(-1)[0] = float("nan")
    torch.save(weights, path)
    message = run_train(folder, train(trainer, "other", flags=flags, backbone="clip.pt"), code=1)[1]
    assert message.startswith("Error: ") and all(word in message for word in named)
    assert not (folder / "other/results.json").exists()
