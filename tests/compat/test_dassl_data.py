"""Transforms, samplers, data sets and loaders against figures and draws recorded from Dassl.pytorch."""

import pickle
import random

import numpy as np
import pytest
import torch
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DatasetBase, Datum, build_dataset
from dassl.data.samplers import build_sampler
from dassl.data.transforms import AVAI_CHOICES, build_transform
from dassl.utils import UserError, read_image, tools
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

# Choice -> mean and weighted mean of 40 images, then the next draw of python, NumPy and torch.
RECORDED = {
    "random_crop": (0.49057, 0.24671, 0.13436, 0.41702, 0.14844),
    "all": (2.75535, 0.00122, 0.60114, 0.52706, 0.95212),
    "test": (0.49742, 0.12517, 0.13436, 0.41702, 0.75763),
}


@pytest.mark.parametrize("choice", RECORDED)
def test_transforms_give_the_images_and_draws_recorded_from_dassl(cfg, choice):
    cfg.merge_from_list(["INPUT.SIZE", (24, 32), "INPUT.GB_K", 5, "INPUT.CUTOUT_N", 2])
    image = Image.fromarray(np.random.RandomState(0).randint(0, 256, (50, 70, 3)).astype(np.uint8))
    choices = {"all": [name for name in AVAI_CHOICES if name != "random_crop"], "test": ["random_flip", "normalize"]}
    transform = build_transform(cfg, is_train=choice != "test", choices=choices.get(choice, [choice]))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    images = torch.stack([transform(image) for _ in range(40)])
    assert images.shape[1:] == (3, 24, 32)
    means = [images.abs().mean().item(), (images * torch.arange(24 * 32).view(24, 32) / (24 * 32)).mean().item()]
    assert means == pytest.approx(RECORDED[choice][:2], abs=2e-4)
    draws = [random.random(), np.random.rand(), torch.rand(()).item()]
    assert draws == pytest.approx(RECORDED[choice][2:], abs=1e-5)


@pytest.mark.parametrize(
    ("name", "arguments", "epochs"),
    [
        ("RandomDomainSampler", {"batch_size": 4, "n_domain": 2}, [[4, 3, 8, 6, 2, 1, 10, 14]]),
        ("SeqDomainSampler", {"batch_size": 6}, [[6, 8, 4, 3, 13, 11, 5, 9, 2, 1, 14, 10]]),
        (
            "RandomClassSampler",  # of 5 images a class, so that some come twice
            {"batch_size": 12, "n_ins": 6},
            [[4, 14, 6, 1, 9, 11, 12, 7, 12, 7, 7, 7], [7, 2, 7, 2, 12, 2, 14, 11, 9, 1, 6, 4]],
        ),
    ],
)
def test_samplers_give_the_draws_recorded_from_dassl(name, arguments, epochs):
    source = [Datum(__file__, i % 3, domain) for domain in (1, 0, 2) for i in range(5)]
    random.seed(3)
    np.random.seed(3)
    sampler = build_sampler(name, data_source=source, **arguments)
    assert sampler.length == len(epochs[0])
    for expected in epochs:
        assert len(sampler) == len(expected)
        assert list(sampler) == expected


# -- images -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [(np.uint8, "png"), (np.uint16, "png"), (np.int32, "ppm")])
def test_read_image_scales_grey_levels_to_8_bits_and_warns_once(tmp_path, kind, suffix, recwarn):
    tools._warned[:] = bytes(len(tools._warned))
    ramp = np.tile(np.arange(256, dtype=kind), (2, 1))
    Image.fromarray(ramp if kind is np.uint8 else ramp * 257).save(tmp_path / f"image.{suffix}")
    for _ in range(2):
        pixels = np.asarray(read_image(str(tmp_path / f"image.{suffix}")))
        np.testing.assert_array_equal(pixels, np.repeat(ramp[..., None], 3, axis=2))
    assert [str(warning.message).count("16 bits") for warning in recwarn] == [1] * (kind is not np.uint8)


# -- data sets --------------------------------------------------------------------------------------


def items(counts):
    return [Datum(__file__, label, 0, "abcdef"[label]) for label, count in enumerate(counts) for _ in range(count)]


