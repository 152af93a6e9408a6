"""Every set in every layout; what is in the folders beside images; folders that are not as they should be."""

import os
import shutil

import pytest
from dassl.data.datasets import DATASET_REGISTRY
from dataset_trees import (
    CLASS_FOLDERS,
    SET_LAYOUT_IDS,
    SET_LAYOUTS,
    SETS,
    config,
    make_set,
    paths,
    read_only,
    write_images,
)

import datasets  # noqa: F401
from common.errors import UserError
from datasets.layouts import check_root
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_officehome import SPG_OfficeHome
from datasets.spg_pacs import SPG_PACS
from datasets.spg_terraincognita import SPG_TerraIncognita
from datasets.spg_vlcs import SPG_VLCS

DASSL, DOMAINBED, AUTHORS = SPG_PACS.layouts


@pytest.fixture
def pacs(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS)
    return tmp_path


def two_domains(dataset):
    return dataset.domains[0], dataset.domains[-1]


# --- every set in every layout ---


@pytest.mark.parametrize(("dataset", "layout"), SET_LAYOUTS, ids=SET_LAYOUT_IDS)
def test_layout_is_found_and_labels_are_those_of_the_set(dataset, layout, tmp_path):
    source, target = two_domains(dataset)
    per_class = 2 if dataset is SPG_DomainNet else 10
    make_set(tmp_path, dataset, layout, per_class, domains=[source, target])
    found = dataset(config(tmp_path, [target], [source]))
    n_classes = len(CLASS_FOLDERS[dataset])
    assert (found.layout.images, found.layout.parts) == (layout.images, layout.parts)
    assert found.num_classes == len(found.classnames) == n_classes
    assert found.classnames == sorted(found.classnames)
    assert found.lab2cname == dict(enumerate(found.classnames))
    assert {item.domain for item in found.train_x + found.val} == {0}
    assert {item.domain for item in found.test} == {len(dataset.domains) - 1}
    assert all(found.classnames[item.label] == item.classname for item in found.train_x + found.val + found.test)
    assert all(os.path.isfile(item.impath) for item in found.train_x + found.val + found.test)
    assert len(found.test) == per_class * n_classes
    if dataset is not SPG_DomainNet:
        assert len(found.train_x) == 7 * n_classes
        assert len(found.val) == 3 * n_classes


@pytest.mark.parametrize("dataset", [SPG_PACS, SPG_VLCS, SPG_OfficeHome, SPG_TerraIncognita])
def test_labels_agree_in_all_layouts(dataset, tmp_path):
    source, target = two_domains(dataset)
    seen = set()
    for number, layout in enumerate(dataset.layouts):
        make_set(tmp_path / str(number), dataset, layout, 10, domains=[source, target])
        found = dataset(config(tmp_path / str(number), [target], [source]))
        seen.add((tuple(found.classnames), tuple(paths(found.test)), tuple(paths(found.train_x + found.val))))
    assert len(seen) == 1


def fingerprints_of(dataset):
    return dataset.fingerprint, dataset.test_fingerprint


def test_the_split_and_its_fingerprint_are_the_same_in_all_layouts_of_pacs(tmp_path):
    fingerprints = set()
    for number, layout in enumerate(SPG_PACS.layouts):
        make_set(tmp_path / str(number), SPG_PACS, layout)
        fingerprints.add(fingerprints_of(SPG_PACS(config(tmp_path / str(number), ["s"]))))
    ((data, test),) = fingerprints
    write_images(tmp_path / "0/pacs/images/sketch/dog", ["one_more.jpg"])
    shutil.rmtree(tmp_path / "0/pacs/spg_coop_splits")
    after = fingerprints_of(SPG_PACS(config(tmp_path / "0", ["s"])))
    assert after[0] == data and after[1] != test


def test_class_names_are_those_of_prompts(tmp_path):
    make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[1], 2)
    office = SPG_OfficeHome(config(tmp_path, ["r"]))
    assert office.classnames[:2] == ["alarm clock", "flip flops"]
    assert office.classnames.index("table") < office.classnames.index("tv")
    assert SPG_VLCS.class_name("4") == "person"
    assert SPG_DomainNet.class_name("t-shirt") == "t-shirt"
    assert SPG_DomainNet.class_name("The_Great  Wall_of_China") == "the great wall of china"


def test_vlcs_full_is_train_and_test_is_val(tmp_path):
    folder = make_set(tmp_path, SPG_VLCS, SPG_VLCS.layouts[0])
    for part in ("train", "crossval"):  # in Dassl's download as well; not used
        write_images(folder / "SUN" / part / "0", ["not_used.jpg"])
    vlcs = SPG_VLCS(config(tmp_path, ["c"], ["s"]))
    assert {item.impath.split("/")[-3] for item in vlcs.train_x} == {"full"}
    assert {item.impath.split("/")[-3] for item in vlcs.val} == {"test"}
    assert len(vlcs.train_x) == 35


