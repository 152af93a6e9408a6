"""Image features of frozen and learned towers: the cache, its key, gradients, random views."""

import copy
import errno
import json
import random
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from dassl.data.samplers import AVAI_SAMPLERS, build_sampler
from PIL import Image
from reference import tiny_clip
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset

from common.files import OUTPUT_MARK
from trainers.base.image_features import ImageFeatures
from trainers.modules.clip.backbone import Backbone
from trainers.modules.features import FeatureCache
from trainers.modules.sampling import FeatureLoader, MultiViewDataset, TrainingLoader, seeded

CPU = torch.device("cpu")
EXPECTED = np.arange(12, dtype=np.float32).reshape(4, 3)


# ---- the cache ----


class Counting:
    """Fills an array with numbers and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, out):
        self.calls += 1
        out[:] = EXPECTED


def get(folder, compute):
    return FeatureCache(folder).get("k", (4, 3), compute, "val")


def test_cache_entry_is_computed_once_on_disk_and_in_memory(tmp_path, capsys):
    compute, in_memory = Counting(), FeatureCache()
    for _ in range(2):
        np.testing.assert_array_equal(get(tmp_path / "cache", compute), EXPECTED)
        np.testing.assert_array_equal(in_memory.get("k", (4, 3), compute, "val"), EXPECTED)
    assert compute.calls == 2
    assert isinstance(get(tmp_path / "cache", compute), np.memmap)
    assert "Encoded 4 images (val)" in capsys.readouterr().out


def test_cache_entry_wanted_twice_is_computed_once(tmp_path):
    class Slow(Counting):
        def __call__(self, out):
            time.sleep(0.2)
            super().__call__(out)

    compute = Slow()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: get(tmp_path, compute), range(2)))
    assert compute.calls == 1


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "other shape", "not finite"])
def test_cache_entry_that_is_damaged_or_old_is_computed_again(tmp_path, damage, capsys):
    compute = Counting()
    get(tmp_path, compute)
    data, about = tmp_path / "k.npy", tmp_path / "k.json"
    content = data.read_bytes()
    if damage == "no json":
        about.unlink()
    elif damage == "other shape":
        np.save(data, np.zeros((2, 3), np.float32))
    elif damage == "not finite":
        array = np.where(EXPECTED == 5, np.float32("nan"), EXPECTED)
        np.save(data, array)
        about.write_text(json.dumps({"crc32": zlib.crc32(array.tobytes())}))
    else:
        data.write_bytes({"truncate": content[:-4], "flip": content[:-3] + b"\1" + content[-2:]}[damage])
    for _ in range(2):
        np.testing.assert_array_equal(get(tmp_path, compute), EXPECTED)
    assert compute.calls == 2
    assert damage == "no json" or "computed again" in capsys.readouterr().out


@pytest.mark.parametrize("problem", ["it is not writable", "No space left on device"])
def test_cache_that_cannot_be_written_is_skipped_with_one_message(tmp_path, monkeypatch, capsys, problem):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    folder = tmp_path / "cache"
    if problem == "it is not writable":
        folder.mkdir(mode=0o555)
    else:
        monkeypatch.setattr(np, "save", full)
    cache, compute = FeatureCache(folder), Counting()
    for key in ("a", "b"):
        np.testing.assert_array_equal(cache.get(key, (4, 3), compute, "val"), EXPECTED)
    assert capsys.readouterr().out.count(f"cannot be written: {problem}. The run continues without it") == 1
    assert {path.name for path in folder.iterdir()} <= {OUTPUT_MARK, ".a.npy.lock"}


# ---- towers ----


class Item:
    def __init__(self, impath, domain):
        self.impath, self.domain, self.label = str(impath), domain, 0


class Pictures(Dataset):
    """Random tensors in the place of images, each with a file for the cache's key."""

    transform = "nothing"

    def __init__(self, folder, n=5):
        self.data_source = []
        for i in range(n):
            (folder / f"{i}.png").write_bytes(b"%d" % i)
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


