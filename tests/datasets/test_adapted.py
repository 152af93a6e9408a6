"""Our trainers with data sets of Dassl's and CoOp's users."""

import math
from types import SimpleNamespace

import pytest
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

from common.errors import UserError
from common.image_results import read_predictions
from common.run import read_results
from datasets.adapted import AdaptedDataset, adapted
from scripts import results as tables

CLASSES = ("ant", "bee", "cat", "dog")


def images(folder, *domains):
    """4 images for each domain and class, of 40 x 40 pixels: [(path, domain, label)]."""
    import numpy as np
    from PIL import Image

    rng, found = np.random.default_rng(0), []
    for domain in domains or ("",):
        for label in range(len(CLASSES)):
            for number in range(4):
                path = folder / f"{domain}_{CLASSES[label]}_{number}.png"
                if not path.exists():
                    image = rng.integers(0, 60, (40, 40, 3)).astype(np.uint8)
                    image[..., label % 3] += 150
                    Image.fromarray(image).save(path)
                found.append((str(path), domain, label))
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@pytest.fixture(scope="module", autouse=True)
def registered(folder):
    """Registered data sets by name: in CoOp's style, without domains, and in Dassl's style."""

    @DATASET_REGISTRY.register()
    class Insects(DatasetBase):
        def __init__(self, cfg):
            items = [Datum(path, label, classname=CLASSES[label]) for path, _, label in images(folder)]
            splits = items[::2], items[1::4], items[3::4]
            labels = range(len(CLASSES))
            half = math.ceil(len(CLASSES) / 2)
            subset = {"all": labels, "base": labels[:half], "new": labels[half:]}[cfg.DATASET.SUBSAMPLE_CLASSES]
            train, val, test = (
                [Datum(i.impath, i.label - subset[0], classname=i.classname) for i in items if i.label in subset]
                for items in splits
            )
            super().__init__(train_x=train, val=val, test=test)

    @DATASET_REGISTRY.register()
    class Styles(DatasetBase):
        domains = ["art", "photo", "sketch"]

        def __init__(self, cfg):
            self.check_input_domains(cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS)
            train, test = self.read(cfg.DATASET.SOURCE_DOMAINS), self.read(cfg.DATASET.TARGET_DOMAINS)
            super().__init__(train_x=train[::2], val=train[1::2], test=test)

        def read(self, names):
            return [
                Datum(path, label, list(names).index(domain), CLASSES[label])
                for path, domain, label in images(folder, *names)
            ]

    yield
    for name in ("Insects", "Styles", "Named"):
        DATASET_REGISTRY._obj_map.pop(name, None)


def run(train, trainer, name, *opts, flags=(), target=""):
    chosen = "DATASET.NAME", name, "DATASET.TARGET_DOMAINS", str([target] if target else [])
    return train(trainer, "x", "TEST.FINAL_MODEL", "best_val", *chosen, *opts, flags=flags)


@pytest.mark.parametrize("trainer", ["ZeroshotCLIP", "LinearProbe", "CoOp", "SPG"])
def test_set_without_domains_trains_and_tests(train, tmp_path, trainer):
    assert run(train, trainer, "Insects") == 0
    found = read_results(tmp_path / "run/results.json")
    assert (found["dataset"], found["protocol"]) == ("Insects", "in-domain")
    assert found["source_domains"] == found["target_domains"] == ["Insects"]
    assert found["classnames"] == list(CLASSES) and found["n_test"] == 4
    assert {row["domain"] for row in read_predictions(tmp_path / "run/predictions.csv")} == {"Insects"}


def test_set_of_dassl_has_source_and_target_domains(train, tmp_path):
    # Images of "photo" and "sketch" have the domains 0 and 1, images of "art" the domain 0.
    opts = "DATASET.SOURCE_DOMAINS", "['photo', 'sketch']"
    assert run(train, "SPG", "Styles", *opts, target="art") == 0
    found = read_results(tmp_path / "run/results.json")
    assert (found["source_domains"], found["target_domains"]) == (["photo", "sketch"], ["art"])
    assert found["protocol"] == "multi-source" and list(found["accuracy_by_domain"]) == ["art"]
    labels = tmp_path / "prompt_labels/Styles/tiny/seed_1"
    assert sorted(path.name for path in labels.glob("*.pt")) == ["photo.pt", "sketch.pt"]