def test_officehome_is_split_inside_its_train_and_val_folders(tmp_path):
    make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[0], 20)  # 14 and 6 images of a class
    office = SPG_OfficeHome(config(tmp_path, ["a"], ["p"]))
    assert sum("/train/Alarm_Clock/" in item.impath for item in office.train_x) == 10
    assert sum("/val/Alarm_Clock/" in item.impath for item in office.train_x) == 4


@pytest.mark.parametrize("dataset", SETS)
def test_datasets_are_registered(dataset):
    assert DATASET_REGISTRY.get(dataset.__name__) is dataset
    assert len(dataset.domains) == len(dataset.codes)
    assert dataset.domains == sorted(dataset.domains) == sorted(dataset.image_counts)
    assert dataset.classes is None or dataset.classes == sorted(dataset.classes)


@pytest.mark.parametrize(
    ("dataset", "total"),
    list(zip(SETS, (9991, 10729, 15588, 24330, 586575), strict=True)),
)
def test_known_image_counts_add_up(dataset, total):
    assert sum(dataset.image_counts.values()) == total


# --- where the set is ---


@pytest.mark.parametrize("name", ["pacs", "PACS", "Pacs"])
def test_letter_case_of_the_folder_does_not_matter(name, pacs, capsys):
    os.rename(pacs / "PACS", pacs / name)
    found = SPG_PACS(config(pacs, ["s"]))
    assert found.dataset_dir == str(pacs / name)
    assert "more than once" not in capsys.readouterr().out


def test_layout_is_named_as_its_folder_is_spelled(pacs):
    assert SPG_PACS(config(pacs, ["s"])).layout.name == AUTHORS.name
    os.rename(pacs / "PACS", pacs / "pacs")
    assert SPG_PACS(config(pacs, ["s"])).layout.name == DASSL.name


@pytest.mark.parametrize("name", ["PACS", "my images"])
def test_root_may_be_the_sets_own_folder(name, pacs):
    os.rename(pacs / "PACS", pacs / name)
    found = SPG_PACS(config(pacs / name, ["s"], output=pacs))
    assert found.dataset_dir == str(pacs / name)


def test_root_may_be_the_folder_of_images_with_splits_beside_it(pacs):
    SPG_PACS(config(pacs, ["s"]))
    found = SPG_PACS(config(pacs / "PACS/images", ["s"], output=pacs))
    assert found.split_files["sketch"] == str(pacs / "PACS/spg_coop_splits/s_train_val_split.json")


def test_another_set_with_some_of_the_domain_names_is_not_taken_for_it(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS)
    with pytest.raises(UserError, match="SPG_DomainNet was not found"):
        SPG_DomainNet(config(tmp_path / "PACS/images", ["s"], ["r"]))


@pytest.mark.parametrize("order", [0, 1])
def test_of_two_layouts_the_more_complete_one_is_used_and_named(order, tmp_path, capsys):
    full, half = (DASSL, DOMAINBED) if order else (DOMAINBED, DASSL)
    make_set(tmp_path, SPG_PACS, full)
    make_set(tmp_path, SPG_PACS, half, domains=["photo", "sketch"])
    assert SPG_PACS(config(tmp_path, ["s"])).layout.name == full.name
    output = capsys.readouterr().out
    assert "more than once" in output
    assert f"Using {tmp_path / full.folder}" in output
    assert "since it has more domains" in output


def test_of_two_complete_layouts_the_one_with_splits_is_used(tmp_path, capsys):
    make_set(tmp_path, SPG_PACS, DOMAINBED)
    SPG_PACS(config(tmp_path, ["s"]))
    make_set(tmp_path, SPG_PACS, DASSL)
    assert SPG_PACS(config(tmp_path, ["s"])).layout.name == "DomainBed"
    assert "since it has split files" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "PACS/spg_coop_splits")
    assert SPG_PACS(config(tmp_path, ["s"])).layout.name == "Dassl/CoOp"
    assert "order of preference" in capsys.readouterr().out


def test_two_layouts_in_one_folder(tmp_path):
    make_set(tmp_path, SPG_VLCS, SPG_VLCS.layouts[0])
    make_set(tmp_path, SPG_VLCS, SPG_VLCS.layouts[1])
    vlcs = SPG_VLCS(config(tmp_path, ["c"]))
    assert vlcs.layout.name == "Dassl/CoOp"
    assert len(vlcs.test) == 50


def test_split_files_that_are_not_used_are_mentioned(tmp_path, capsys):
    make_set(tmp_path, SPG_PACS, DASSL)
    (tmp_path / "PACS/spg_coop_splits").mkdir(parents=True)
    SPG_PACS(config(tmp_path, ["s"]))
    assert f"Not used: split files in {tmp_path / 'PACS/spg_coop_splits'}" in capsys.readouterr().out


