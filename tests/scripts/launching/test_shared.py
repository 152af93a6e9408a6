"""What several runs need is made once, before them: features, whole or in parts, and prompt labels."""

import contextlib
import errno
import os
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from quick_run import run_train
from scripts.launching.launch import Launch
from scripts.launching.plan import Ended
from scripts.launching.request import Request
from test_launch import QUICK

from common.run.identity import write_identity
from scripts import kill_trial, launch
from scripts.launching import comparison, conduct, shared
from trainers.modules.features import Shard

DOMAINS = ("blue", "green", "red")


@pytest.fixture
def two_here(monkeypatch, runs_here):
    """As `runs_here`, by an engine that takes two tasks at once; it does them in this process, one after another."""

    class Two:
        slots, workers_each, several, on_gpu = 2, 99, True, None

        def __init__(self):
            self.ended = []

        def submit(self, task):
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                self.ended.append(Ended(task, run_train(list(task.arguments))))

        def next_end(self):
            return self.ended.pop(0)

        def interrupt(self, number):
            pass

        def close(self):
            pass

    monkeypatch.setattr(comparison, "make_engine", lambda *_: Two())


def logs(output):
    """What the logs of an output folder say, by the run's folder in there."""
    return {path.parent.relative_to(output).as_posix(): path.read_text() for path in output.rglob("log.txt*")}


