"""Decoded images in memory: equal numbers, one decoding of each image, limits, and processes that die."""

import multiprocessing
import os
import signal
from collections import Counter

import numpy as np
import pytest
from dassl.utils import read_image
from quick_run import outcome
from torch.utils.data import DataLoader

from trainers.modules.image_cache import ImageCache, image_cache

BYTES = 3 * 40 * 40  # of an image


@pytest.fixture(autouse=True)
def no_images_of_other_tests():
    image_cache.cache_clear()


@pytest.fixture
def paths(image_folder):
    return [str(path) for path in sorted(image_folder.rglob("*.png"))]


def read_twice(cache, paths):
    for path in [*paths, *paths]:
        assert (np.asarray(cache.read(path)) == np.asarray(read_image(path))).all()


@pytest.mark.parametrize("trainer", ["SPG", "VP"])
def test_cached_images_and_loader_workers_change_no_number(finish_run, tmp_path, trainer):
    found = []
    for megabytes, workers in (("0", "0"), ("0", "2"), ("-1", "0"), ("-1", "2")):
        image_cache.cache_clear()
        opts = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.NUM_WORKERS", workers, "DATALOADER.CACHE_MB", megabytes)
        found.append(outcome(finish_run(trainer, *opts)))
        for path in [*tmp_path.glob("run"), *tmp_path.glob("prompt_labels")]:
            path.rename(tmp_path / f"{path.name} {megabytes} {workers}")
    assert found[0] == found[1] == found[2] == found[3] and image_cache(-1, read_image)._used[0] > 0


@pytest.mark.parametrize(("trainer", "megabytes", "n"), [("CoOp", "-1", 1), ("CoOp", "0", 3), ("VP", "-1", 1)])
def test_each_image_of_training_and_validation_is_decoded_once(train, opened, trainer, megabytes, n):
    opts = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.TRAIN_X.BATCH_SIZE", "4", "TEST.FINAL_MODEL", "best_val")
    assert train(trainer, "red", *opts, "DATALOADER.CACHE_MB", megabytes) == 0
    counts = Counter(path for path, is_final in opened if not is_final)
    assert counts and set(counts.values()) <= {1, n} and max(counts.values()) == n


@pytest.mark.parametrize(
    "box", [(3, 5, 20, 40), (0, 0, 40, 40), (-2, 5, 50, 7), (1.6, 2.5, 9.4, 9), (5, 5, 5, 9), None]
)
def test_crop_of_a_stored_image_equals_the_crop_of_its_file(paths, box):
    cache = ImageCache(BYTES, read_image)
    cache.add(paths[:1])
    read_twice(cache, paths[:1])
    assert (np.asarray(cache.read(paths[0]).crop(box)) == np.asarray(read_image(paths[0]).crop(box))).all()


@pytest.mark.parametrize(("limit", "free", "n"), [(10 * BYTES + 5, 2**60, 10), (100 * BYTES, 100, 4)])
def test_images_beyond_the_limit_and_the_free_memory_are_decoded_each_time(paths, monkeypatch, limit, free, n):
    monkeypatch.setattr("trainers.modules.image_cache.CHECKED_BYTES", 5 * BYTES)
    decoded = []
    cache = ImageCache(limit, lambda path: decoded.append(path) or read_image(path))
    monkeypatch.setattr("trainers.modules.image_cache.free_memory", lambda: free)
    cache.add(paths)
    read_twice(cache, paths)
    assert decoded == [*paths, *paths[n:]]


def test_loader_workers_share_what_one_of_them_decodes(paths):
    cache = ImageCache(100 * BYTES, read_image)
    cache.add(paths)

    class Images:
        def __len__(self):
            return len(paths)

        def __getitem__(self, index):
            return np.array(cache.read(paths[index]))

    def load(n_workers):
        return np.concatenate([batch.numpy() for batch in DataLoader(Images(), 4, num_workers=n_workers)])

    expected = np.stack([np.asarray(read_image(path)) for path in paths])
    assert (load(2) == expected).all()
    cache.read_image = None  # nothing is decoded again, not even in this process
    assert (load(2) == expected).all() and (load(0) == expected).all()


@pytest.mark.parametrize("part", ["_used", "_pixels", "_places"])
def test_worker_that_dies_while_it_stores_an_image_damages_no_other(paths, part):
    cache = ImageCache(100 * BYTES, read_image)
    cache.add(paths)

    class DiesAtWrite:
        def __init__(self, array):
            self.array = array

        def __getitem__(self, key):
            return self.array[key]

        def __setitem__(self, key, value):
            os.kill(os.getpid(), signal.SIGKILL)

    def die():
        setattr(cache, part, DiesAtWrite(getattr(cache, part)))
        cache.read(paths[0])

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    read_twice(cache, paths)


def test_limit_that_the_machine_lacks_is_a_warning(capsys):
    assert image_cache(2**40, read_image) is None
    assert "DATALOADER.CACHE_MB" in "".join(capsys.readouterr())


def test_equal_images_share_memory_and_changed_ones_do_not(images):
    one, copy = images / "red/down/0.png", images / "red/down/copy.png"
    copy.write_bytes(one.read_bytes())
    cache = ImageCache(2 * BYTES, read_image)
    cache.add([str(one), str(copy)])
    read_twice(cache, [str(one), str(copy)])
    assert cache._used[0] == BYTES
    one.write_bytes((images / "red/across/0.png").read_bytes())
    cache.add([str(one)])
    read_twice(cache, [str(one)])
