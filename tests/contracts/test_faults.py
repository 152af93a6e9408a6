"""Killed, interrupted, two at once, out of space, damaged: the numbers stay equal, or one message says the cause."""

import os
import random
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import torch
from commands import CLIP, QUICK, bash, make_images, numbers, results, run, run_train, spg, start, train
from waiting import MINUTES, wait_for

LONG = ("DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "25", "TRAINER.SPG.STAGE1_OPTS", "['OPTIM.MAX_EPOCH', 10]")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A folder of images with a CoOp and an SPG run that nothing disturbed, and their commands."""
    folder = tmp_path_factory.mktemp("undisturbed")
    make_images(folder / "images")
    commands = {"CoOp": train("CoOp", "run", *LONG[:4]), "SPG": spg("run", *LONG)}
    expected = {}
    for name, command in commands.items():
        run_train(folder, command)
        expected[name] = numbers((folder / "run").rename(folder / name))
        shutil.rmtree(folder / "prompt_labels", ignore_errors=True)
        shutil.rmtree(folder / "feature_cache", ignore_errors=True)
    return folder / "images", commands, expected


@pytest.fixture
def folder(undisturbed, tmp_path):
    """An own copy of the images."""
    shutil.copytree(undisturbed[0], tmp_path / "images")
    return tmp_path


def stop_when(folder, command, is_reached, number=signal.SIGKILL):
    """Start a command, send it a signal once a condition holds, and return its exit code."""
    process = start(folder, command)
    wait_for(is_reached, lambda: process.poll() is None)
    if process.poll() is None:
        os.killpg(process.pid, number)
    process.communicate(timeout=MINUTES)
    return process.returncode


def checkpoints(folder, network):
    """Checkpoints of a run, the newest last."""
    return sorted(folder.glob(f"run/{network}/model.pth.tar-*"), key=lambda path: int(path.name.split("-")[-1]))


def test_sigkill_at_three_random_moments_changes_no_number(undisturbed, folder):
    rng, command = random.Random(5), undisturbed[1]["SPG"]
    for _ in range(3):
        shutil.rmtree(folder / "seen", ignore_errors=True)
        logs = set(folder.rglob("log.txt*"))
        moment = rng.uniform(0.0, 2.0)

        def is_reached(logs=logs, moment=moment):
            if set(folder.rglob("log.txt*")) == logs:
                return False
            time.sleep(moment)
            return True

        assert stop_when(folder, command, is_reached) in (0, -signal.SIGKILL)
    run_train(folder, command)
    assert numbers(folder / "run") == undisturbed[2]["SPG"]


def test_sigint_ends_with_130_and_resumes(undisturbed, folder):
    command = undisturbed[1]["CoOp"]
    code = stop_when(folder, command, lambda: checkpoints(folder, "prompt_learner"), signal.SIGINT)
    assert code == 130 and not (folder / "run/results.json").exists()
    run_train(folder, command)
    assert numbers(folder / "run") == undisturbed[2]["CoOp"]


def damage_by_truncation(path):
    path.write_bytes(path.read_bytes()[:1000])


def damage_by_code(path):
    class RunsCode:
        def __reduce__(self):
            return (os.mkdir, (str(path.parent / "ran"),))

    torch.save(RunsCode(), path)


@pytest.mark.parametrize("damage", [damage_by_truncation, damage_by_code])
def test_a_damaged_checkpoint_changes_no_number(undisturbed, folder, damage):
    command = undisturbed[1]["CoOp"]
    stop_when(folder, command, lambda: len(checkpoints(folder, "prompt_learner")) > 1)
    damage(checkpoints(folder, "prompt_learner")[-1])
    run_train(folder, command)
    assert numbers(folder / "run") == undisturbed[2]["CoOp"]
    assert not (folder / "run/prompt_learner/ran").exists()


def test_two_launchers_on_one_output_share_the_runs(folder):
    command = bash("coop/main.sh", "images", CLIP, *QUICK)
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
    command = shlex.join(map(str, spg("disk/run", *LONG, "TRAINER.SPG.LABEL_DIR", "labels")))
    script = f"""
    mount -t tmpfs -o size=4m none disk
    {command}; test $? = 1 || exit 9
    test ! -e disk/run/results.json || exit 8
    mount -o remount,size=256m disk
    {command} && cp -r disk/run run"""
    stderr = run(folder, ["unshare", "-rm", "bash", "-c", script])[1]
    assert "disk is full" in stderr or "No space left" in stderr
    assert numbers(folder / "run") == undisturbed[2]["SPG"]


def with_nan(source, target, name):
    """Copy a file of tensors with one NaN in one of them."""
    weights = torch.load(source, map_location="cpu", weights_only=True)
    tensors = weights.get("state_dict", weights) if isinstance(weights, dict) else {name: weights}
    tensors[name].view(-1)[0] = float("nan")
    torch.save(weights, target)


def test_nan_in_weights_of_the_backbone_is_an_error(folder):
    with_nan(CLIP, folder / "broken.pt", "text_projection")
    message = run_train(folder, train("ZeroshotCLIP", "run", backbone="broken.pt"), code=1)[1]
    assert message.startswith("Error: ") and "broken.pt" in message and "text_projection" in message


def test_nan_in_a_checkpoint_is_an_error(folder):
    run_train(folder, train("CoOp", "run"))
    path = folder / "run/prompt_learner/model-best.pth.tar"
    with_nan(path, path, "ctx")
    tested = train("CoOp", "tested", flags=("--eval-only", "--model-dir", "run"))
    message = run_train(folder, tested, code=1)[1]
    assert message.startswith("Error: ") and "ctx" in message and not (folder / "tested/results.json").exists()


def test_nan_in_a_prompt_label_is_an_error(folder):
    run_train(folder, spg("run"))
    (path,) = folder.rglob("blue.pt")
    with_nan(path, path, "ctx")
    message = run_train(folder, spg("other"), code=1)[1]
    assert message.startswith("Error: ") and "blue.pt" in message


def test_changed_images_are_not_mixed_with_the_numbers_before(folder):
    run_train(folder, train("CoOp", "run"))
    before = results(folder / "run")["accuracy"]
    for path in (folder / "images/red/down").glob("*.png"):
        shutil.copy(folder / "images/red/across" / path.name, path)
    assert "Error: " in run_train(folder, train("CoOp", "run"), code=1)[1]
    run_train(folder, train("CoOp", "again"))
    assert results(folder / "again")["test_fingerprint"] != results(folder / "run")["test_fingerprint"]
    assert results(folder / "run")["accuracy"] == before
