import errno
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import transforms

from common.files import OUTPUT_MARK
from trainers.modules.features import FeatureCache, encode_dataset, features_key
from trainers.modules.sampling import FeatureLoader, MultiViewDataset


class Counting:
    """Fills an array with numbers and counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self, out):
        self.calls += 1
        out[:] = np.arange(out.size, dtype=np.float32).reshape(out.shape)


EXPECTED = np.arange(12, dtype=np.float32).reshape(4, 3)


def get(folder, compute, key="k"):
    return FeatureCache(folder).get(key, (4, 3), compute, "val")


def test_cache_entry_is_computed_once_on_disk_and_in_memory(tmp_path, capsys):
    compute = Counting()
    first = get(tmp_path / "cache", compute)
    second = get(tmp_path / "cache", compute)
    assert compute.calls == 1
    np.testing.assert_array_equal(first, EXPECTED)
    np.testing.assert_array_equal(second, EXPECTED)
    assert isinstance(second, np.memmap)
    in_memory = FeatureCache()
    for _ in range(2):
        np.testing.assert_array_equal(in_memory.get("k", (4, 3), compute, "val"), EXPECTED)
    assert compute.calls == 2
    assert "Encoded 4 images (val)" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["truncate", "flip", "no json", "other shape", "junk json"])
def test_cache_entry_damaged_or_old_is_computed_again(tmp_path, damage, capsys):
    compute = Counting()
    get(tmp_path, compute)
    data, about = tmp_path / "k.npy", tmp_path / "k.json"
    content = data.read_bytes()
    if damage == "no json":
        about.unlink()
    elif damage == "junk json":
        about.write_text("{")
    elif damage == "other shape":
        np.save(data, np.zeros((2, 3), np.float32))
    else:
        data.write_bytes({"truncate": content[:-4], "flip": content[:-3] + b"\1" + content[-2:]}[damage])
    np.testing.assert_array_equal(get(tmp_path, compute), EXPECTED)
    assert compute.calls == 2
    printed = capsys.readouterr().out
    assert damage == "no json" or "computed again" in printed
    np.testing.assert_array_equal(get(tmp_path, compute), EXPECTED)
    assert compute.calls == 2


def test_cache_in_read_only_folder_is_skipped(tmp_path, capsys):
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o555)
    cache, compute = FeatureCache(folder), Counting()
    np.testing.assert_array_equal(cache.get("a", (4, 3), compute, "val"), EXPECTED)
    cache.get("b", (4, 3), compute, "test")
    assert capsys.readouterr().out.count("cannot be written: it is not writable. The run continues without it") == 1
    assert list(folder.iterdir()) == []


def test_cache_on_full_disk_is_skipped(tmp_path, monkeypatch, capsys):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    np.testing.assert_array_equal(get(tmp_path / "cache", Counting()), EXPECTED)
    assert "cannot be written: No space left on device. The run continues without it" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {OUTPUT_MARK, ".k.npy.lock"}


def test_cache_key_depends_on_everything_except_file_names(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_text(f"image {path.stem}")
    base = ("weights", "fp32", "Resize(64)", paths)
    key = features_key(*base)
    others = [features_key(*base[:i], "other", *base[i + 1 :]) for i in range(3)]
    others += [
        features_key(*base[:3], paths[::-1]),
        features_key(*base[:3], paths[:2]),
        features_key(*base, "views", 8),
    ]
    moved = [path.rename(tmp_path / f"moved_{path.name}") for path in paths]
    assert features_key(*base[:3], moved) == key
    moved[1].write_bytes(b"another image")
    others.append(features_key(*base[:3], moved))
    assert len({key, *others}) == len(others) + 1


class RandomImages(Dataset):
    """Images that are the index plus noise from all three global generators."""

    def __len__(self):
        return 10

    def __getitem__(self, index):
        import random

        noise = torch.rand(()) + np.random.rand() + random.random()
        return {"img": torch.full((3, 2, 2), float(index)) + 0.1 * noise}


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (2, 4), (0, 100)])
def test_encoder_preserves_the_order_of_data_sets(num_workers, batch_size):
    out = np.zeros((10, 3), np.float32)
    encode_dataset(RandomImages(), lambda image: image.mean(dim=(2, 3)), out, batch_size, num_workers, "test")
    np.testing.assert_array_equal(out[:, 0].astype(int), np.arange(10))


@pytest.fixture
def pictures(image_folder):
    """A data set of two images with a transform that draws from all three global generators."""

    def transform(image):
        import random

        return transforms.functional.to_tensor(image) + 0.1 * (torch.rand(()) + np.random.rand() + random.random())

    paths = sorted((image_folder / "red/down").iterdir())[:2]
    return SimpleNamespace(data_source=[SimpleNamespace(impath=str(path)) for path in paths], transform=transform)


def random_views(pictures, n_views):
    return MultiViewDataset(pictures, n_views, read_image=Image.open)


def test_views_are_repeatable_and_leave_global_generators_unchanged(pictures):
    torch.manual_seed(0)
    first = random_views(pictures, 3)[1]["img"]
    after = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(1), after)
    assert torch.equal(random_views(pictures, 3)[1]["img"], first)
    assert torch.equal(random_views(pictures, 2)[1]["img"], first[:2])  # fewer are the first of more
    shifts = first - transforms.functional.to_tensor(Image.open(pictures.data_source[1].impath))
    assert shifts.flatten(1).std(dim=1).max() < 1e-5 and len(set(shifts[:, 0, 0, 0].tolist())) == 3


def test_view_loader_draws_among_the_views_of_the_right_image():
    class Item:
        def __init__(self, label):
            self.label, self.domain = label, label % 2

    views = np.stack([np.arange(10)[:, None] + 100 * view for view in range(8)]).astype(np.float32)
    loader = FeatureLoader(views, [Item(i) for i in range(10)], [[1, 5, 7], [0, 9]])
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
