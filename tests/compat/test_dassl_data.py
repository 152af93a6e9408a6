"""From image files to batches."""

import gc
import pickle
import random
import re
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from dassl.data import DataManager, DatasetWrapper
from dassl.data.data_manager import build_data_loader
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum, build_dataset
from dassl.data.transforms import build_transform
from dassl.utils import UserError
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler


def datum(impath, label=0, domain=0, classname=""):
    """A Datum of an image that is not there, for tests that look at none."""
    item = Datum(__file__, label, domain, classname)
    item._impath = impath
    return item


def items(counts, domain=0):
    """``counts[label]`` items of each label."""
    return [
        datum(f"{domain}/{label}/{n}", label, domain, "abcdef"[label])
        for label, count in enumerate(counts)
        for n in range(count)
    ]


# -- datasets ---------------------------------------------------------------------------------------


def test_datum():
    item = Datum(__file__, 1, 2, "dog")
    assert (item.impath, item.label, item.domain, item.classname) == (__file__, 1, 2, "dog")
    assert (Datum(__file__).label, Datum(__file__).domain, Datum(__file__).classname) == (0, 0, "")
    assert repr(item) == f"Datum(impath={__file__!r}, label=1, domain=2, classname='dog')"
    with pytest.raises(AttributeError):
        item.label = 4


@pytest.mark.parametrize(
    ("impath", "message"),
    [
        ("/nonexistent.jpg", r"Image not found: '/nonexistent\.jpg'\. Check DATASET\.ROOT"),
        ("", "Image not found: ''"),
        ("/", "Image not found: '/'"),
        (3, r"\(impath\) must be a str, got int"),
    ],
)
def test_a_datum_asserts_that_its_image_is_there(impath, message):
    for kind in (AssertionError, UserError):
        with pytest.raises(kind, match=message):
            Datum(impath)


def test_datum_pickles_as_coops_caches_do():
    copy = pickle.loads(pickle.dumps(datum("a.jpg", 1, 2, "dog"), protocol=pickle.HIGHEST_PROTOCOL))
    assert (copy.impath, copy.label, copy.domain, copy.classname) == ("a.jpg", 1, 2, "dog")
    assert vars(copy) == {"_impath": "a.jpg", "_label": 1, "_domain": 2, "_classname": "dog"}


def test_classes_are_those_of_the_training_data():
    train = [datum("x", 2, 0, "c"), datum("y", 0, 0, "a"), datum("z", 1, 0, "b")]
    dataset = DatasetBase(train_x=train, val=train[:1], test=[datum("w", 0, 1, "other")])
    assert dataset.num_classes == 3
    assert dataset.lab2cname == {0: "a", 1: "b", 2: "c"}
    assert dataset.classnames == ["a", "b", "c"]
    assert (dataset.train_x, dataset.train_u, len(dataset.val), len(dataset.test)) == (train, None, 1, 1)


def test_without_training_data_classes_are_those_of_test():
    dataset = DatasetBase(test=items([1, 1]))
    assert dataset.train_x is None
    assert dataset.num_classes == 2
    assert dataset.classnames == ["a", "b"]


def test_class_names_never_shift_against_labels():
    dataset = DatasetBase(train_x=[datum("x", 0, 0, "a"), datum("y", 2, 0, "c")])
    assert dataset.num_classes == 3
    assert dataset.lab2cname == {0: "a", 2: "c"}
    with pytest.raises(UserError, match=r"DatasetBase: the labels go up to 2, but \[1\] have no image"):
        _ = dataset.classnames


def test_splitting():
    dataset = DatasetBase(train_x=items([1]))
    source = items([2, 1], domain=0) + items([1, 1], domain=3)
    by_label = dataset.split_dataset_by_label(source)
    assert {k: len(v) for k, v in by_label.items()} == {0: 3, 1: 2}
    by_domain = dataset.split_dataset_by_domain(source)
    assert {k: len(v) for k, v in by_domain.items()} == {0: 3, 3: 2}