def test_nothing_there(tmp_path):
    (tmp_path / "imagenet").mkdir()
    (tmp_path / "PACS" / "readme").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        SPG_PACS(config(tmp_path, ["s"]))
    message = str(error.value)
    for expected in (
        str(tmp_path),
        "pacs/images/<domain>/<class>/ (Dassl/CoOp)",
        "PACS/<domain>/<class>/ (DomainBed)",
        "art_painting",
        "imagenet",
        "half-extracted",
        "--root",
    ):
        assert expected in message


def test_layout_with_parts_is_written_out():
    assert str(SPG_OfficeHome.layouts[0]) == "office_home_dg/<domain>/{train,val}/<class>/ (Dassl/CoOp)"


def test_bad_roots(tmp_path):
    (tmp_path / "file").touch()
    for root, expected in (
        ("", "DATASET.ROOT is not set"),
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path / "file", "is a file"),
    ):
        with pytest.raises(UserError, match=expected):
            SPG_PACS(config(root, ["s"], output=tmp_path))


def test_root_may_begin_with_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert check_root("~") == tmp_path


# --- what is in it ---


def test_only_image_files_count(pacs):
    dog = pacs / "PACS/images/sketch/dog"
    write_images(dog, ["UPPER.JPG", "a b.jpeg", "größe.png", "x.webp", "x.bmp"])
    for name in (".hidden.jpg", "notes.txt", "Thumbs.db", "jpg", "x.jpg.part"):
        (dog / name).write_bytes(b"no image")
    (dog / "folder.jpg").mkdir()
    for name in (".cache", "__MACOSX", "@eaDir"):
        write_images(pacs / "PACS/images/sketch" / name, ["x.jpg"])
    (pacs / "PACS/images/sketch/readme.txt").touch()
    found = SPG_PACS(config(pacs, ["s"]))
    dogs = {os.path.basename(item.impath) for item in found.test if item.label == 0}
    assert dogs == {f"pic_{k:03d}.jpg" for k in range(10)} | {
        "UPPER.JPG",
        "a b.jpeg",
        "größe.png",
        "x.webp",
        "x.bmp",
    }


def test_symbolic_links_are_followed(pacs, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.move(pacs / "PACS/images/sketch", elsewhere / "sketch")
    (pacs / "PACS/images/sketch").symlink_to(elsewhere / "sketch")
    shutil.move(pacs / "PACS/images/photo/dog", elsewhere / "dog")
    (pacs / "PACS/images/photo/dog").symlink_to(elsewhere / "dog")
    (pacs / "PACS/images/photo/cat.jpg").symlink_to(elsewhere / "nowhere.jpg")
    (pacs / "PACS/images/photo/dog/linked.jpg").symlink_to(elsewhere / "dog/pic_000.jpg")
    (pacs / "PACS/images/photo/dog/broken.jpg").symlink_to(elsewhere / "nowhere.jpg")
    found = SPG_PACS(config(pacs, ["s"]))
    assert len(found.test) == 70
    assert len(found.train_x + found.val) == 3 * 70 + 1


def test_the_bad_sketch_is_skipped(pacs, capsys):
    write_images(pacs / "PACS/images/sketch/dog", ["n02103406_4068-1.png"])
    write_images(pacs / "PACS/images/photo/dog", ["n02103406_4068-1.png"])
    found = SPG_PACS(config(pacs, ["s"]))
    assert len(found.test) == 70
    assert len(found.train_x + found.val) == 211


def test_other_image_counts_are_reported(pacs, capsys, monkeypatch):
    SPG_PACS(config(pacs, ["s"]))
    assert "has 70 images; the full set has 2,048." in capsys.readouterr().out
    monkeypatch.setattr(SPG_PACS, "image_counts", {**dict.fromkeys(SPG_PACS.domains, 70), "sketch": 71})
    SPG_PACS(config(pacs, ["s"]))
    assert "Warning" not in capsys.readouterr().out


def test_quiet_unless_verbose(pacs, capsys, monkeypatch):
    monkeypatch.setattr(SPG_PACS, "image_counts", {})
    cfg = config(pacs, ["s"])
    cfg.VERBOSE = False
    make_set(pacs, SPG_PACS, DASSL)
    SPG_PACS(cfg)
    assert capsys.readouterr().out == ""


def test_missing_domain(pacs):
    shutil.rmtree(pacs / "PACS/images/cartoon")
    with pytest.raises(UserError, match=r"no folder for cartoon\. Found: art_painting, photo, sketch"):
        SPG_PACS(config(pacs, ["s"]))
    assert len(SPG_PACS(config(pacs, ["s"], ["p"])).test) == 70  # it is not needed here


def test_missing_and_unknown_class_folders(pacs):
    shutil.rmtree(pacs / "PACS/images/cartoon/dog")
    write_images(pacs / "PACS/images/cartoon/zebra", ["x.jpg"])
    with pytest.raises(UserError, match=r"class folders of cartoon .* Missing: dog\. Unknown: zebra"):
        SPG_PACS(config(pacs, ["s"]))


def test_class_folder_missing_in_one_domain_of_officehome(tmp_path):
    folder = make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[1], 2)
    shutil.rmtree(folder / "Art/TV")
    with pytest.raises(UserError, match=r"of art .* Missing: tv\. Unknown: none"):
        SPG_OfficeHome(config(tmp_path, ["r"]))
    write_images(folder / "Art/TV", ["x.jpg"])
    write_images(folder / "Art/Television", ["x.jpg"])
    with pytest.raises(UserError, match=r"has 65 classes.*for 66 \(art 66, .*In one domain only: television"):
        SPG_OfficeHome(config(tmp_path, ["r"]))


