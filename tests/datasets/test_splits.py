"""Split files: published, written by us, damaged; few shots; subsets."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from dataset_trees import PICTURES, config, make_set, paths, read_only, write_images
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from datasets.benchmarks import SPG_PACS, SPG_VLCS, SPG_DomainNet, SPG_OfficeHome
from datasets.image_files import ClassFolder
from datasets.layouts import SPLIT
from datasets.splits import match_images, read_split, seeded_split, write_split

AUTHORS = SPG_PACS.layouts[2]
DOG = ClassFolder("", "dog", "dog")
SIZES = SPG_PACS.split_sizes


@pytest.fixture
def pacs(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS)
    return tmp_path


def split_file(root, code="a", folder="PACS"):
    return root / folder / "spg_coop_splits" / f"{code}_train_val_split.json"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# --- published files ---


@pytest.mark.parametrize("layout", SPG_PACS.layouts, ids=lambda layout: layout.name)
def test_published_splits_fit_every_layout(layout, shared, tmp_path):
    """Empty files stand for the images that the published files list."""
    published = {}
    for code in "sp":
        published[code] = json.loads((shared / f"published/splits/{code}_train_val_split.json").read_text())
        for row in published[code]["train"] + published[code]["val"]:
            image = tmp_path / layout.folder / layout.images / Path(row[0]).relative_to("PACS/images")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
        put(split_file(tmp_path, code, layout.folder), published[code])
    found = SPG_PACS(config(tmp_path, ["s"], ["p"]))
    photo, sketch = published["p"], published["s"]
    for items, rows in (
        (found.train_x, photo["train"]),
        (found.val, photo["val"]),
        (found.test, sketch["train"] + sketch["val"]),
    ):
        listed = [(os.path.basename(row[0]), *row[1:]) for row in rows if "n02103406_4068-1.png" not in row[0]]
        assert [(os.path.basename(i.impath), i.label, i.domain, i.classname) for i in items] == listed


def test_published_splits_with_a_part_of_the_images_raise(shared, tmp_path):
    (tmp_path / "PACS").mkdir()
    (tmp_path / "PACS/images").symlink_to(shared / "data/PACS/images")
    shutil.copytree(shared / "published/splits", tmp_path / "PACS/spg_coop_splits")
    with pytest.raises(UserError, match="lists 2,048 images, of which 1,768 are not there in art_painting") as error:
        SPG_PACS(config(tmp_path, ["s"]))
    assert "the first is PACS/images/art_painting/" in str(error.value)
    assert "a new split of the 280 images" in str(error.value)


def test_split_file_with_or_without_parts_fits_both_layouts(tmp_path):
    fingerprints = {}
    for name, layout in (("with", SPG_VLCS.layouts[2]), ("without", SPG_VLCS.layouts[1])):
        make_set(tmp_path / name, SPG_VLCS, layout)
        fingerprints[name] = SPG_VLCS(config(tmp_path / name, ["c"])).fingerprint
    splits = [tmp_path / name / "VLCS/spg_coop_splits" for name in ("with", "without")]
    os.rename(splits[0], tmp_path / "swap")
    os.rename(splits[1], splits[0])
    os.rename(tmp_path / "swap", splits[1])
    assert fingerprints["with"] != fingerprints["without"]
    assert SPG_VLCS(config(tmp_path / "without", ["c"])).fingerprint == fingerprints["with"]
    assert SPG_VLCS(config(tmp_path / "with", ["c"])).fingerprint == fingerprints["without"]


@pytest.mark.parametrize("layout", SPG_PACS.layouts, ids=lambda layout: layout.name)
def test_split_file_with_images_below_a_class_fits_every_layout(layout, tmp_path):
    for root, where in ((tmp_path / "0", AUTHORS), (tmp_path / "1", layout)):
        own = make_set(root, SPG_PACS, where, per_class=3) / where.images
        write_images(own / "photo/dog/more", ["pic_000.jpg"])
        write_images(own / "photo/dog/photo/cat", ["pic_000.jpg"])  # as if a domain and a class lay there
    first = SPG_PACS(config(tmp_path / "0", ["s"]))
    shutil.copytree(split_file(tmp_path / "0").parent, split_file(tmp_path / "1", folder=layout.folder).parent)
    assert SPG_PACS(config(tmp_path / "1", ["s"])).fingerprint == first.fingerprint


def test_folder_of_a_seed_is_used_for_that_seed(pacs):
    SPG_PACS(config(pacs, ["a"], ["p"]))  # writes splits
    folder = split_file(pacs).parent
    for seed, first, second in (("1", "train", "val"), ("7", "val", "train")):
        for path in folder.glob("*_train_val_split.json"):
            split = json.loads(path.read_text())
            put(folder / seed / path.name, {"train": split[first], "val": split[second]})
    for path in folder.glob("*_train_val_split.json"):
        path.unlink()
    found = {seed: SPG_PACS(config(pacs, ["a"], ["p"], seed=seed)) for seed in (1, 7)}
    assert paths(found[1].train_x) == paths(found[7].val) and paths(found[1].val) == paths(found[7].train_x)
    assert found[7].split_files["photo"] == str(folder / "7/p_train_val_split.json")
    with pytest.raises(UserError, match="has splits of seed 1, 7, but none of 2. Pass --seed 1, or copy the files"):
        SPG_PACS(config(pacs, ["a"], ["p"], seed=2))


# --- our rule ---


def test_split_is_written_as_published_and_read_back(pacs, capsys):
    first = SPG_PACS(config(pacs, ["s"]))
    assert f"split of sketch (train 49, val 21) written to {split_file(pacs, 's')}" in capsys.readouterr().out
    content = json.loads(split_file(pacs, "p").read_text())
    assert list(content) == ["train", "val", "test"] and content["test"] == content["val"]
    for path, label, domain, name in content["train"]:
        assert path.startswith("PACS/images/photo/") and (pacs / path).is_file()
        assert (SPG_PACS.classes[label], domain) == (name, 2)
    before = split_file(pacs, "p").stat().st_mtime_ns
    again = SPG_PACS(config(pacs, ["s"]))
    assert split_file(pacs, "p").stat().st_mtime_ns == before
    assert [item.impath for item in again.train_x] == [item.impath for item in first.train_x]


def test_seeded_split_never_changes():
    """Another split would silently change the numbers of every run."""
    names = sorted(f"{number}.jpg" for number in range(20))
    _, val = seeded_split({DOG: names}, {"": SPLIT}, "photo", SIZES)
    assert [image.name for image in val] == ["10.jpg", "12.jpg", "15.jpg", "18.jpg", "19.jpg", "9.jpg"]


@given(st.sets(st.text(min_size=1), max_size=40), st.randoms())
def test_seeded_split_depends_on_names_alone(names, rng):
    shuffled = sorted(names)
    rng.shuffle(shuffled)
    train, val = seeded_split({DOG: shuffled}, {"": SPLIT}, "photo", SIZES)
    assert (train, val) == seeded_split({DOG: sorted(names)}, {"": SPLIT}, "photo", SIZES)
    assert sorted(image.name for image in train + val) == sorted(names)
    assert len(train) == round(0.7 * len(names))
    if names:  # one image less moves at most one other image
        fewer = seeded_split({DOG: shuffled[1:]}, {"": SPLIT}, "photo", SIZES)[1]
        assert len({*val} & {*fewer}) >= len(val) - 2


def test_read_only_root_gets_splits_in_the_output(pacs, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    with read_only(pacs):
        first, again = (SPG_PACS(config(pacs, ["s"], output=output)) for _ in range(2))
        (output / "file").touch()
        with pytest.raises(OSError, match="output.*/file"):
            SPG_PACS(config(pacs, ["s"], output=output / "file"))
    assert first.fingerprint == again.fingerprint == SPG_PACS(config(pacs, ["s"])).fingerprint
    for code in "acps":
        written = output / "spg_coop_splits/pacs" / f"{code}_train_val_split.json"
        assert written.read_bytes() == split_file(pacs, code).read_bytes()


def test_file_names_of_any_bytes_survive(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS, 1, domains=["photo", "sketch"])
    odd = os.fsencode(tmp_path / "PACS/images/photo/dog") + b"/odd_\xff.jpg"
    try:
        Path(os.fsdecode(odd)).write_bytes(PICTURES[".jpg"])
    except OSError:
        pytest.skip("this file system takes no such name")
    first, again = (SPG_PACS(config(tmp_path, ["s"], ["p"])) for _ in range(2))
    assert first.fingerprint == again.fingerprint
    assert any(os.fsencode(item.impath) == odd for item in again.train_x + again.val)


def test_domains_too_small_for_validation_warn(tmp_path, capsys):
    make_set(tmp_path, SPG_PACS, AUTHORS, 1)
    found = SPG_PACS(config(tmp_path, ["s"]))
    assert (len(found.train_x), found.val) == (21, [])
    assert "have no validation images: no epoch can be selected" in capsys.readouterr().out


# --- split files that do not fit ---

GOOD = [["PACS/images/art_painting/dog/pic_000.jpg", 0, 0, "dog"]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "Cannot read the split file"),
        ("[" * 100_000, "Cannot read the split file"),
        ({"train": {}, "val": []}, 'is not {"train"'),
        ({"train": GOOD, "val": [["art_painting/dog/pic_000.jpg", True, 0, "dog"]]}, r"val\[0\] is"),
        ({"train": GOOD, "val": [["x", 0, 0, "dog"]]}, "lists 2 images, of which 1"),
        ({"train": GOOD, "val": [["PACS/images/art_painting/dog/pic_999.jpg", 0, 0, "dog"]]}, "first is .*pic_999"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_and_foreign_split_files_raise(content, message, pacs):
    put(split_file(pacs), content)
    with pytest.raises(UserError, match=message) as error:
        SPG_PACS(config(pacs, ["s"]))
    assert str(split_file(pacs)) in str(error.value)


@pytest.mark.parametrize(("codes", "key"), [("acps", "SOURCE"), ("s", "TARGET")])
def test_split_files_without_images_raise(codes, key, pacs):
    for code in codes:
        put(split_file(pacs, code), {"train": [], "val": []})
    with pytest.raises(UserError, match=f"no images are left for DATASET.{key}_DOMAINS"):
        SPG_PACS(config(pacs, ["s"]))


def test_odd_split_files_warn(pacs, capsys):
    SPG_PACS(config(pacs, ["s"]))
    write_images(pacs / "PACS/images/sketch/dog", ["new_1.jpg", "new_2.jpg", "n02103406_4068-1.png"])
    bad = ["PACS/images/sketch/dog/n02103406_4068-1.png", 0, 3, "dog"]  # known to be wrong
    content = json.loads(split_file(pacs, "s").read_text())
    put(split_file(pacs, "s"), {**content, "train": [*content["train"], bad]})
    assert len(SPG_PACS(config(pacs, ["s"])).test) == 70
    assert f"2 images of sketch in {pacs}/PACS/images/sketch are not in the split file" in capsys.readouterr().out
    put(split_file(pacs), {"train": GOOD, "val": GOOD})
    assert len(SPG_PACS(config(pacs, ["a"], ["s"])).test) == 1
    assert "lists 1 images for both train and val" in capsys.readouterr().out


def test_labels_come_from_the_folders(pacs):
    put(split_file(pacs), {"train": [["pacs/images/Art_Painting/dog/pic_000.jpg", 5, 9, "hound"]], "val": []})
    item = SPG_PACS(config(pacs, ["s"], ["a"])).train_x[0]
    assert (item.label, item.domain, item.classname) == (0, 0, "dog")


# --- few shots and subsets ---


@pytest.mark.parametrize(("shots", "n_train", "n_val"), [(1, 1, 1), (4, 4, 3), (16, 7, 3), (-1, 7, 3), (0, 7, 3)])
def test_few_shots_are_of_each_class_and_domain(shots, n_train, n_val, pacs):
    found = SPG_PACS(config(pacs, ["s"], shots=shots))
    assert (len(found.train_x), len(found.val), len(found.test)) == (3 * 7 * n_train, 3 * 7 * n_val, 70)
    assert len({(item.domain, item.label) for item in found.train_x}) == 21


def test_few_shots_depend_on_seed_and_domain_alone(pacs):
    first = SPG_PACS(config(pacs, ["s"], shots=3, seed=1))
    random.seed(123)
    state = random.getstate()
    again = SPG_PACS(config(pacs, ["s"], shots=3, seed=1))
    assert random.getstate() == state and paths(first.train_x) == paths(again.train_x)
    assert first.fingerprint != SPG_PACS(config(pacs, ["s"], shots=3, seed=2)).fingerprint
    alone = SPG_PACS(config(pacs, ["p"], ["p"], shots=3))
    assert set(paths(alone.train_x)) == {path for path in paths(first.train_x) if path[0] == 2}
    drawn = []
    for seed in (5, 5, 6):
        random.seed(seed)
        drawn.append(SPG_PACS(config(pacs, ["s"], shots=2, seed=-1)).fingerprint)
    assert drawn[0] == drawn[1] != drawn[2]


def test_domainnet_takes_2_and_1_percent_rounded_up():
    for n, sizes in ((0, (0, 0)), (1, (1, 1)), (50, (1, 1)), (51, (2, 1)), (100, (2, 1)), (101, (3, 2))):
        assert SPG_DomainNet.split_sizes(n) == sizes


def test_domainnet_tests_on_everything_or_on_the_published_part(tmp_path):
    make_set(tmp_path, SPG_DomainNet, SPG_DomainNet.layouts[0], 3, domains=["clipart", "sketch"])
    full = SPG_DomainNet(config(tmp_path, ["s"], ["c"]))
    assert (len(full.test), full.test_subset, full.covers_domains) == (3 * 345, "all", False)
    part = SPG_DomainNet(config(tmp_path, ["s"], ["c"], TEST_SUBSET="published"))
    assert (len(part.train_x), len(part.val), len(part.test)) == (345, 345, 2 * 345)
    assert part.covers_domains and set(paths(part.test)) < set(paths(full.test))