def made_by_themselves(launched, output, words, **environment):
    """Outcomes of the same runs one after another, each of which makes what it needs, by their folders."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "plan_shared", lambda *_: shared.Plan([], {}))
        assert launched(*words, OUTPUT=str(output), **environment).returncode == 0
    return {path.parent.relative_to(output): kill_trial.outcome(path.parent) for path in output.rglob("results.json")}


VIEWS = (*QUICK, "TRAINER.FEATURES.TRAIN_VIEWS", "2", "DATALOADER.TEST.BATCH_SIZE", "4")


@pytest.mark.parametrize("in_parts", [False, True])
def test_features_and_labels_are_made_once(
    launched, two_here, tmp_path, image_folder, clip_file, monkeypatch, capsys, in_parts
):
    words = ("spg/main.sh", image_folder, clip_file, *VIEWS)
    if in_parts:
        monkeypatch.setattr(shared, "SHARD_IMAGES", 4)  # of the 8 that are trained on in a domain
    finished = launched(*words, OUTPUT="shared")
    assert finished.returncode == 0, finished.stderr
    output = tmp_path / "shared"
    assert finished.stdout.count(": made in ") == (12 if in_parts else 6)
    for domain in DOMAINS:
        assert f"prompt label of {domain}, seed 1 (SPG): made in " in finished.stdout
        place = f"stripes/SPG/tiny/default/made_once/features_of_{domain}/seed1"
        assert (f"{place}/part2of2" in logs(output)) == in_parts
    for run, log in logs(output).items():
        encoded = [line for line in log.splitlines() if line.startswith("Encoded")]
        assert all("features_of" in run or "test)" in line for line in encoded), run
        assert ("Stage I: learning" in log) == ("/label_of_" in run), run
    assert not list((output / "feature_cache").glob("*-*"))  # parts were put together
    results = {path.parent.relative_to(output) for path in output.rglob("results.json")}
    whole = made_by_themselves(launched, tmp_path / "single", words)
    assert results == set(whole) and len(whole) == 3
    for run in results:
        assert kill_trial.outcome(output / run) == whole[run]
    for entry in (output / "feature_cache").glob("*.npy"):
        assert entry.read_bytes() == (tmp_path / "single/feature_cache" / entry.name).read_bytes()
    # Nothing is made that is there.
    for target in ("red", "blue"):
        shutil.rmtree(output / "stripes/SPG/tiny/default" / target)
    again = launched(*words, OUTPUT="shared")
    assert again.returncode == 0 and "made in" not in again.stdout


def test_what_one_run_needs_it_makes_itself(launched, two_here, tmp_path, image_folder, clip_file):
    finished = launched("spg/main.sh", image_folder, clip_file, *QUICK, TARGETS="red")
    assert finished.returncode == 0, finished.stderr
    assert "made in" not in finished.stdout
    log = logs(tmp_path / "output")["stripes/SPG/tiny/default/red/seed1"]
    assert log.count("Stage I: learning") == 2 and "Encoded" in log


@pytest.mark.parametrize(("on_gpu", "device"), [(None, "cpu"), (False, "cpu"), (True, "cuda")])
def test_features_are_called_as_on_the_device_that_runs_compute_on(
    tmp_path, monkeypatch, image_folder, clip_file, on_gpu, device
):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)  # where the launcher is
    request = Request(["CoOp"], dataset=str(image_folder), backbone=str(clip_file), opts=QUICK, output=tmp_path)
    one = Launch(request, "CoOp")
    look = shared._Looking(True, on_gpu).look(one, one.runs[0])
    assert look.features.backbone.device.type == device
    assert look.features.backbone.precision == {"cpu": "fp32", "cuda": "fp16"}[device]


def test_threads_go_by_where_runs_compute_and_not_by_the_launcher(tmp_path, monkeypatch, image_folder, clip_file):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("scripts.launching.launch.LARGE", 1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # where the launcher is
    request = Request(["CoOp"], dataset=str(image_folder), backbone=str(clip_file), opts=QUICK, output=tmp_path)
    one = Launch(request, "CoOp")
    assert (one.threads(on_gpu=True), one.threads(on_gpu=False)) == (1, None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (one.threads(on_gpu=True), one.threads(on_gpu=False)) == (3, 3)


def test_what_is_printed_says_what_comes_first(tmp_path, monkeypatch, capsys, image_folder, clip_file):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(image_folder, "stripes", ignore=shutil.ignore_patterns("spg_coop_splits"))
    words = ["--print", "--seeds", "1", "--targets", "blue,red", "spg", "stripes", str(clip_file), *QUICK]

    def printed():
        capsys.readouterr()
        assert launch.main(words) == 0
        return capsys.readouterr().out.splitlines()

    lines = printed()
    assert [line for line in lines if line.startswith("#")] == [
        "# features of images that several runs need: all of these before what comes below",
        "# prompt labels that several runs need: all of these before what comes below",
        "# runs",
    ]
    assert sorted(path.name for path in (tmp_path / "stripes").iterdir()) == list(DOMAINS)  # no splits are written
    commands = [shlex.split(line) for line in lines]
    assert ["--encode" in command for command in commands] == [False, True, False, False, False, False, False]
    assert commands[1][commands[1].index("--encode") + 1] == "val"  # of green, which both train on
    assert ["--learn-labels" in command for command in commands] == [False, False, False, True, False, False, False]
    assert run_train(commands[1][2:]) == 0
    assert printed() == lines[2:]
    assert run_train(commands[3][2:]) == 0
    assert printed() == lines[5:]
    assert [run_train(command[2:]) for command in commands[5:]] == [0, 0]
    assert printed() == []


def test_nothing_is_made_or_downloaded_for_what_is_printed(tmp_path, monkeypatch, capsys, image_folder):
    from clip import clip as openai_clip

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(openai_clip, "_download", lambda *_: pytest.fail("downloaded"))
    flags = ["--print", "--seeds", "1", "--methods", "coop,zsclip"]
    assert launch.main([*flags, str(image_folder), "RN50", "MODEL.BACKBONE.PATH", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 3 + 1 + 6 and all(" --encode val,test " in line for line in lines[1:4])
    assert launch.main([*flags, "mini_digits"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + 4 + 1 + 8
    assert list(tmp_path.iterdir()) == []


def test_what_fails_blocks_only_what_needs_it(launched, two_here, tmp_path, image_folder, clip_file):
    images = tmp_path / "stripes"
    shutil.copytree(image_folder, images)
    bad = images / "blue/down/2.png"
    bad.write_bytes(bad.read_bytes()[:100])
    words = ("compare.sh", images, clip_file, "DATALOADER.NUM_WORKERS", "0")
    finished = launched(*words, METHODS="zsclip,zsclip2")
    assert finished.returncode == 1
    assert f"Cannot read the image {bad}" in finished.stderr
    assert "features of blue (test): failed with exit code 1" in finished.stdout
    lost = "[1/6] ZeroshotCLIP on stripes, target blue, seed 1"
    assert f"{lost}: not begun, for want of what failed: features of blue (test)" in finished.stdout
    assert f"2 of 6 runs failed:\n  {lost} (not begun, for want of: features of blue (test))" in finished.stdout
    assert finished.stdout.count(": done in ") == 4
    shutil.copy(image_folder / "blue/down/2.png", bad)
    finished = launched(*words, METHODS="zsclip,zsclip2")
    assert finished.returncode == 0 and finished.stdout.count(": done in ") == 2


def test_a_full_disk_on_one_run(launched, tmp_path, image_folder, clip_file, monkeypatch):
    replace = os.replace

    def full(source, target, **kwargs):
        if "green/seed1" in str(target) and str(target).endswith("model.pth.tar-1"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return replace(source, target, **kwargs)

    words = ("coop/main.sh", image_folder, clip_file, *QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        finished = launched(*words)
    assert finished.returncode == 1
    assert "The disk is full" in finished.stderr
    assert "1 of 3 runs failed:\n  [2/3] CoOp on stripes, target green, seed 1" in finished.stdout
    finished = launched(*words)
    assert finished.returncode == 0
    assert (finished.stdout.count("finished before"), finished.stdout.count(": done in ")) == (2, 1)


def test_a_disk_that_is_full_before_a_run_begins(launched, image_folder, clip_file, monkeypatch):
    def full(folder, *more):
        if "green/seed1" in str(folder):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        return write_identity(folder, *more)

    words = ("zsclip/main.sh", image_folder, clip_file, "DATALOADER.NUM_WORKERS", "0")
    with monkeypatch.context() as patch:
        patch.setattr("scripts.launching.launch.write_identity", full)
        finished = launched(*words)
    assert finished.returncode == 1
    lost = "[2/3] ZeroshotCLIP on stripes, target green, seed 1"
    assert f"{lost}: not begun: The disk is full" in finished.stdout
    assert f"1 of 3 runs failed:\n  {lost}" in finished.stdout and finished.stdout.count(": done in ") == 2
    assert launched(*words).stdout.count(": done in ") == 1


def test_sets_with_domains_of_one_name_are_kept_apart(tmp_path, monkeypatch, capsys, image_folder, clip_file):
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        shutil.copytree(image_folder, name)
    for path in Path("second").rglob("*.png"):  # sets of equal contents share features
        path.write_bytes(path.read_bytes() + b"second")
    words = ["--print", "--protocol", "cross", "--seeds", "1", "--methods", "coop,kgcoop"]
    assert launch.main([*words, "first", "first,second", str(clip_file), *QUICK]) == 0
    lines = capsys.readouterr().out.splitlines()
    groups = [line for line in lines if line.startswith("#")]
    assert groups[-2:] == ["# trainings whose models others test: all of these before what comes below", "# runs"]
    trainings = lines[lines.index(groups[-2]) + 1 : lines.index(groups[-1])]
    assert len(trainings) == 2 and all("/cross/train/seed1" in line for line in trainings)
    runs = [shlex.split(line) for line in lines if not line.startswith("#")]
    folders = [command[command.index("--output-dir") + 1] for command in runs if "--encode" in command]
    of_red = [folder for folder in folders if "test_features_of_red" in folder or "features_of_red" in folder]
    assert len(set(of_red)) == len(of_red) and any("_of_second" in folder for folder in of_red)


def test_a_folder_of_other_settings_is_told_before_it_is_waited_for(launched, monkeypatch, image_folder, clip_file):
    words = ("coop/main.sh", image_folder, clip_file, *QUICK)
    assert launched(*words, TARGETS="red").returncode == 0
    monkeypatch.setattr(conduct.Conduct, "_hold", lambda *_: pytest.fail("waited"))
    finished = launched(*words, "OPTIM.LR", "0.5", TARGETS="red")
    assert finished.returncode == 1 and "holds a run that was started differently" in finished.stderr


def test_a_broken_set_is_the_end_of_its_own_test_alone(launched, tmp_path, image_folder, clip_file):
    for name in ("whole", "broken"):
        shutil.copytree(image_folder, tmp_path / name)
    bad = tmp_path / "broken/red/down/0.png"
    bad.write_bytes(b"no image")
    words = ("zsclip/cross.sh", image_folder, "broken,whole", clip_file, "DATALOADER.NUM_WORKERS", "0")
    finished = launched(*words)
    assert finished.returncode == 1
    assert f"Cannot read the image {bad}" in finished.stderr
    assert "1 of 3 runs failed:\n  [2/3] ZeroshotCLIP on stripes, stripes to broken, seed 1" in finished.stdout
    assert (tmp_path / "output/stripes/ZeroshotCLIP/tiny/default/cross/to_whole/seed1/results.json").is_file()


def test_a_part_that_is_missing_or_damaged_is_encoded_with_the_whole(train, tmp_path, capsys):
    opts = ["DATALOADER.TEST.BATCH_SIZE", "2"]

    def encode(cache, *more):
        flags = ["--encode", "test", *more, "--output-dir", "made"]
        assert train("CoOp", "red", *opts, "TRAINER.FEATURES.CACHE_DIR", cache, flags=flags) == 0
        return {path.name: path.read_bytes() for path in (tmp_path / cache).glob("*.npy")}

    whole = encode("whole")
    for part in ("1/4", "2/4", "4/4"):
        encode("parts", "--part", part)
    parts = sorted((tmp_path / "parts").glob("*.npy"))
    assert [path.stem.split("-", 1)[1] for path in parts] == ["0-4", "4-8"]  # of 10, in whole batches
    damaged = bytearray(parts[1].read_bytes())
    damaged[-1] ^= 1
    parts[1].write_bytes(damaged)
    (tmp_path / "parts" / "unknown-0-4.json").write_text("{}")  # of another entry
    assert encode("parts") == whole
    assert "Encoded" in (tmp_path / "made/log.txt").read_text()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--encode", "vol"], "--encode names 'vol'; accepted: some of views, val, test, with commas between."),
        (["--encode", "views"], "--encode names views, but TRAINER.FEATURES.TRAIN_VIEWS is 0"),
        (["--encode", "val", "--no-feature-cache"], "--encode has no use for CoOp: TRAINER.FEATURES.CACHE is False"),
        (["--part", "1/2"], "--part is '1/2'; accepted: I/N beside --encode"),
        (["--encode", "val", "--part", "3/2"], "--part is '3/2'"),
        (["--learn-labels"], "--learn-labels is for trainers of two stages, SPG and DPSPG; --trainer is CoOp."),
    ],
)
def test_what_cannot_be_made(refused, flags, message):
    assert message in refused("CoOp", "red", flags=flags)


@pytest.mark.parametrize(("n", "batch_size", "of"), [(10, 4, 2), (1, 4, 3), (60_001, 100, 3), (8, 4, 2)])
def test_parts_are_of_whole_batches_and_all_there_is(n, batch_size, of):
    parts = [Shard(i, of).rows(n, batch_size) for i in range(1, of + 1)]
    assert list(np.concatenate([list(part) for part in parts]).astype(int)) == list(range(n))
    assert all(part.start % batch_size == 0 or not part for part in parts)