def test_few_shot(capsys):
    dataset = DatasetBase(train_x=items([1]))
    train, val = items([5, 2, 3]), items([4, 4, 4])
    assert dataset.generate_fewshot_dataset(train, num_shots=-1) is train
    assert dataset.generate_fewshot_dataset(train, val) == (train, val)

    random.seed(0)
    few = dataset.generate_fewshot_dataset(train, num_shots=3)
    assert capsys.readouterr().out == "Creating a 3-shot dataset\n"
    assert [item.label for item in few] == [0] * 3 + [1] * 2 + [2] * 3
    assert len({item.impath for item in few}) == 8
    # The draw of Dassl.pytorch: random.sample, class by class.
    random.seed(0)
    assert few[:3] == random.sample([item for item in train if item.label == 0], 3)

    filled = dataset.generate_fewshot_dataset(train, num_shots=3, repeat=True)
    assert [item.label for item in filled] == [0] * 3 + [1] * 3 + [2] * 3
    both = dataset.generate_fewshot_dataset(train, val, num_shots=1)
    assert [len(few) for few in both] == [3, 3]


def test_unknown_domains_and_datasets(cfg):
    cfg.DATASET.SOURCE_DOMAINS = ["art", "foto"]
    message = r"domain of ToyDG \(DATASET.SOURCE_DOMAINS\): 'foto'. Accepted: art, photo, sketch. Did you mean "
    with pytest.raises(UserError, match=message):
        build_dataset(cfg)
    cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS = ["art"], ["clipart"]
    with pytest.raises(UserError, match=r"\(DATASET.TARGET_DOMAINS\): 'clipart'"):
        build_dataset(cfg)
    cfg.DATASET.NAME = "ToyDH"
    with pytest.raises(UserError, match=r"Unknown dataset: 'ToyDH'. Accepted: .*DATASET.NAME"):
        build_dataset(cfg)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_download_unpacks(tmp_path, kind):
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.txt").write_text("content")
    source = tmp_path / "web" / f"data.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(source, "w") as archive:
            archive.write(tmp_path / "web" / "a.txt", "folder/a.txt")
    else:
        with tarfile.open(source, "w:gz") as archive:
            archive.add(tmp_path / "web" / "a.txt", "folder/a.txt")
    target = tmp_path / "data" / f"data.{kind}"
    DatasetBase(train_x=items([1])).download_data(source.as_uri(), str(target), from_gdrive=False)
    assert (tmp_path / "data" / "folder" / "a.txt").read_text() == "content"


def test_download_failures_say_what_to_do(tmp_path):
    dataset = DatasetBase(train_x=items([1]))
    url = (tmp_path / "none.zip").as_uri()
    with pytest.raises(UserError, match=r"Could not download .*none\.zip.*by hand, unpack it in .*data"):
        dataset.download_data(url, str(tmp_path / "data" / "x.zip"), from_gdrive=False)
    (tmp_path / "page.zip").write_text("<html>quota exceeded</html>")
    with pytest.raises(UserError, match=r"not a zip or tar archive.*by hand"):
        dataset.download_data((tmp_path / "page.zip").as_uri(), str(tmp_path / "y.zip"), from_gdrive=False)


# -- the wrapper ------------------------------------------------------------------------------------


def test_an_item_is_a_dict(cfg):
    source = build_dataset(cfg).train_x
    wrapper = DatasetWrapper(cfg, source, transform=build_transform(cfg), is_train=True)
    item = wrapper[5]
    assert len(wrapper) == len(source)
    assert set(item) == {"img", "label", "domain", "impath", "index"}
    assert item["img"].shape == (3, 8, 8)
    expected = (source[5].label, source[5].domain, source[5].impath, 5)
    assert (item["label"], item["domain"], item["impath"], item["index"]) == expected


def test_several_transforms_views_and_the_plain_image(cfg):
    source = build_dataset(cfg).train_x
    crop = build_transform(cfg, choices=["random_resized_crop", "normalize"])
    plain = build_transform(cfg)
    cfg.DATALOADER.RETURN_IMG0 = True
    item = DatasetWrapper(cfg, source, transform=[plain, crop, plain], is_train=True)[0]
    assert {"img", "img2", "img3", "img0"} <= set(item)
    assert torch.equal(item["img"], item["img3"])
    assert torch.equal(item["img"], item["img0"])

    cfg.DATALOADER.K_TRANSFORMS = 2
    views = DatasetWrapper(cfg, source, transform=crop, is_train=True)[0]["img"]
    assert len(views) == 2
    assert not torch.equal(*views)
    assert DatasetWrapper(cfg, source, transform=crop, is_train=False)[0]["img"].shape == (3, 8, 8)
    with pytest.raises(UserError, match="DATALOADER.K_TRANSFORMS is 2"):
        DatasetWrapper(cfg, source, is_train=True)


def test_without_transform_the_image_is_passed_on(cfg):
    assert isinstance(DatasetWrapper(cfg, build_dataset(cfg).train_x)[0]["img"], Image.Image)


