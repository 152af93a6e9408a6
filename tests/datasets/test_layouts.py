"""Every set in every layout, and wrong folders."""

import os
import shutil

import pytest
from dassl.data.datasets import DATASET_REGISTRY
from dataset_trees import CLASS_FOLDERS, SETS, config, make_set, paths, write_images

import datasets  # noqa: F401 (registers)
from common.errors import UserError
from datasets.benchmarks import SPG_PACS, SPG_VLCS, SPG_DomainNet, SPG_OfficeHome, SPG_TerraIncognita

DASSL, DOMAINBED, AUTHORS = SPG_PACS.layouts


@pytest.fixture
def pacs(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS)
    return tmp_path


@pytest.mark.parametrize("dataset", SETS)
def test_set_has_the_same_images_and_labels_in_every_layout(dataset, tmp_path):
    source, target = dataset.domains[0], dataset.domains[-1]
    per_class, n_train, n_val = (2, 1, 1) if dataset is SPG_DomainNet else (10, 7, 3)
    n_classes, tested = len(CLASS_FOLDERS[dataset]), set()
    for layout in dataset.layouts:
        root = tmp_path / layout.name.replace("/", "_")
        own = make_set(root, dataset, layout, per_class, domains=[source, target])
        found = dataset(config(root, [target], [source]))
        assert found.layout == layout and found.dataset_dir == str(own)
        assert len(found.classnames) == found.num_classes == n_classes
        assert found.classnames == sorted(found.classnames) == list(found.lab2cname.values())
        items = found.train_x + found.val + found.test
        assert all(found.classnames[item.label] == item.classname and os.path.isfile(item.impath) for item in items)
        assert {item.domain for item in found.train_x + found.val} == {0}
        assert {item.domain for item in found.test} == {len(dataset.domains) - 1}
        sizes = len(found.train_x), len(found.val), len(found.test)
        assert sizes == (n_train * n_classes, n_val * n_classes, per_class * n_classes)
        tested.add((found.test_fingerprint, *paths(found.test)))
    assert len(tested) == 1


def test_declarations_have_the_published_codes_and_counts():
    codes, n_images = ("acps", "clps", "acpr", "1234", "cipqrs"), (9991, 10729, 15588, 24330, 586575)
    for dataset, letters, n in zip(SETS, codes, n_images, strict=True):
        assert DATASET_REGISTRY.get(dataset.__name__) is dataset
        assert dataset.list_codes() == list(letters) and sum(dataset.image_counts.values()) == n
        assert dataset.list_domains() == sorted(dataset.domains) == sorted(dataset.image_counts)
        for code, domain in zip(letters, dataset.domains, strict=True):
            others = [other for other in dataset.domains if other != domain]
            assert dataset.resolve_domains(target_domains=[code]) == (others, [domain])


def test_parts_of_vlcs_and_officehome_decide_the_split(tmp_path):
    folder = make_set(tmp_path, SPG_VLCS, SPG_VLCS.layouts[0])
    write_images(folder / "SUN/crossval/0", ["not_used.jpg"])  # in Dassl's download
    vlcs = SPG_VLCS(config(tmp_path, ["c"], ["s"]))
    assert {item.impath.split("/")[-3] for item in vlcs.train_x} == {"full"}
    assert {item.impath.split("/")[-3] for item in vlcs.val} == {"test"}
    make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[0], 20)  # 14 and 6 images of a class
    office = SPG_OfficeHome(config(tmp_path, ["a"], ["p"]))
    assert sum("/train/Alarm_Clock/" in item.impath for item in office.train_x) == 10
    assert sum("/val/Alarm_Clock/" in item.impath for item in office.train_x) == 4


def test_own_folder_in_any_letter_case_is_found_from_every_level(pacs, capsys):
    os.rename(pacs / "PACS", pacs / "Pacs")
    for root in (pacs, pacs / "Pacs", pacs / "Pacs/images"):
        assert SPG_PACS(config(root, ["s"], output=pacs)).dataset_dir == str(pacs / "Pacs")
    assert "more than once" not in capsys.readouterr().out