def test_base_and_new_classes_get_a_harmonic_mean(train, tmp_path, capsys):
    for trainer in ("CoOp", "ZeroshotCLIP"):
        base, new = (["--output-dir", f"runs/{trainer}_{classes}"] for classes in ("base", "new"))
        assert run(train, trainer, "Insects", "DATASET.SUBSAMPLE_CLASSES", "base", flags=base) == 0
        if trainer == "CoOp":
            new += ["--eval-only", "--model-dir", base[1]]
        assert run(train, trainer, "Insects", "DATASET.SUBSAMPLE_CLASSES", "new", flags=new) == 0
    accuracies = []
    for classes, names in (("base", ["ant", "bee"]), ("new", ["cat", "dog"])):
        found = read_results(tmp_path / f"runs/CoOp_{classes}/results.json")
        assert (found["protocol"], found["class_subset"], found["classnames"]) == ("base-to-new", classes, names)
        accuracies.append(found["accuracy"])
    capsys.readouterr()
    assert tables.main(["runs", "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    harmonic = 2 / sum(1 / accuracy for accuracy in accuracies) if all(accuracies) else 0
    assert "harmonic mean" in printed and "[1]" not in printed
    assert f"CoOp,harmonic mean,{harmonic:.4f}," in printed


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("ant",), "there is only ant"),
        (("ant", "ANT", "bee"), "'ant' and 'ANT': they have the same tokens"),
        (("a&b", "a&amp;b"), "'a&b' and 'a&amp;b'"),
        (("ant", "b\udce9e"), r"'b\udce9e': it is not UTF-8"),
    ],
)
def test_class_names_with_the_same_tokens_raise(expect_error, folder, names, message):
    register(folder, names)
    assert message in expect_error("ZeroshotCLIP", "x", "DATASET.NAME", "Named", "DATASET.TARGET_DOMAINS", "[]")


def test_class_name_of_two_labels_warns(train, folder, capsys):
    register(folder, ("missile", "missile", "ant"))  # as in CLIP's names for ImageNet
    assert train("ZeroshotCLIP", "x", "DATASET.NAME", "Named", "DATASET.TARGET_DOMAINS", "[]") == 0
    assert "several labels have the class name missile" in capsys.readouterr().out


def register(folder, names):
    """Register a data set in Dassl's style with these class names as "Named"."""
    found = [Datum(path, label, 0, names[label]) for path, _, label in images(folder) if label < len(names)]

    def named(cfg):
        return DatasetBase(train_x=found, val=found, test=found)

    DATASET_REGISTRY._obj_map["Named"] = named


def items(folder, *domains, classname="cat"):
    path, *_ = images(folder)[0]
    return [Datum(path, 0, domain, classname) for domain in domains]


def a_set(train, test, domains=(), val=()):
    dataset = DatasetBase(train_x=train, val=list(val), test=test)
    dataset.domains = list(domains)
    return dataset


def test_domain_is_an_index_into_names_or_chosen_domains(folder):
    of_all = a_set(items(folder, 1, 2), items(folder, 0), "abc")
    found = AdaptedDataset(of_all, "Set")
    assert (found.source_domains, found.target_domains) == (["b", "c"], ["a"])
    assert [item.domain for item in found.train_x] == [1, 2]
    found = AdaptedDataset(of_all, "Set", ["b", "c"], ["a"])
    assert [item.domain for item in found.train_x + found.test] == [1, 2, 0]
    found = AdaptedDataset(a_set(items(folder, 0, 1), items(folder, 0), "abc"), "Set", ["c", "a"], ["b"])
    assert [item.domain for item in found.train_x + found.test] == [2, 0, 1]


def test_fingerprints_follow_images_and_splits(folder):
    one, other = items(folder, 0), [Datum(images(folder)[1][0], 0, 0, "cat")]
    found = [AdaptedDataset(a_set(train, test), "Set") for train, test in ((one, one), (other, one), (one, other))]
    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint
    assert found[0].test_fingerprint == found[1].test_fingerprint != found[2].test_fingerprint


@pytest.mark.parametrize(
    ("train", "test", "domains", "asked", "classname", "message"),
    [
        ((0,), (), "", (), "cat", "Set has no test images. Give DatasetBase"),
        ((), (0,), "ab", ((), ["b"]), "cat", r"no training images then. Name some of a, b \(--source-domains\)"),
        ((0, 1), (0,), "", (), "cat", "Set: its class does not name its domains. Give it `domains = "),
        ((0,), (0,), "", (["a"], ["b"]), "cat", "Set has no domain a. Name some of Set"),
        ((0,), (0,), "ab", (["a"], ["z"]), "cat", "Set has no domain z. Name some of a, b"),
        ((0, 5), (0,), "ab", (), "cat", "images of domain 5 in train_x. Make Datum.domain an index"),
        ((0,), (0,), "", (), "", "has no class name for prompts. Set Datum.classname"),
    ],
)
def test_ambiguous_data_sets_raise(folder, train, test, domains, asked, classname, message):
    dataset = a_set(items(folder, *train, classname=classname), items(folder, *test, classname=classname), domains)
    with pytest.raises(UserError, match=message):
        AdaptedDataset(dataset, "Set", *asked)


def test_our_own_sets_are_not_adapted(image_folder):
    from dataset_trees import config

    from datasets.folder import FolderDG

    dataset = FolderDG(config(image_folder, target=("red",)))
    assert adapted(dataset, SimpleNamespace()) is dataset
