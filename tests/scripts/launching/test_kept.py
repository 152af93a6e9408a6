"""What a process keeps between runs: they come to the same numbers, and what has changed is taken anew."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from common.kept import Kept
from hf_folders import save_hugging_face
from reference import tiny_clip

from common import kept
from datasets import base
from scripts import kill_trial
from trainers.methods import METHODS
from trainers.modules import clip_backbone
from trainers.modules.clip_backbone import kept_backbone, load_backbone

HERE = "cpu", "fp32", ""


def keep(monkeypatch):
    """From now on this process does several runs; it has kept nothing yet."""
    monkeypatch.setattr(kept, "_keeping", True)
    monkeypatch.setattr(clip_backbone, "_KEPT", Kept(1))
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


def state_of_chance():
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.random.get_state()[1].tobytes()


def test_a_single_run_keeps_nothing(clip_file):
    assert kept_backbone(str(clip_file), *HERE) is not kept_backbone(str(clip_file), *HERE)


def test_loading_draws_no_random_numbers(clip_file, vit_file):
    before = state_of_chance()
    for path in (clip_file, vit_file):
        load_backbone(str(path))
    assert state_of_chance() == before


def test_loading_an_architecture_of_open_clips_draws_no_random_numbers(tmp_path):
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    config = {
        "embed_dim": 32,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {"width": 64, "heads": 1, "layers": 1, "no_causal_mask": True},
    }
    (tmp_path / "small-chance.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "small-chance.json")
    torch.save(open_clip.create_model("small-chance").state_dict(), tmp_path / "weights.pt")
    before = state_of_chance()
    load_backbone(f"open_clip:small-chance@{tmp_path / 'weights.pt'}")
    assert state_of_chance() == before


def test_a_folder_in_hugging_faces_layout_that_has_changed_is_loaded_anew(tmp_path, keeping):
    folder = save_hugging_face(tiny_clip(vision=2), tmp_path / "mine")
    first = kept_backbone(f"hf:{folder}", *HERE)
    (tmp_path / "beside").touch()
    (folder / "README.md").touch()
    assert kept_backbone(f"hf:{folder}", *HERE) is first
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"quick_gelu"', '"gelu"'))
    second = kept_backbone(f"hf:{folder}", *HERE)
    assert second is not first and second.sha256 != first.sha256
    (folder / "preprocessor_config.json").unlink()
    assert kept_backbone(f"hf:{folder}", *HERE) is not second


def test_what_lies_beside_weights_is_not_looked_at(tmp_path, keeping):
    folder = save_hugging_face(tiny_clip(vision=2), tmp_path / "mine")
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert kept_backbone(f"hf:{folder}", *HERE) is kept_backbone(f"hf:{folder}", *HERE)


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


def test_a_clip_that_has_changed_is_loaded_anew(tmp_path, clip_file, vit_file, keeping):
    path = tmp_path / "clip.pt"
    shutil.copy(clip_file, path)
    first = kept_backbone(str(path), *HERE)
    assert kept_backbone(str(path), *HERE) is first
    shutil.copy(vit_file, path)
    second = kept_backbone(str(path), *HERE)
    assert second.is_vit and not first.is_vit
    with torch.no_grad():
        second.model.positional_embedding.add_(1)  # a run that did that
    third = kept_backbone(str(path), *HERE)
    assert third is not second
    third.model.requires_grad_(True)
    assert kept_backbone(str(path), *HERE) is not third


def test_one_clip_is_kept_and_no_more(clip_file, vit_file, keeping):
    first = kept_backbone(str(clip_file), *HERE)
    kept_backbone(str(vit_file), *HERE)
    assert kept_backbone(str(clip_file), *HERE) is not first


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
