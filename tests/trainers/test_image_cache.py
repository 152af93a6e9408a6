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


def read_all(cache, paths):
    return [np.asarray(cache.read(path)) for path in paths]


@pytest.mark.parametrize("trainer", ["SPG", "VP"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_cached_images_change_no_number(finish_run, tmp_path, trainer, workers):
    opts = ("OPTIM.MAX_EPOCH", "3", "DATALOADER.NUM_WORKERS", workers)
    found = {}
    for megabytes in ("0", "-1"):
        found[megabytes] = outcome(finish_run(trainer, *opts, "DATALOADER.CACHE_MB", megabytes))
        for path in [*tmp_path.glob("run"), *tmp_path.glob("prompt_labels")]:
            path.rename(tmp_path / f"{path.name} {megabytes}")
    assert found["0"] == found["-1"] and image_cache(-1, read_image)._used[0] > 0


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
    for _ in range(3):  # the first read decodes the image
        image = cache.read(paths[0])
        assert (np.asarray(image.crop(box)) == np.asarray(read_image(paths[0]).crop(box))).all()
        assert (np.asarray(image) == np.asarray(read_image(paths[0]))).all() and image.mode == "RGB"
        assert (np.asarray(image.crop(box)) == np.asarray(read_image(paths[0]).crop(box))).all()


def test_images_beyond_the_limit_are_decoded_each_time(paths):
    decoded = []
    cache = ImageCache(10 * BYTES + 5, lambda path: decoded.append(path) or read_image(path))
    cache.add(paths)
    for _ in range(2):
        for image, path in zip(read_all(cache, paths), paths, strict=True):
            assert (image == np.asarray(read_image(path))).all()
    assert decoded == [*paths, *paths[10:]]


def test_cache_stops_when_other_processes_use_the_memory(paths, monkeypatch):
    monkeypatch.setattr("trainers.modules.image_cache.CHECKED_BYTES", 5 * BYTES)
    decoded = []
    cache = ImageCache(100 * BYTES, lambda path: decoded.append(path) or read_image(path))
    monkeypatch.setattr("trainers.modules.image_cache.free_memory", lambda: 100)
    cache.add(paths)
    read_all(cache, paths), read_all(cache, paths)
    assert decoded == [*paths, *paths[4:]]


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
    for _ in range(2):
        for image, path in zip(read_all(cache, paths), paths, strict=True):
            assert (image == np.asarray(read_image(path))).all()


def test_limit_that_the_machine_lacks_is_a_warning(capsys):
    assert image_cache(2**40, read_image) is None
    assert "DATALOADER.CACHE_MB" in "".join(capsys.readouterr())


def test_equal_images_share_memory_and_changed_ones_do_not(images):
    one, copy = images / "red/down/0.png", images / "red/down/copy.png"
    copy.write_bytes(one.read_bytes())
    cache = ImageCache(2 * BYTES, read_image)
    cache.add([str(one), str(copy)])
    first, second = read_all(cache, [str(one), str(copy)])
    assert (first == second).all() and cache._used[0] == BYTES
    one.write_bytes((images / "red/across/0.png").read_bytes())
    cache.add([str(one)])
    assert (read_all(cache, [str(one)])[0] == np.asarray(read_image(one))).all()
