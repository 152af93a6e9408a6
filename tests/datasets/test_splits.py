"""Split files: published, written by us, damaged; few shots; subsets."""

import json
import random
import shutil

import pytest
from dataset_trees import config, make_set, paths, read_only, write_images
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


# --- layouts and seeds ---


def test_split_file_fits_every_layout_and_folders_below_a_class(tmp_path):
    fingerprints, splits = set(), split_file(tmp_path / "0").parent
    for number, layout in enumerate((AUTHORS, *SPG_PACS.layouts)):
        own = make_set(tmp_path / str(number), SPG_PACS, layout, per_class=3)
        write_images(own / layout.images / "photo/dog/photo/cat", ["pic_000.jpg"])  # as if a domain lay there
        if number:
            shutil.copytree(splits, own / splits.name)
        fingerprints.add(SPG_PACS(config(tmp_path / str(number), ["s"])).fingerprint)
    assert len(fingerprints) == 1


def test_folder_of_a_seed_is_used_for_that_seed(pacs):
    SPG_PACS(config(pacs, ["a"], ["p"]))  # writes splits
    folder = split_file(pacs).parent
    for path in list(folder.glob("*_train_val_split.json")):
        split = json.loads(path.read_text())
        put(folder / "1" / path.name, split)
        put(folder / "7" / path.name, {"train": split["val"], "val": split["train"]})
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


def test_read_only_root_gets_splits_in_the_output(pacs, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    with read_only(pacs):
        first, again = (SPG_PACS(config(pacs, ["s"], output=output)) for _ in range(2))
    assert first.fingerprint == again.fingerprint == SPG_PACS(config(pacs, ["s"])).fingerprint
    for code in "acps":
        written = output / "spg_coop_splits/pacs" / f"{code}_train_val_split.json"
        assert written.read_bytes() == split_file(pacs, code).read_bytes()


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


def test_split_files_without_images_raise(pacs):
    for codes, key in (("s", "TARGET"), ("acps", "SOURCE")):
        for code in codes:
            put(split_file(pacs, code), {"train": [], "val": []})
        with pytest.raises(UserError, match=f"no images are left for DATASET.{key}_DOMAINS"):
            SPG_PACS(config(pacs, ["s"]))


def test_odd_split_files_warn_and_labels_come_from_the_folders(pacs, capsys):
    SPG_PACS(config(pacs, ["s"]))
    write_images(pacs / "PACS/images/sketch/dog", ["new_1.jpg", "new_2.jpg", "n02103406_4068-1.png"])
    bad = ["PACS/images/sketch/dog/n02103406_4068-1.png", 0, 3, "dog"]  # known to be wrong
    content = json.loads(split_file(pacs, "s").read_text())
    put(split_file(pacs, "s"), {**content, "train": [*content["train"], bad]})
    assert len(SPG_PACS(config(pacs, ["s"])).test) == 70
    assert f"2 images of sketch in {pacs}/PACS/images/sketch are not in the split file" in capsys.readouterr().out
    rows = [["pacs/images/Art_Painting/dog/pic_000.jpg", 5, 9, "hound"]]
    put(split_file(pacs), {"train": rows, "val": rows})
    (item,) = SPG_PACS(config(pacs, ["s"], ["a"])).train_x
    assert (item.label, item.domain, item.classname) == (0, 0, "dog")
    assert "lists 1 images for both train and val" in capsys.readouterr().out


# --- few shots and subsets ---


@pytest.mark.parametrize(("shots", "n_train", "n_val"), [(1, 1, 1), (4, 4, 3), (16, 7, 3), (-1, 7, 3)])
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