def test_class_without_folder_where_the_full_set_has_such(tmp_path, capsys):
    folder = make_set(tmp_path, SPG_TerraIncognita, SPG_TerraIncognita.layouts[0])
    shutil.rmtree(folder / "location_38/cat")
    terra = SPG_TerraIncognita(config(tmp_path, ["1"]))
    assert f"location_38 of SPG_TerraIncognita in {folder} has no images of: cat" in capsys.readouterr().out
    assert terra.num_classes == 10
    write_images(folder / "location_38/fox", ["x.jpg"])
    with pytest.raises(UserError, match=r"location_38 .*Unknown: fox"):
        SPG_TerraIncognita(config(tmp_path, ["1"]))


def test_empty_class(pacs, capsys):
    shutil.rmtree(pacs / "PACS/images/sketch/person")
    (pacs / "PACS/images/sketch/person").mkdir()
    found = SPG_PACS(config(pacs, ["s"]))
    assert len(found.test) == 60
    found = SPG_PACS(config(pacs, ["p"], ["s"]))  # labels and names stay complete
    assert capsys.readouterr().out.count(f"sketch of SPG_PACS in {pacs}/PACS has no images of: person") == 2
    assert found.num_classes == 7
    assert found.classnames == SPG_PACS.classes


def test_domain_without_images(pacs):
    for name in SPG_PACS.classes:
        shutil.rmtree(pacs / "PACS/images/photo" / name)
        (pacs / "PACS/images/photo" / name).mkdir()
    with pytest.raises(UserError, match="class folders of photo .* hold no images: dog, elephant"):
        SPG_PACS(config(pacs, ["s"]))


def test_missing_part(tmp_path):
    folder = make_set(tmp_path, SPG_VLCS, SPG_VLCS.layouts[0])
    shutil.rmtree(folder / "SUN/full")
    with pytest.raises(UserError, match=r"SUN has no folder 'full'; this layout needs 'full', 'test'"):
        SPG_VLCS(config(tmp_path, ["c"]))


def test_two_folders_for_one_class_or_domain(tmp_path):
    folder = make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[1], 1)
    write_images(folder / "Art/alarm clock", ["x.jpg"])
    with pytest.raises(UserError, match="two folders for the class 'alarm clock': Alarm_Clock and alarm clock"):
        SPG_OfficeHome(config(tmp_path, ["r"]))
    write_images(folder / "real_world/TV", ["x.jpg"])
    with pytest.raises(UserError, match="Two folders are both the domain real_world"):
        SPG_OfficeHome(config(tmp_path, ["r"]))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_unreadable_folder(pacs):
    (pacs / "PACS/images/photo/dog").chmod(0)
    try:
        with pytest.raises(UserError, match="Cannot read the folder"):
            SPG_PACS(config(pacs, ["s"]))
    finally:
        (pacs / "PACS/images/photo/dog").chmod(0o755)


def test_folder_that_cannot_be_read_even_by_root(pacs, monkeypatch):
    real = os.scandir

    def scandir(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match="Cannot read the folder .*dog: Permission denied"):
        SPG_PACS(config(pacs, ["s"]))


def test_read_only_root(pacs, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    with read_only(pacs):
        first = SPG_PACS(config(pacs, ["s"], output=output))
        again = SPG_PACS(config(pacs, ["s"], output=output))
        assert not (pacs / "PACS/spg_coop_splits").exists()
    written = sorted(path.name for path in (output / "spg_coop_splits/pacs").iterdir())
    assert written == [f"{code}_train_val_split.json" for code in "acps"]
    elsewhere = SPG_PACS(config(pacs, ["s"]))
    assert first.fingerprint == again.fingerprint == elsewhere.fingerprint
    for name in written:
        here = (output / "spg_coop_splits/pacs" / name).read_bytes()
        assert here == (pacs / "PACS/spg_coop_splits" / name).read_bytes()
