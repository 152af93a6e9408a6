"""Our trainers with data sets of Dassl's and CoOp's users."""

import itertools

import pytest
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from PIL import Image

from common.errors import UserError
from common.image_results import read_predictions
from common.run import read_results
from datasets.adapted import AdaptedDataset
from scripts import results as tables

CLASSES = ("ant", "bee", "cat", "dog")


def images(folder, *domains):
    """4 images for each domain and class, of 40 x 40 pixels: [(path, domain, label)]."""
    found = []
    for domain, label, number in itertools.product(domains or ("",), range(len(CLASSES)), range(4)):
        path = folder / f"{domain}_{CLASSES[label]}_{number}.png"
        if not path.exists():
            Image.new("RGB", (40, 40), (60 * label, 50 * number, 10 * len(domain))).save(path)
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
            subset = {"all": range(4), "base": range(2), "new": range(2, 4)}[cfg.DATASET.SUBSAMPLE_CLASSES]
            items = [
                Datum(path, label - subset[0], classname=CLASSES[label])
                for path, _, label in images(folder)
                if label in subset
            ]
            super().__init__(train_x=items[::2], val=items[1::4], test=items[3::4])

    @DATASET_REGISTRY.register()
    class Styles(DatasetBase):
        domains = ["art", "photo", "sketch"]

        def __init__(self, cfg):
            sources, targets = cfg.DATASET.SOURCE_DOMAINS, cfg.DATASET.TARGET_DOMAINS
            self.check_input_domains(sources, targets)
            train, test = self.read(sources), self.read(targets)
            super().__init__(train_x=train[::2], val=train[1::2], test=test)

        def read(self, names):
            found = images(folder, *names)
            return [Datum(path, label, list(names).index(domain), CLASSES[label]) for path, domain, label in found]

    yield
    for name in ("Insects", "Styles", "Named"):
        DATASET_REGISTRY._obj_map.pop(name, None)


def run(train, trainer, name, *opts, flags=(), target=""):
    chosen = "DATASET.NAME", name, "DATASET.TARGET_DOMAINS", str([target] if target else [])
    return train(trainer, "x", "TEST.FINAL_MODEL", "best_val", *chosen, *opts, flags=flags)


@pytest.mark.parametrize("trainer", ["LinearProbe", "SPG"])
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
    accuracies = []
    for classes, names, flags in (
        ("base", ["ant", "bee"], []),
        ("new", ["cat", "dog"], ["--eval-only", "--model-dir", "runs/base"]),
    ):
        flags = [*flags, "--output-dir", f"runs/{classes}"]
        assert run(train, "CoOp", "Insects", "DATASET.SUBSAMPLE_CLASSES", classes, flags=flags) == 0
        found = read_results(tmp_path / f"runs/{classes}/results.json")
        assert (found["protocol"], found["class_subset"], found["classnames"]) == ("base-to-new", classes, names)
        accuracies.append(found["accuracy"])
    capsys.readouterr()
    assert tables.main(["runs", "--format", "csv"]) == 0
    printed = capsys.readouterr().out
    harmonic = 2 / sum(1 / accuracy for accuracy in accuracies) if all(accuracies) else 0
    assert "harmonic mean" in printed and "[1]" not in printed
    assert f"CoOp,harmonic mean,{harmonic:.4f}," in printed


def test_class_names_that_prompts_cannot_tell_apart_raise(expect_error, folder):
    for names, message in (
        (("ant",), "there is only ant"),
        (("ant", "ANT", "bee"), "'ant' and 'ANT': they have the same tokens"),
        (("ant", "b\udce9e"), r"'b\udce9e': it is not UTF-8"),
    ):
        found = [Datum(path, label, 0, names[label]) for path, _, label in images(folder) if label < len(names)]
        DATASET_REGISTRY._obj_map["Named"] = lambda cfg, found=found: DatasetBase(train_x=found, val=found, test=found)
        assert message in expect_error("ZeroshotCLIP", "x", "DATASET.NAME", "Named", "DATASET.TARGET_DOMAINS", "[]")


def items(folder, *domains, classname="cat"):
    path, *_ = images(folder)[0]
    return [Datum(path, 0, domain, classname) for domain in domains]


def a_set(train, test, domains=()):
    dataset = DatasetBase(train_x=train, val=[], test=test)
    dataset.domains = list(domains)
    return dataset


def test_domain_is_an_index_into_names_or_chosen_domains(folder):
    of_all = a_set(items(folder, 1, 2), items(folder, 0), "abc")
    of_chosen = a_set(items(folder, 0, 1), items(folder, 0), "abc")
    for dataset, chosen, domains in (
        (of_all, (), [1, 2, 0]),
        (of_all, (["b", "c"], ["a"]), [1, 2, 0]),
        (of_chosen, (["c", "a"], ["b"]), [2, 0, 1]),
    ):
        found = AdaptedDataset(dataset, "Set", *chosen)
        assert [item.domain for item in found.train_x + found.test] == domains
    assert AdaptedDataset(of_all, "Set").source_domains == ["b", "c"]


def test_fingerprints_follow_images_and_splits(folder):
    one, other = items(folder, 0), [Datum(images(folder)[1][0], 0, 0, "cat")]
    found = [AdaptedDataset(a_set(train, test), "Set") for train, test in ((one, one), (other, one), (one, other))]
    assert found[0].fingerprint == found[2].fingerprint != found[1].fingerprint
    assert found[0].test_fingerprint == found[1].test_fingerprint != found[2].test_fingerprint


def test_ambiguous_data_sets_raise(folder):
    cat, nameless = items(folder, 0), items(folder, 0, classname="")
    for train, test, domains, chosen, message in (
        (cat, [], "", (), "Set has no test images. Give DatasetBase"),
        ([], cat, "ab", ((), ["b"]), r"no training images then. Name some of a, b \(--source-domains\)"),
        (items(folder, 0, 1), cat, "", (), "Set: its class does not name its domains. Give it `domains = "),
        (cat, cat, "ab", (["a"], ["z"]), "Set has no domain z. Name some of a, b"),
        (items(folder, 0, 5), cat, "ab", (), "images of domain 5 in train_x. Make Datum.domain an index"),
        (nameless, nameless, "", (), "has no class name for prompts. Set Datum.classname"),
    ):
        with pytest.raises(UserError, match=message):
            AdaptedDataset(a_set(train, test, domains), "Set", *chosen)