def test_datum_pickles_as_coops_few_shot_caches_do():
    copy = pickle.loads(pickle.dumps(Datum(__file__, 1, 2, "dog"), protocol=pickle.HIGHEST_PROTOCOL))
    assert vars(copy) == {"_impath": __file__, "_label": 1, "_domain": 2, "_classname": "dog"}
    assert (type(copy).__module__, type(copy).__name__) == ("dassl.data.datasets.base_dataset", "Datum")


def test_classes_follow_training_data_and_never_shift():
    train = items([1, 1, 1])
    dataset = DatasetBase(train_x=train[::-1], test=[Datum(__file__, 0, 1, "other")])
    assert (dataset.num_classes, dataset.classnames, dataset.lab2cname[2]) == (3, ["a", "b", "c"], "c")
    assert DatasetBase(test=train).classnames == ["a", "b", "c"]
    with pytest.raises(UserError, match=r"the labels go up to 2, but \[1\] have no image"):
        _ = DatasetBase(train_x=[train[0], train[2]]).classnames


def test_wrapper_gives_several_transforms_views_and_the_plain_image(cfg):
    source = build_dataset(cfg).train_x
    plain, crop = build_transform(cfg), build_transform(cfg, choices=["random_resized_crop", "normalize"])
    cfg.DATALOADER.RETURN_IMG0, cfg.DATALOADER.K_TRANSFORMS = True, 2
    item = DatasetWrapper(cfg, source, transform=[plain, crop], is_train=True)[5]
    assert (item["label"], item["impath"], item["index"]) == (source[5].label, source[5].impath, 5)
    assert torch.equal(item["img"][0], item["img0"]) and not torch.equal(*item["img2"])
    assert DatasetWrapper(cfg, source, transform=crop)[0]["img"].shape == (3, 8, 8)
    with pytest.raises(UserError, match="DATALOADER.K_TRANSFORMS is 2"):
        DatasetWrapper(cfg, source, is_train=True)


# -- loaders ----------------------------------------------------------------------------------------


class Probe(DatasetWrapper):
    """Items with the draws of the random generators of their worker."""

    def __getitem__(self, idx):
        return {"index": idx, "draws": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()])}


@pytest.mark.parametrize("workers", [0, 2])
def test_epochs_equal_a_plain_loader_even_if_nested(cfg, workers):
    """Dassl builds a plain DataLoader. The authors of SPG loop over it again within the loop."""
    cfg.DATALOADER.NUM_WORKERS = workers
    source = items([6, 6])

    def epochs(loader):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        return [(b["index"].tolist(), b["draws"].tolist(), next(iter(loader))["index"].tolist()) for b in loader]

    ours = build_data_loader(cfg, "RandomSampler", source, batch_size=5, dataset_wrapper=Probe)
    theirs = DataLoader(Probe(cfg, source), 5, sampler=RandomSampler(source), num_workers=workers, drop_last=True)
    assert epochs(ours) == epochs(theirs)
    assert len(ours) == 2


def test_data_manager_builds_the_loaders_of_all_splits(cfg):
    cfg.DATASET.NAME, cfg.DATALOADER.TRAIN_U.BATCH_SIZE, cfg.DATALOADER.TEST.BATCH_SIZE = "ToyDA", 4, 5
    assert DataManager(cfg).train_loader_u.batch_size == 6
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    dm = DataManager(cfg, custom_tfm_test=lambda image: torch.ones(3, 4, 4))
    assert (dm.num_classes, dm.num_source_domains, dm.lab2cname) == (3, 2, {0: "cat", 1: "dog", 2: "owl"})
    assert [len(loader) for loader in (dm.train_loader_x, dm.train_loader_u, dm.test_loader)] == [3, 3, 3]
    assert dm.val_loader is None
    assert next(iter(dm.train_loader_x))["img"].shape == (6, 3, 8, 8)
    assert [path for batch in dm.test_loader for path in batch["impath"]] == [d.impath for d in dm.dataset.test]
    assert next(iter(dm.test_loader))["img"].eq(1).all()