def test_several_layouts_prefer_domains_then_splits_then_order(tmp_path, capsys):
    make_set(tmp_path, SPG_PACS, DOMAINBED)
    make_set(tmp_path, SPG_PACS, DASSL, domains=["photo", "sketch"])
    assert SPG_PACS(config(tmp_path, ["s"])).layout == DOMAINBED
    assert f"more than once under {tmp_path}. Using {tmp_path}/PACS (DomainBed, 4 domains)" in capsys.readouterr().out
    make_set(tmp_path, SPG_PACS, DASSL)
    assert SPG_PACS(config(tmp_path, ["s"])).layout == DOMAINBED  # which has split files
    shutil.rmtree(tmp_path / "PACS/spg_coop_splits")
    assert SPG_PACS(config(tmp_path, ["s"])).layout == DASSL


def test_missing_set_names_the_places(tmp_path):
    (tmp_path / "PACS/readme").mkdir(parents=True)
    with pytest.raises(UserError, match=r"pacs/images/<domain>/<class>/ \(Dassl/CoOp\)(.|\n)*half-extracted"):
        SPG_PACS(config(tmp_path, ["s"]))


def test_bad_sketch_is_skipped(pacs):
    write_images(pacs / "PACS/images/sketch/dog", ["n02103406_4068-1.png"])
    write_images(pacs / "PACS/images/photo/dog", ["n02103406_4068-1.png"])
    found = SPG_PACS(config(pacs, ["s"]))
    assert (len(found.test), len(found.train_x + found.val)) == (70, 211)


def test_other_image_counts_warn(pacs, capsys, monkeypatch):
    SPG_PACS(config(pacs, ["s"]))
    assert "has 70 images; the full set has 2,048." in capsys.readouterr().out
    monkeypatch.setattr(SPG_PACS, "image_counts", {**dict.fromkeys(SPG_PACS.domains, 70), "sketch": 71})
    SPG_PACS(config(pacs, ["s"]))
    assert "the full set has" not in capsys.readouterr().out


def empty_domain(images):
    for folder in (images / "cartoon").iterdir():
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda images: shutil.rmtree(images / "cartoon"), r"no folder for cartoon \(PACS/images/<domain>/<class>/"),
        (lambda images: os.rename(images / "cartoon/dog", images / "cartoon/fox"), r"Missing: dog\. Unknown: fox"),
        (empty_domain, "cartoon of SPG_PACS .* its class folders hold no images"),
        (
            lambda images: write_images(images / "cartoon/Dog", ["x.jpg"]),
            "two folders for the class 'dog'",
        ),
        (lambda images: write_images(images / "Car_Toon/dog", ["x.jpg"]), "Two folders are the domain cartoon"),
    ],
)
def test_folders_that_do_not_fit_raise(damage, message, pacs):
    damage(pacs / "PACS/images")
    with pytest.raises(UserError, match=message):
        SPG_PACS(config(pacs, ["s"]))


def test_classes_of_the_folders_must_agree(tmp_path, capsys):
    folder = make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[1], 2)
    shutil.rmtree(folder / "Art/TV")
    with pytest.raises(UserError, match=r"of art .* Missing: tv\. Unknown: none"):
        SPG_OfficeHome(config(tmp_path, ["r"]))
    write_images(folder / "Art/Television", ["x.jpg"])
    with pytest.raises(UserError, match=r"has 65 classes.*folders for 66. In one domain only: television"):
        SPG_OfficeHome(config(tmp_path, ["r"]))
    folder = make_set(tmp_path, SPG_TerraIncognita, SPG_TerraIncognita.layouts[0])
    shutil.rmtree(folder / "location_38/cat")  # some locations lack some classes
    assert SPG_TerraIncognita(config(tmp_path, ["1"])).num_classes == 10
    assert f"location_38 of SPG_TerraIncognita in {folder} has no images of: cat" in capsys.readouterr().out