def test_learned_tower_features_are_computed_each_time_and_not_cached(backbone, tmp_path):
    tower, features = features_of(backbone, tmp_path, learning=True)
    loader = DataLoader(Pictures(tmp_path), batch_size=2)
    first = np.array(features.of_split(loader, "val"))
    with torch.no_grad():
        tower.shift.fill_(5.0)
        second = np.array(features.of_split(loader, "val"))
        expected = torch.cat([features.encode(batch["img"]) for batch in loader])
    assert np.abs(second - first).max() > 1e-3
    np.testing.assert_allclose(second, expected, atol=1e-6)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    "change", ["weights", "precision", "inputs", "paths", "order", "views", "transform", "content"], ids=str
)
def test_cache_key_contains_every_input_except_file_names(backbone, tmp_path, change):
    dataset = Pictures(tmp_path)
    before = ImageFeatures(backbone, "inputs").key(dataset)
    for i, item in enumerate(dataset.data_source):
        (tmp_path / f"{i}.png").rename(tmp_path / f"moved_{i}.png")
        item.impath = str(tmp_path / f"moved_{i}.png")
    assert ImageFeatures(backbone, "inputs").key(dataset) == before
    other, inputs, more = backbone, "inputs", ()
    if change == "weights":
        other = Backbone(tiny_clip(seed=1), "tiny", "fp32", CPU)
    elif change == "precision":
        other = Backbone(backbone.model, "tiny", "bf16", CPU)
    elif change == "inputs":
        inputs = "others"
    elif change == "paths":
        dataset.data_source.pop()
    elif change == "order":
        dataset.data_source.reverse()
    elif change == "views":
        more = (2,)
    elif change == "transform":
        dataset.transform = "another"
    else:
        (tmp_path / "moved_0.png").write_bytes(b"longer")
    assert ImageFeatures(other, inputs).key(dataset, *more) != before


# ---- random draws ----


def draws():
    """The sum of a number from each global generator."""
    return torch.rand(()) + np.random.rand() + random.random()


class RandomImages(Dataset):
    """Images that are the index plus noise."""

    def __init__(self, n=10):
        self.data_source = [Item(str(i), 0) for i in range(n)]

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, index):
        return {"img": self.transform(torch.full((3, 2, 2), float(index)))}

    def transform(self, image):
        return image + 0.1 * draws()


def test_views_are_repeatable_and_leave_global_generators_unchanged(tmp_path):
    data = RandomImages(2)
    for i, item in enumerate(data.data_source):
        item.impath = str(tmp_path / f"{i}.png")
        Image.new("L", (4, 4), 50 * i).save(item.impath)
    data.transform = lambda image: torch.from_numpy(np.array(image)) / 255 + draws()

    def views(n_views):
        return MultiViewDataset(data, n_views, read_image=Image.open)[1]["img"]

    torch.manual_seed(0)
    first = views(3)
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(views(3), first)
    assert torch.equal(views(2), first[:2])  # fewer are the first of more
    assert len(set(first[:, 0, 0].tolist())) == 3


@pytest.mark.parametrize("n_workers", [0, 2])
@pytest.mark.parametrize("n_read_before", [0, 2, 99])
@pytest.mark.parametrize("name", AVAI_SAMPLERS)
def test_training_loader_draws_as_if_each_epoch_were_alone(n_workers, n_read_before, name):
    data, epochs = RandomImages(20), range(4)
    for i, item in enumerate(data.data_source):
        item.domain, item.label = i % 3 // 2, i % 5
    sampler = BatchSampler(build_sampler(name, None, data.data_source, 4, 1, 2), 4, drop_last=True)
    loader = TrainingLoader(data, sampler, 1, lambda: epochs, num_workers=n_workers)
    for _ in zip(range(n_read_before), loader, strict=False):
        len(loader)
    for epoch in range(4):
        epochs = range(epoch, 4)
        with seeded(1, epoch):
            found, after = [batch["img"] for batch in loader], torch.rand(1)
        with seeded(1, epoch):
            expected = [torch.stack([loader.dataset[epoch, 0, i]["img"] for i in batch]) for batch in sampler]
            assert torch.equal(torch.stack(found), torch.stack(expected)) and torch.equal(after, torch.rand(1))


def test_view_loader_draws_among_the_views_of_the_right_image():
    items = [Item(str(i), i % 2) for i in range(10)]
    for i, item in enumerate(items):
        item.label = i
    views = np.stack([np.arange(10)[:, None] + 100 * view for view in range(8)]).astype(np.float32)
    loader = FeatureLoader(views, items, [[1, 5, 7], [0, 9]])
    assert len(loader) == 2
    torch.manual_seed(0)
    drawn = set()
    for _ in range(50):
        batches = list(loader)
        assert [batch["label"].tolist() for batch in batches] == [[1, 5, 7], [0, 9]]
        assert batches[0]["domain"].tolist() == [1, 1, 1]
        for batch in batches:
            assert (batch["features"][:, 0] % 100).tolist() == batch["index"].tolist()
        drawn.add(int(batches[0]["features"][0, 0]) // 100)
    assert drawn == set(range(8))
