"""Killed, stopped, out of space, damaged: a run resumes with equal numbers, or an error names the cause."""

import errno
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from quick_run import MADE, REPOSITORY, command_line, run_train
from quick_run import outcome as results
from waiting import MINUTES

from common.files import read_json
from common.run import read_results
from trainers.modules.features import FeatureCache

MARK = f"/tmp/spg-ran-code-{os.getpid()}"


@pytest.fixture
def undisturbed(finish_run, tmp_path):
    """Results of an undisturbed run. Its files are deleted."""

    def run(trainer, *opts):
        found = results(finish_run(trainer, *opts))
        for name in MADE:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        return found

    return run


def fail_at_write(monkeypatch, number, error):
    """Make atomic write `number` fail; return the list of all writes."""
    replace, written = os.replace, []

    def failing(source, target, **kwargs):
        written.append(str(target))
        if len(written) == number:
            raise error
        return replace(source, target, **kwargs)

    monkeypatch.setattr(os, "replace", failing)
    return written


@pytest.mark.parametrize("trainer", ["CoOp", "SPG"])
def test_run_on_full_disk_ends_with_one_message(train, undisturbed, tmp_path, monkeypatch, capsys, trainer):
    expected = undisturbed(trainer)
    with monkeypatch.context() as patch:
        files = fail_at_write(patch, 0, None)
        assert train(trainer, "red") == 0
    n_files = len(files)
    assert n_files > 10
    step = 1 if trainer == "CoOp" else 7
    for number in range(1, n_files + 1, step):
        for name in MADE:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        with monkeypatch.context() as patch:
            fail_at_write(patch, number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
            capsys.readouterr()
            code = train(trainer, "red")
            printed = capsys.readouterr()
        # A run continues without its cache. Any other file that cannot be written ends it with a message.
        assert "The disk is full" in printed.err if code else "continues without it" in printed.out, files[number - 1]
        assert not [path for path in tmp_path.rglob(".*.*") if path.is_file() and "run" in path.parts]
        if code:
            assert train(trainer, "red") == 0
        assert results(tmp_path / "run") == expected, f"write {number}: {files[number - 1]}"


class Killed(BaseException):
    """Takes the place of SIGKILL: nothing handles it."""


def scalars(folder):
    """All scalars of a run's event files: {tag: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_resumed_run_writes_the_scalars_of_an_undisturbed_run(train, tmp_path, monkeypatch):
    opts = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    assert train("CoOp", "red", *opts) == 0
    expected = scalars(tmp_path / "run")
    assert {len(steps) for tag, steps in expected.items() if tag.startswith("val/")} == {3}
    for name in ("model.pth.tar-2", "logits.npy"):  # the last is after the test
        shutil.rmtree(tmp_path / "run")
        replace = os.replace

        def kill(source, target, name=name, replace=replace):
            replace(source, target)
            if name in str(target):
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(os, "replace", kill)
            train("CoOp", "red", *opts)
        (events,) = (tmp_path / "run/tensorboard").iterdir()
        with events.open("ab") as handle:
            handle.write(b"half a record")
        assert train("CoOp", "red", *opts) == 0
        assert scalars(tmp_path / "run") == expected, name


def killed_before(epoch, train, monkeypatch, *opts, flags=()):
    """Kill a CoOp run at the start of an epoch, counted from 0."""
    from trainers.coop import CoOp

    def begin(self):
        if self.epoch == epoch:
            raise Killed
        return type(self).__mro__[1].before_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(CoOp, "before_epoch", begin, raising=False)
        with pytest.raises(Killed):
            train("CoOp", "red", *opts, flags=flags)


@pytest.mark.parametrize("opts", [(), ("TRAINER.FEATURES.TRAIN_VIEWS", "2")])
@pytest.mark.parametrize("trainer", ["CoOp", "CoCoOp", "SPG"])
def test_run_killed_between_files_resumes_with_equal_results(train, undisturbed, tmp_path, monkeypatch, trainer, opts):
    expected = undisturbed(trainer, *opts)
    with monkeypatch.context() as patch:
        files = fail_at_write(patch, 0, None)
        assert train(trainer, "red", *opts) == 0
    for number in sorted(random.Random(1).sample(range(1, len(files) + 1), 2)):
        for name in MADE:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
        with monkeypatch.context() as patch:
            fail_at_write(patch, number, Killed())
            with pytest.raises(Killed):
                train(trainer, "red", *opts)
        assert train(trainer, "red", *opts) == 0
        assert results(tmp_path / "run") == expected, f"killed at write {number}: {files[number - 1]}"


@pytest.mark.parametrize("opts", [("DATALOADER.NUM_WORKERS", "1"), ("TRAINER.FEATURES.TRAIN_VIEWS", "3")])
def test_run_with_sigkill_at_random_moments_changes_no_number(tmp_path, image_folder, opts):
    """The environment variable KILLS sets the number of kills."""
    places = {"root": image_folder, "clip": REPOSITORY / "assets/mini_clip.pt"}

    def arguments(name):
        output = tmp_path / name / "run"
        return command_line("SPG", "red", *opts, **places, output=output, batch_size=4, epochs=4)

    assert run_train(arguments("whole")) == 0
    expected, run, rng = results(tmp_path / "whole/run"), tmp_path / "killed/run", random.Random(3)
    for _ in range(int(os.environ.get("KILLS", "1"))):
        with open(tmp_path / "console.txt", "wb") as log:
            command = [sys.executable, REPOSITORY / "train.py", *arguments("killed")]
            process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        try:
            assert process.wait(rng.uniform(3.0, 8.0)) == 0, (tmp_path / "console.txt").read_text()
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with its loader workers
            process.wait()
        else:
            assert results(run) == expected
            shutil.rmtree(tmp_path / "killed")
    assert run_train(arguments("killed")) == 0
    assert results(run) == expected


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_run_after_its_step(train, undisturbed, tmp_path, monkeypatch, capsys, number, code):
    from trainers.coop import CoOp

    expected, handler = undisturbed("CoOp"), signal.getsignal(number)
    step, steps = CoOp.forward_backward, []

    def interrupted(self, batch):
        found = step(self, batch)
        steps.append(found)
        if len(steps) == 3:  # the first step of the second epoch
            os.kill(os.getpid(), number)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(CoOp, "forward_backward", interrupted)
        assert train("CoOp", "red") == code
    assert len(steps) == 3
    message = capsys.readouterr().err
    assert f"Interrupted by {number.name}. The same command resumes after the last completed epoch." in message
    assert signal.getsignal(number) == handler
    assert train("CoOp", "red") == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out
    assert results(tmp_path / "run") == expected


@pytest.fixture
def one_thread(monkeypatch):
    """The model computes on one thread, as with OMP_NUM_THREADS=1 from the start."""
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_loader_workers_change_no_number(train, tmp_path, one_thread):
    assert train("SPG", "red") == 0
    expected = results(tmp_path / "run")
    for name in MADE:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert train("SPG", "red", "DATALOADER.NUM_WORKERS", "2") == 0
    assert results(tmp_path / "run") == expected


@pytest.fixture
def cut(train, undisturbed, tmp_path, monkeypatch):
    """A CoOp run of 4 epochs that was killed in the fourth epoch, and its expected results."""
    opts = ("OPTIM.MAX_EPOCH", "4")
    expected = undisturbed("CoOp", *opts)
    killed_before(3, train, monkeypatch, *opts)
    folder = tmp_path / "run" / "prompt_learner"
    checkpoints = sorted(path.name for path in folder.glob("model*"))
    assert checkpoints == ["model-best.pth.tar", "model.pth.tar-2", "model.pth.tar-3"]

    def resume():
        assert train("CoOp", "red", *opts) == 0
        assert results(tmp_path / "run") == expected

    return folder, resume


def test_resumed_amp_run_restores_the_loss_scale(train, tmp_path, monkeypatch):
    from trainers.modules.clip import backbone as clip_backbone

    monkeypatch.setattr(clip_backbone, "effective_precision", lambda precision, device: precision)
    # The scale grows with every second step, so a fresh scale would differ.
    monkeypatch.setattr(torch.amp.GradScaler, "__init__", growing(torch.amp.GradScaler.__init__))
    opts = ("TRAINER.COOP.PREC", "amp", "OPTIM.MAX_EPOCH", "3")
    assert train("CoOp", "red", *opts) == 0
    expected = results((tmp_path / "run").rename(tmp_path / "undisturbed"))
    killed_before(2, train, monkeypatch, *opts)
    assert read_json(tmp_path / "run/run.json")["history"][-1]["scaler"]["scale"] > 2.0**16
    assert train("CoOp", "red", *opts) == 0
    ours, theirs = (read_json(tmp_path / name / "run.json")["history"] for name in ("run", "undisturbed"))
    assert [epoch["scaler"] for epoch in ours] == [epoch["scaler"] for epoch in theirs]
    assert results(tmp_path / "run") == expected


def growing(init):
    def patched(self, device, **kwargs):
        init(self, device, growth_interval=2, **kwargs)

    return patched


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 3 : len(content) // 3 + 64] = bytes(64)
    content[:4] = b"\0\0\0\0"
    path.write_bytes(bytes(content))


class RunsCode:
    def __reduce__(self):
        return (os.system, (f"touch {MARK}",))


@pytest.mark.parametrize("damage", [truncate, flip_bits, lambda path: torch.save(RunsCode(), path)])
def test_run_with_damaged_checkpoint_resumes_from_the_previous_one(cut, capsys, damage):
    folder, resume = cut
    damage(folder / "model.pth.tar-3")
    resume()
    printed = capsys.readouterr().out
    assert "cannot be used, trying earlier ones" in printed
    assert "Resuming after epoch 2" in printed
    assert not os.path.exists(MARK)


@pytest.mark.parametrize("names", [("model.pth.tar-2", "model.pth.tar-3"), ("model-best.pth.tar",)])
def test_run_without_checkpoints_trains_from_scratch(cut, capsys, names):
    folder, resume = cut
    for name in names:
        truncate(folder / name)
    resume()
    assert "raining from scratch" in capsys.readouterr().out


@pytest.mark.parametrize("damage", [lambda text: "", lambda text: "[1, 2, 3]", lambda text: text.replace("0", "1", 1)])
def test_run_with_damaged_history_trains_from_scratch(cut, capsys, damage):
    folder, resume = cut
    path = folder.parent / "run.json"
    path.write_text(damage(path.read_text()))
    resume()
    assert "raining from scratch" in capsys.readouterr().out


def _encode_together(folder, barrier, n_encoded, found):
    def compute(out):
        with n_encoded.get_lock():
            n_encoded.value += 1
        out[:] = np.arange(20).reshape(5, 4)

    barrier.wait(MINUTES)
    found.put(float(FeatureCache(folder).get("key", (5, 4), compute, "test").sum()))


def test_two_processes_compute_one_feature_cache_entry_once(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, n_encoded, found = context.Barrier(2), context.Value("i", 0), context.SimpleQueue()
    arguments = (tmp_path / "cache", barrier, n_encoded, found)
    processes = [context.Process(target=_encode_together, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(MINUTES)
    assert [process.exitcode for process in processes] == [0, 0]
    assert found.get() == found.get() == 190.0 and n_encoded.value == 1
    checkpoints = FeatureCache(tmp_path / "cache").get("key", (5, 4), None, "test")
    assert checkpoints.sum() == 190.0
    assert sorted(path.suffix for path in (tmp_path / "cache").glob("[!.]*")) == [".json", ".npy"]


def test_image_deleted_during_run_is_named(train, tmp_path, image_folder, monkeypatch, capsys):
    from trainers.coop import CoOp

    images = tmp_path / "moving"
    shutil.copytree(image_folder, images)
    step = CoOp.forward_backward

    def disturb(self, batch):
        for path in images.glob("blue/*/*.png"):
            path.unlink()
        return step(self, batch)

    monkeypatch.setattr(CoOp, "forward_backward", disturb)
    assert train("CoOp", "red", "DATASET.ROOT", str(images)) == 1
    message = capsys.readouterr().err
    assert str(images / "blue") in message
    assert "Traceback" not in message


def test_resume_on_changed_data_is_an_error(train, tmp_path, image_folder, monkeypatch, capsys):
    images = tmp_path / "changing"
    shutil.copytree(image_folder, images)

    killed_before(1, train, monkeypatch, "DATASET.ROOT", str(images))
    shutil.copy(images / "red/down/0.png", images / "red/down/new.png")
    shutil.rmtree(images / "spg_coop_splits")
    assert train("CoOp", "red", "DATASET.ROOT", str(images)) == 1
    assert "holds an unfinished run with other settings or data: other " in capsys.readouterr().err


def writing():
    """Threads of tensorboard, which could still write after the run has ended."""
    return {thread for thread in threading.enumerate() if "tensorboard" in type(thread).__module__}


def test_unreadable_image_stops_run_or_is_skipped(train, tmp_path, image_folder, capsys):
    images = tmp_path / "partly"
    shutil.copytree(image_folder, images)
    bad = images / "blue/down/2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    before = writing()
    assert train("SPG", "red", "DATASET.ROOT", str(images)) == 1
    assert f"Cannot read the image {bad}" in capsys.readouterr().err
    assert writing() <= before
    shutil.rmtree(tmp_path / "run")
    assert train("SPG", "red", "DATASET.ROOT", str(images), "DATASET.SKIP_UNREADABLE", "True") == 0
    assert "1 unreadable images of FolderDG, " in capsys.readouterr().out
    assert results(tmp_path / "run")["n_test"] == 10
    assert (
        train(
            "SPG", "blue", "DATASET.ROOT", str(images), "DATASET.SKIP_UNREADABLE", "True", flags=["--output-dir", "b"]
        )
        == 0
    )
    assert results(tmp_path / "b")["n_test"] == 9


def test_resume_with_other_settings_is_an_error(cut, train, capsys):
    for opts in (("TEST.FINAL_MODEL", "last_step"), ("TEST.N_PROMPTS", "2"), ("INPUT.PIXEL_STD", "(0.2, 0.2, 0.2)")):
        capsys.readouterr()
        assert train("CoOp", "red", "OPTIM.MAX_EPOCH", "4", *opts) == 1
        assert f"holds an unfinished run with other settings or data: {opts[0]} " in capsys.readouterr().err


def test_lost_best_checkpoint_is_not_replaced_by_the_last(finish_run, train, tmp_path, capsys):
    finish_run("SPG")
    (tmp_path / "run/generator/model-best.pth.tar").unlink()
    capsys.readouterr()
    flags = ["--eval-only", "--model-dir", "run", "--output-dir", "tested"]
    assert train("SPG", "red", flags=flags) == 1
    assert "Checkpoint not found: run/generator/model-best.pth.tar" in capsys.readouterr().err
    assert train("SPG", "red", flags=[*flags, "--load-epoch", "2"]) == 0
    found = read_results(tmp_path / "tested" / "results.json")
    assert (found["selection"], found["load_epoch"]) == ("epoch 2", 2)


def test_run_resumed_from_another_folder_resumes_in_its_own(finish_run, train, tmp_path, monkeypatch, capsys):
    finish_run("CoOp", "OPTIM.MAX_EPOCH", "4")
    shutil.rmtree(tmp_path / "run/prompt_learner")
    shutil.copytree(tmp_path / "run", tmp_path / "begun", ignore=shutil.ignore_patterns("results.json"))
    # There is no checkpoint: train from scratch in another folder, kill, and repeat the command.
    opts, flags = ("OPTIM.MAX_EPOCH", "4"), ["--resume", "begun", "--output-dir", "next"]

    killed_before(2, train, monkeypatch, *opts, flags=flags)
    capsys.readouterr()
    assert train("CoOp", "red", *opts, flags=flags) == 0
    assert "Resuming after epoch 2" in capsys.readouterr().out
    assert results(tmp_path / "next") == results(tmp_path / "run")


def test_runs_without_seed_learn_separate_labels(train, tmp_path):
    for name in ("one", "two"):
        assert train("SPG", "red", "SEED", "-1", flags=["--output-dir", name]) == 0
        assert len(list((tmp_path / name / "prompt_labels").rglob("*.pt"))) == 2
