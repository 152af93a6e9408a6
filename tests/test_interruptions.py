"""Killed, stopped, out of space, damaged: a run resumes with equal numbers, or an error names the cause."""

import errno
import os
import random
import shutil
import signal

import pytest
from quick_run import MADE
from quick_run import outcome as results

from common.run import read_results
from trainers.coop import CoOp


def delete_outputs(folder):
    for name in MADE:
        shutil.rmtree(folder / name, ignore_errors=True)


@pytest.fixture
def undisturbed(finish_run, tmp_path):
    """Results of an undisturbed run. Its files are deleted."""

    def run(trainer, *opts):
        found = results(finish_run(trainer, *opts))
        delete_outputs(tmp_path)
        return found

    return run


@pytest.fixture
def fail_at_write(monkeypatch, train, tmp_path):
    """Train in empty folders, where atomic write `number` fails: returns the exit code and the paths of all writes."""
    replace = os.replace

    def run(number, error, trainer, *opts):
        written = []

        def failing(source, target, **kwargs):
            written.append(str(target))
            if len(written) == number:
                raise error
            return replace(source, target, **kwargs)

        delete_outputs(tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing)
            return train(trainer, "red", *opts), written

    return run


def test_run_on_full_disk_ends_with_one_message(train, undisturbed, fail_at_write, tmp_path, capsys):
    expected = undisturbed("SPG")
    _, files = fail_at_write(0, None, "SPG")
    assert len(files) > 20
    for number in range(1, len(files) + 1, 17):
        capsys.readouterr()
        code, _ = fail_at_write(number, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "SPG")
        printed = capsys.readouterr()
        # A run continues without its cache. Any other file that cannot be written ends it with a message.
        assert "The disk is full" in printed.err if code else "continues without it" in printed.out, files[number - 1]
        assert not [path for path in tmp_path.rglob(".*.*") if path.is_file() and "run" in path.parts]
        if code:
            assert train("SPG", "red") == 0
        assert results(tmp_path / "run") == expected, f"write {number}: {files[number - 1]}"


class Killed(BaseException):
    """Takes the place of SIGKILL: nothing handles it."""


def scalars(folder):
    """All scalars of a run's event files: {tag: [(step, value), ...]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), {"scalars": 0}).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_resumed_run_writes_the_scalars_of_an_undisturbed_run(train, fail_at_write, tmp_path):
    opts = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4")
    _, files = fail_at_write(0, None, "CoOp", *opts)
    expected = scalars(tmp_path / "run")
    assert {len(steps) for tag, steps in expected.items() if tag.startswith("val/")} == {3}
    for name in ("model.pth.tar-2", "logits.npy"):  # the last is after the test
        number = next(number for number, path in enumerate(files, 1) if name in path)
        with pytest.raises(Killed):
            fail_at_write(number + 1, Killed(), "CoOp", *opts)
        (events,) = (tmp_path / "run/tensorboard").iterdir()
        with events.open("ab") as handle:
            handle.write(b"half a record")
        assert train("CoOp", "red", *opts) == 0
        assert scalars(tmp_path / "run") == expected, name


def killed_before(epoch, train, monkeypatch, *opts, flags=()):
    """Kill a CoOp run at the start of an epoch, counted from 0."""

    def begin(self):
        if self.epoch == epoch:
            raise Killed
        return type(self).__mro__[1].before_epoch(self)

    with monkeypatch.context() as patch:
        patch.setattr(CoOp, "before_epoch", begin, raising=False)
        with pytest.raises(Killed):
            train("CoOp", "red", *opts, flags=flags)


@pytest.mark.parametrize(("trainer", "views"), [("CoCoOp", "0"), ("SPG", "2")])
def test_run_killed_between_files_resumes_with_equal_results(
    train, undisturbed, fail_at_write, tmp_path, trainer, views
):
    opts = ("TRAINER.FEATURES.TRAIN_VIEWS", views)
    expected = undisturbed(trainer, *opts)
    _, files = fail_at_write(0, None, trainer, *opts)
    for number in random.Random(1).sample(range(1, len(files) + 1), 2):
        with pytest.raises(Killed):
            fail_at_write(number, Killed(), trainer, *opts)
        assert train(trainer, "red", *opts) == 0
        assert results(tmp_path / "run") == expected, f"killed at write {number}: {files[number - 1]}"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_run_after_its_step(train, undisturbed, tmp_path, monkeypatch, capsys, number, code):
    expected, handler, step, steps = undisturbed("CoOp"), signal.getsignal(number), CoOp.forward_backward, []

    def interrupted(self, batch):
        steps.append(step(self, batch))
        if len(steps) == 3:  # the first step of the second epoch
            os.kill(os.getpid(), number)
        return steps[-1]

    with monkeypatch.context() as patch:
        patch.setattr(CoOp, "forward_backward", interrupted)
        assert train("CoOp", "red") == code
    message = f"Interrupted by {number.name}. The same command resumes after the last completed epoch."
    assert len(steps) == 3 and message in capsys.readouterr().err
    assert signal.getsignal(number) == handler
    assert train("CoOp", "red") == 0
    assert "Resuming after epoch 1" in capsys.readouterr().out
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


@pytest.mark.parametrize(
    ("names", "printed"),
    [
        (("model.pth.tar-3",), "Resuming after epoch 2"),
        (("model.pth.tar-2", "model.pth.tar-3"), "raining from scratch"),
        (("model-best.pth.tar",), "raining from scratch"),
        (("../run.json",), "raining from scratch"),
    ],
)
def test_run_with_damaged_files_uses_earlier_ones_or_trains_from_scratch(cut, capsys, names, printed):
    folder, resume = cut
    for name in names:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes(4) + content[4:-99] + bytes(64))
    resume()
    assert printed in capsys.readouterr().out


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
