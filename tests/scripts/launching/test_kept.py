"""What a process keeps between runs: they come to the same numbers, and what has changed is taken anew."""

import shutil

import pytest

from common import kept
from common.kept import Kept
from datasets import base
from scripts import kill_trial
from trainers.methods import METHODS
from trainers.modules.clip import backbone as clip_backbone
from trainers.modules.clip.backbone import load_backbone


def keep(monkeypatch):
    """From now on this process does several runs; it has kept nothing yet."""
    monkeypatch.setattr(kept, "_keeping", True)
    clip_backbone._cached.clear()
    monkeypatch.setattr(base, "_KEPT_SPLITS", Kept(8))


@pytest.fixture
def keeping(monkeypatch):
    """As `keep`, from the start of the test."""
    keep(monkeypatch)


@pytest.fixture
def loads(monkeypatch):
    """Names of the CLIPs that are loaded, in order."""
    loaded, load = [], load_backbone

    def spy(name, *how):
        loaded.append(name)
        return load(name, *how)

    monkeypatch.setattr(clip_backbone, "load_backbone", spy)
    return loaded


@pytest.mark.parametrize("vit", [False, True])
def test_runs_that_share_a_clip_come_to_the_same_numbers(
    finished, train, tmp_path, monkeypatch, loads, clip_for, vit_file, vit
):
    names = [one.trainer for one in METHODS if one.launchers and (clip_for(one.trainer) == vit_file) == vit]
    fresh = {}
    for name in names:
        fresh[name] = kill_trial.outcome(finished(name))
        shutil.rmtree(tmp_path / "run")
    loads.clear()
    keep(monkeypatch)
    for name in [*names, *names[:1]]:
        assert train(name, "red") == 0
        assert kill_trial.outcome(tmp_path / "run") == fresh[name], name
        shutil.rmtree(tmp_path / "run")
    assert len(loads) == 1


def test_what_is_kept_longest_unused_goes_first(monkeypatch):
    monkeypatch.setattr(kept, "_keeping", True)
    things, made = Kept(2), []
    for key in "abacbc":
        assert things.get(key, lambda key=key: made.append(key) or key) == key
    assert made == ["a", "b", "c", "b"]
    assert things.get("b", lambda: "new", lambda value: False) == "new"


def test_images_that_come_and_go_between_runs(tmp_path, image_folder, train, keeping):
    images = tmp_path / "stripes"
    shutil.copytree(image_folder, images)

    def n_test(name):
        assert train("ZeroshotCLIP", "red", flags=["--root", str(images), "--output-dir", name]) == 0
        return kill_trial.outcome(tmp_path / name)["n_test"]

    assert n_test("one") == 10
    assert n_test("two") == 10
    shutil.rmtree(images / "spg_coop_splits")
    (images / "red/down/4.png").unlink()
    assert n_test("three") == 9
