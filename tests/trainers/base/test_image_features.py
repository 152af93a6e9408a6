"""Image features of frozen and learned towers: gradients and caches."""

import copy
import gc

import numpy as np
import pytest
import torch
from dassl.engine import TRAINER_REGISTRY
from reference import tiny_clip
from torch import nn
from torch.utils.data import DataLoader, Dataset

from trainers.base.context_trainer import ContextTrainer
from trainers.base.image_features import ImageFeatures
from trainers.modules.clip.backbone import Backbone
from trainers.modules.features import FeatureCache

CPU = torch.device("cpu")


class Item:
    def __init__(self, impath, domain):
        self.impath, self.domain, self.label = str(impath), domain, 0


class Pictures(Dataset):
    """Random tensors in the place of images, each with a file for the cache's key."""

    transform = "nothing"

    def __init__(self, folder, n=5):
        self.data_source = []
        for i in range(n):
            (folder / f"{i}.png").write_bytes(b"x")
            self.data_source.append(Item(folder / f"{i}.png", int(i >= 3)))

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, i):
        path = self.data_source[i].impath
        return {"img": torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(int(path[-5])))}


@pytest.fixture(scope="module")
def backbone():
    return Backbone(tiny_clip(), "tiny", "fp32", CPU)


class Tower(nn.Module):
    """An image tower with a learned shift of its images; counts its calls."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shift, self.calls = model, nn.Parameter(torch.zeros(1)), 0

    def forward(self, images):
        self.calls += 1
        return self.model.encode_image(images + self.shift)


def features_of(backbone, tmp_path, learning):
    tower = Tower(backbone.model)
    cache = FeatureCache(tmp_path / "cache")
    return tower, ImageFeatures(backbone, "inputs", ("a", "b"), cache, tower=tower, is_learned=learning)


def test_image_features_equal_the_plain_tower(backbone):
    images = torch.randn(4, 3, 32, 32)
    expected = backbone.model.encode_image(images)
    found = ImageFeatures(backbone).encode(images)
    torch.testing.assert_close(found, expected / expected.norm(dim=-1, keepdim=True), rtol=0, atol=1e-6)


@pytest.mark.parametrize("learning", [False, True])
def test_gradients_flow_in_learned_towers_alone(backbone, tmp_path, learning):
    tower, features = features_of(backbone, tmp_path, learning)
    found = features.of_batch({"img": torch.randn(2, 3, 32, 32)})
    assert found.requires_grad == learning
    if learning:
        found[:, 0].sum().backward()
        assert tower.shift.grad.abs() > 0
        with torch.no_grad():
            assert not features.encode(torch.randn(2, 3, 32, 32)).requires_grad


def test_frozen_tower_encodes_each_image_once(backbone, tmp_path):
    tower, features = features_of(backbone, tmp_path, learning=False)
    dataset = Pictures(tmp_path)
    loader = DataLoader(dataset, batch_size=2)
    first = np.array(features.of_split(loader, "val"))
    calls = tower.calls
    np.testing.assert_array_equal(features.of_split(loader, "val"), first)
    again = ImageFeatures(backbone, "inputs", ("a", "b"), FeatureCache(tmp_path / "cache"), tower=tower)
    np.testing.assert_array_equal(again.of_split(DataLoader(copy.copy(dataset), batch_size=3), "val"), first)
    assert tower.calls == calls
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2  # an entry for each domain


def test_learned_tower_features_are_not_cached(backbone, tmp_path):
    tower, features = features_of(backbone, tmp_path, learning=True)
    loader = DataLoader(Pictures(tmp_path), batch_size=2)
    first = np.array(features.of_split(loader, "val"))
    with torch.no_grad():
        tower.shift.fill_(5.0)
    second = features.of_split(loader, "val")
    assert np.abs(second - first).max() > 1e-3
    with torch.no_grad():
        expected = torch.cat([features.encode(batch["img"]) for batch in loader])
    np.testing.assert_allclose(second, expected, atol=1e-6)
    assert not (tmp_path / "cache").exists()


def test_deleted_data_set_leaves_no_cache_to_another(backbone, tmp_path):
    _, features = features_of(backbone, tmp_path, learning=False)
    for n in (3, 4, 5):
        dataset = Pictures(tmp_path, n)
        assert len(features.of_split(DataLoader(dataset), "val")) == n
        del dataset
        gc.collect()
    assert len(features._in_memory) == 0


@pytest.mark.parametrize(
    "change", ["weights", "precision", "inputs", "paths", "views", "transform", "size"], ids=lambda change: change
)
def test_feature_key_contains_every_input(backbone, tmp_path, change):
    dataset = Pictures(tmp_path)
    before = ImageFeatures(backbone, "inputs").key(dataset)
    assert ImageFeatures(backbone, "inputs").key(dataset) == before
    others = {"weights": Backbone(tiny_clip(seed=1), "tiny", "fp32", CPU), "precision": None}
    others["precision"] = Backbone(backbone.model, "tiny", "bf16", CPU)
    more = (2,) if change == "views" else ()
    if change == "paths":
        dataset = Pictures(tmp_path, 4)
    if change == "size":
        (tmp_path / "0.png").write_bytes(b"longer")
    if change == "transform":
        dataset.transform = "another"
    inputs = "others" if change == "inputs" else "inputs"
    assert ImageFeatures(others.get(change, backbone), inputs).key(dataset, *more) != before


@pytest.fixture
def shifted():
    """A method with a learned image tower: CoOp with a learned shift of all pixels."""

    @TRAINER_REGISTRY.register(force=True)
    class ShiftedCoOp(ContextTrainer):
        SETTINGS = "COOP"

        def build_prompt_model(self):
            super().build_prompt_model()
            self.tower = self.register_network("tower", Tower(self.clip_model))

        def image_tower(self, images):
            return self.tower(images)

        def load_model(self, directory, epoch=None):
            super().load_model(directory, epoch)

    yield ShiftedCoOp
    TRAINER_REGISTRY._obj_map.pop("ShiftedCoOp")


def test_learned_image_tower_trains_and_writes_no_feature_cache(train, tmp_path, shifted, monkeypatch, expect_error):
    """Validation uses the current tower in each epoch, and the run writes no shared features."""
    seen = []
    test = shifted.test

    def spy(self, split=None):
        result = test(self, split)
        if split == "val":
            seen.append((self.tower.shift.item(), np.array(self.image_features.of_split(self.val_loader, "val"))))
        return result

    monkeypatch.setattr(shifted, "test", spy)
    assert train("ShiftedCoOp", "red", "OPTIM.LR", "1.0", "TEST.FINAL_MODEL", "best_val") == 0
    (first, before), (second, after) = seen
    assert first != second and np.abs(before - after).max() > 1e-4
    assert not (tmp_path / "feature_cache").exists()
    views = ("TRAINER.FEATURES.TRAIN_VIEWS", "2", "OUTPUT_DIR", "other")
    assert "the image tower of ShiftedCoOp learns" in expect_error("ShiftedCoOp", "green", *views)