# -- loaders ----------------------------------------------------------------------------------------


def test_data_manager_end_to_end(cfg, capsys):
    cfg.VERBOSE = True
    cfg.DATALOADER.TEST.BATCH_SIZE = 5
    dm = DataManager(cfg)
    assert (dm.num_classes, dm.num_source_domains) == (3, 2)
    assert dm.lab2cname == {0: "cat", 1: "dog", 2: "owl"}
    assert dm.dataset.classnames == ["cat", "dog", "owl"]
    assert dm.train_loader_u is None
    assert [len(x) for x in (dm.train_loader_x, dm.val_loader, dm.test_loader)] == [3, 2, 3]
    batch = next(iter(dm.train_loader_x))
    assert batch["img"].shape == (6, 3, 8, 8)
    assert batch["label"].dtype == batch["domain"].dtype == batch["index"].dtype == torch.int64
    assert len(batch["impath"]) == 6
    for i, path in zip(batch["index"], batch["impath"], strict=True):
        assert dm.dataset.train_x[i].impath == path
    tested = [path for batch in dm.test_loader for path in batch["impath"]]
    assert tested == [item.impath for item in dm.dataset.test]
    seen = torch.cat([batch["index"] for batch in dm.train_loader_x])
    assert sorted(seen.tolist()) == list(range(18))
    table = capsys.readouterr().out
    assert "Loading dataset: ToyDG" in table
    for line in (r"Source +\('art', 'photo'\)", "# classes +3", "# train_x +18", "# val +6", "# test +12"):
        assert re.search(line, table), line


def test_custom_transform_and_wrapper(cfg):
    class Wrapper(DatasetWrapper):
        def __getitem__(self, idx):
            return {**super().__getitem__(idx), "extra": idx}

    def white(image):
        return torch.ones(3, 4, 4)

    dm = DataManager(cfg, custom_tfm_train=white, custom_tfm_test=white, dataset_wrapper=Wrapper)
    for loader in (dm.train_loader_x, dm.val_loader, dm.test_loader):
        batch = next(iter(loader))
        assert batch["img"].eq(1).all()
        assert torch.equal(batch["extra"], batch["index"])


def test_unlabelled_data_has_settings_of_its_own_or_those_of_x(cfg):
    cfg.DATASET.NAME = "ToyDA"
    cfg.DATALOADER.TRAIN_U.BATCH_SIZE = 4
    assert DataManager(cfg).train_loader_u.batch_size == 6
    cfg.DATALOADER.TRAIN_U.SAME_AS_X = False
    dm = DataManager(cfg)
    assert dm.train_loader_u.batch_size == 4
    assert dm.val_loader is None


def test_incomplete_batches(cfg):
    source = build_dataset(cfg).train_x
    assert len(build_data_loader(cfg, data_source=source, batch_size=5, is_train=True)) == 3
    assert len(build_data_loader(cfg, data_source=source, batch_size=5, is_train=False)) == 4
    assert len(build_data_loader(cfg, data_source=source, batch_size=50, is_train=True)) == 1


def test_empty_splits_are_named(cfg):
    with pytest.raises(UserError, match="training split of ToyDG is empty"):
        build_data_loader(cfg, data_source=[])
    source = items([2, 2])
    with pytest.raises(UserError, match="no complete batch of 6 in the 4 items of ToyDG"):
        build_data_loader(cfg, "SeqDomainSampler", source, batch_size=6)


def test_evaluation_only_data(cfg):
    @DATASET_REGISTRY.register(force=True)
    class TestOnly(DatasetBase):
        def __init__(self, cfg):
            super().__init__(test=items([2, 2]))

    cfg.DATASET.NAME = "TestOnly"
    dm = DataManager(cfg)
    assert dm.train_loader_x is None
    assert dm.val_loader is None
    assert dm.num_classes == 2


# -- worker processes -------------------------------------------------------------------------------


class Probe(DatasetWrapper):
    """Tells which worker made an item, and what its random generators gave."""

    shift = 0

    def __getitem__(self, idx):
        worker = torch.utils.data.get_worker_info()
        return {
            "index": idx + self.shift,
            "worker": -1 if worker is None else worker.id,
            "threads": torch.get_num_threads(),
            "draws": torch.tensor([random.random(), np.random.rand(), torch.rand(()).item()]),
        }


@pytest.fixture
def worker_cfg(cfg):
    cfg.DATALOADER.NUM_WORKERS = 2
    cfg.INPUT.TRANSFORMS = ["random_resized_crop"]
    return cfg


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_epochs_are_those_of_a_plain_loader(worker_cfg, workers):
    """What Dassl builds: epoch by epoch the same images in the same order, and the same draws in the workers."""
    worker_cfg.DATALOADER.NUM_WORKERS = workers
    source = items([6, 6])

    def epochs(loader):
        random.seed(3)
        np.random.seed(3)
        torch.manual_seed(3)
        return [[(batch["index"].tolist(), batch["draws"].tolist()) for batch in loader] for _ in range(3)]

    ours = build_data_loader(worker_cfg, "RandomSampler", source, batch_size=3, dataset_wrapper=Probe)
    plain = Probe(worker_cfg, source)
    theirs = DataLoader(plain, 3, sampler=RandomSampler(source), num_workers=workers, drop_last=True)
    assert epochs(ours) == epochs(theirs)


def test_what_changes_between_epochs_reaches_the_workers(worker_cfg):
    loader = build_data_loader(worker_cfg, "SequentialSampler", items([6]), batch_size=3, dataset_wrapper=Probe)
    list(loader)
    loader.dataset.shift = 100
    assert [i for batch in loader for i in batch["index"].tolist()] == list(range(100, 106))


def test_workers_draw_differently(worker_cfg):
    loader = build_data_loader(worker_cfg, "RandomSampler", items([6, 6]), batch_size=3, dataset_wrapper=Probe)
    epochs = [list(loader) for _ in range(2)]
    assert {worker for epoch in epochs for batch in epoch for worker in batch["worker"].tolist()} == {0, 1}
    draws = torch.cat([batch["draws"] for epoch in epochs for batch in epoch])
    for generator in draws.T:
        assert len(generator.unique()) == 24
    assert all(batch["threads"].eq(1).all() for epoch in epochs for batch in epoch)


def test_two_runs_give_the_same_batches(worker_cfg):
    def run():
        torch.manual_seed(3)
        random.seed(3)
        loader = DataManager(worker_cfg).train_loader_x
        partial = next(iter(loader))["img"]  # an epoch that is given up must not disturb the next
        return [partial] + [batch["img"] for _ in range(2) for batch in loader]

    first, second = run(), run()
    assert len(first) == 7
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1], first[4])


def test_a_second_iteration_does_not_disturb_the_first(worker_cfg):
    """As the authors of SPG do it; torch's persistent workers would silently start the outer loop again."""
    loader = build_data_loader(worker_cfg, "SequentialSampler", items([6, 6]), batch_size=3, dataset_wrapper=Probe)
    outer = []
    for batch in loader:
        outer += batch["index"].tolist()
        inner = [i for other in loader for i in other["index"].tolist()]
        assert inner == list(range(12))
        if len(outer) == 6:
            break
    assert outer == list(range(6))
    assert [i for batch in loader for i in batch["index"].tolist()] == list(range(12))


def message_of_the_error(loader):
    # Not pytest.raises, which keeps the frames of the error, and with them the workers, until a collection.
    try:
        next(iter(loader))
    except UserError as error:
        return str(error)
    pytest.fail("no error")


def test_workers_end_at_once_with_a_loader_in_a_cycle(worker_cfg, monkeypatch):
    """As that of a trainer whose parts point back to it."""
    # So long torch waits for each worker that does not hear of the end: longer than a busy machine takes to end one.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 60)
    loader = build_data_loader(worker_cfg, data_source=items([6]), batch_size=3, dataset_wrapper=Probe)
    loader.cycle = loader
    next(iter(loader))
    del loader
    since = time.monotonic()
    gc.collect()
    assert time.monotonic() - since < 60


@pytest.mark.parametrize("own_loader", [True, False])
def test_errors_in_workers_arrive_with_their_message(worker_cfg, tmp_path, own_loader):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    source = [Datum(str(tmp_path / "broken.png"), 0, 0, "a")] * 2
    if own_loader:
        loader = build_data_loader(worker_cfg, data_source=source, batch_size=1, tfm=build_transform(worker_cfg))
    else:
        loader = DataLoader(DatasetWrapper(worker_cfg, source), num_workers=2)
    message = message_of_the_error(loader)
    assert message.startswith(f"Cannot read the image {tmp_path}/broken.png: ")
    assert message.endswith("Download it again, or remove it.")
    assert "Traceback" not in message
