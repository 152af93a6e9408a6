"""Split files: published ones, those we write, damaged ones; few-shot and DomainNet's subset."""

import json
import os
import random
import shutil
from pathlib import Path

import pytest
from dataset_trees import PICTURES, SETS, config, make_set, paths, read_only, write_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.errors import UserError
from datasets.layouts import SPLIT
from datasets.listing import ClassFolder
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_officehome import SPG_OfficeHome
from datasets.spg_pacs import SPG_PACS
from datasets.spg_vlcs import SPG_VLCS
from datasets.splits import read_split, seeded_split, write_split

AUTHORS = SPG_PACS.layouts[2]


@pytest.fixture
def pacs(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS)
    return tmp_path


def split_file(root, code="a", folder="PACS"):
    return root / folder / "spg_coop_splits" / f"{code}_train_val_split.json"


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))


# --- the authors' ---


def test_a_folder_for_each_seed(pacs):
    SPG_PACS(config(pacs, ["a"], ["p"]))  # writes splits
    folder = split_file(pacs).parent
    for seed, first in (("1", "train"), ("7", "val")):
        (folder / seed).mkdir()
        for path in folder.glob("*_train_val_split.json"):
            split = json.loads(path.read_text())
            other = {"train": "val", "val": "train"}[first]
            put(folder / seed / path.name, {"train": split[first], "val": split[other]})
    for path in folder.glob("*_train_val_split.json"):
        path.unlink()
    found = {seed: SPG_PACS(config(pacs, ["a"], ["p"], seed=seed)) for seed in (1, 7)}
    assert paths(found[1].train_x) == paths(found[7].val) and paths(found[1].val) == paths(found[7].train_x)
    assert found[7].split_files["photo"] == str(folder / "7/p_train_val_split.json")
    with pytest.raises(UserError, match=r"has splits of seed 1, 7, but none of 2: pass --seed 1, or take one .*: cp "):
        SPG_PACS(config(pacs, ["a"], ["p"], seed=2))
    shutil.copy(folder / "7/p_train_val_split.json", folder)  # as the message says
    shutil.copy(folder / "7/a_train_val_split.json", folder)
    assert paths(SPG_PACS(config(pacs, ["a"], ["p"], seed=2)).train_x) == paths(found[7].train_x)


def test_sizes_are_those_of_the_published_pacs_splits(shared):
    for code in "acps":
        split = json.loads((shared / f"published/splits/{code}_train_val_split.json").read_text())
        for label in range(7):
            n_train, n_val = (sum(row[1] == label for row in split[key]) for key in ("train", "val"))
            assert SPG_PACS.split_sizes(n_train + n_val) == (n_train, n_val)


def test_published_splits_against_a_part_of_the_images(shared, tmp_path):
    (tmp_path / "PACS").mkdir()
    (tmp_path / "PACS/images").symlink_to(shared / "data/PACS/images")
    shutil.copytree(shared / "published/splits", tmp_path / "PACS/spg_coop_splits")
    with pytest.raises(UserError) as error:
        SPG_PACS(config(tmp_path, ["s"]))
    assert "lists 2,048 images, of which 1,768 are not there in art_painting" in str(error.value)
    assert "the first is PACS/images/art_painting/" in str(error.value)
    assert "Get the full set, or move the split file away to get a new split of the 280 images" in str(error.value)


@pytest.mark.parametrize("layout", SPG_PACS.layouts, ids=lambda layout: layout.name)
def test_published_splits_serve_in_every_layout(layout, shared, tmp_path):
    """Empty files for all that the published splits name: labels and splits are then those of the files."""
    folder = tmp_path / layout.folder
    published = {}
    for code, domain in zip("sp", ("sketch", "photo"), strict=True):
        published[code] = json.loads((shared / f"published/splits/{code}_train_val_split.json").read_text())
        for row in published[code]["train"] + published[code]["val"]:
            image = folder / layout.images / Path(row[0]).relative_to("PACS/images")
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
        put(split_file(tmp_path, code, layout.folder), published[code])
        assert (folder / layout.images / domain).is_dir()
    found = SPG_PACS(config(tmp_path, ["s"], ["p"]))

    def listed(rows):
        return [(os.path.basename(row[0]), *row[1:]) for row in rows if "n02103406_4068-1.png" not in row[0]]

    for items, rows in (
        (found.train_x, published["p"]["train"]),
        (found.val, published["p"]["val"]),
        (found.test, published["s"]["train"] + published["s"]["val"]),
    ):
        assert [(os.path.basename(item.impath), item.label, item.domain, item.classname) for item in items] == listed(
            rows
        )


def test_split_file_of_a_layout_with_parts_serves_without_and_the_other_way_round(tmp_path):
    authors, domainbed = SPG_VLCS.layouts[2], SPG_VLCS.layouts[1]
    make_set(tmp_path / "1", SPG_VLCS, authors)
    make_set(tmp_path / "2", SPG_VLCS, domainbed)
    with_parts = SPG_VLCS(config(tmp_path / "1", ["c"]))
    without = SPG_VLCS(config(tmp_path / "2", ["c"]))
    for a, b in (("1", "2"), ("2", "1")):
        shutil.copytree(tmp_path / a / "VLCS/spg_coop_splits", tmp_path / f"{b}/VLCS/swapped")
    for root in ("1", "2"):
        shutil.rmtree(tmp_path / root / "VLCS/spg_coop_splits")
        os.rename(tmp_path / root / "VLCS/swapped", tmp_path / root / "VLCS/spg_coop_splits")
    assert with_parts.fingerprint != without.fingerprint
    assert SPG_VLCS(config(tmp_path / "2", ["c"])).fingerprint == with_parts.fingerprint
    assert SPG_VLCS(config(tmp_path / "1", ["c"])).fingerprint == without.fingerprint


# --- ours ---


def test_written_as_published_and_read_back(pacs, capsys):
    first = SPG_PACS(config(pacs, ["s"]))
    assert f"split of sketch (train 49, val 21) written to {split_file(pacs, 's')}" in capsys.readouterr().out
    content = json.loads(split_file(pacs, "p").read_text())
    assert list(content) == ["train", "val", "test"]
    assert content["test"] == content["val"]  # as in the published files
    assert len(content["train"]) == 49
    for path, label, domain, name in content["train"]:
        assert path.startswith("PACS/images/photo/")
        assert (pacs / path).is_file()
        assert (SPG_PACS.classes[label], domain) == (name, 2)
    before = split_file(pacs, "p").stat().st_mtime_ns
    again = SPG_PACS(config(pacs, ["s"]))
    assert split_file(pacs, "p").stat().st_mtime_ns == before
    assert [item.impath for item in again.train_x] == [item.impath for item in first.train_x]
    assert first.fingerprint == again.fingerprint


def test_split_depends_neither_on_seed_nor_on_root(pacs, tmp_path_factory):
    other = tmp_path_factory.mktemp("other root")
    shutil.copytree(pacs / "PACS", other / "PACS")
    SPG_PACS(config(pacs, ["s"], seed=1))
    random.seed(7)
    SPG_PACS(config(other, ["a"], seed=2))
    for code in "acps":
        assert split_file(pacs, code).read_bytes() == split_file(other, code).read_bytes()


def test_split_does_not_depend_on_the_order_of_listing(pacs, monkeypatch):
    first = SPG_PACS(config(pacs, ["s"]))
    shutil.rmtree(pacs / "PACS/spg_coop_splits")
    real = os.scandir

    class Reversed:
        def __init__(self, path):
            self.entries = sorted(real(path), key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *error):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert SPG_PACS(config(pacs, ["s"])).fingerprint == first.fingerprint


def test_the_seeded_split_never_changes():
    """Written down: a version that draws otherwise would silently change everyone's splits."""
    images = {ClassFolder("", "dog", "dog"): [f"{number}.jpg" for number in range(20)]}
    _, val = seeded_split(images, {"": SPLIT}, "photo", SPG_PACS.split_sizes)
    assert [image.name for image in val] == ["10.jpg", "12.jpg", "15.jpg", "18.jpg", "19.jpg", "9.jpg"]


@given(st.sets(st.text(min_size=1), max_size=40))
def test_seeded_split_parts_the_images(names):
    folder = ClassFolder("", "dog", "dog")
    train, val = seeded_split({folder: sorted(names)}, {"": SPLIT}, "photo", SPG_PACS.split_sizes)
    assert sorted(image.name for image in train + val) == sorted(names)
    assert len(train) == round(0.7 * len(names))


def test_one_image_more_leaves_most_of_the_split_as_it_is():
    folder = ClassFolder("", "dog", "dog")
    names = [f"{k:03d}.jpg" for k in range(100)]
    vals = [
        {image.name for image in seeded_split({folder: some}, {"": SPLIT}, "photo", SPG_PACS.split_sizes)[1]}
        for some in (names, [*names, "100.jpg"])
    ]
    assert len(vals[0] & vals[1]) >= 29


def test_undecodable_file_names_survive(tmp_path):
    make_set(tmp_path, SPG_PACS, AUTHORS, 1, domains=["photo", "sketch"])
    odd = os.fsencode(tmp_path / "PACS/images/photo/dog") + b"/odd_\xff.jpg"
    try:
        with open(odd, "wb") as handle:
            handle.write(PICTURES[".jpg"])
    except OSError:
        pytest.skip("this file system takes no such name")
    first = SPG_PACS(config(tmp_path, ["s"], ["p"]))
    again = SPG_PACS(config(tmp_path, ["s"], ["p"]))
    assert first.fingerprint == again.fingerprint
    assert any(os.fsencode(item.impath) == odd for item in again.train_x + again.val)


def test_domains_too_small_to_validate_on(tmp_path, capsys):
    make_set(tmp_path, SPG_PACS, AUTHORS, 1)
    found = SPG_PACS(config(tmp_path, ["s"]))
    assert len(found.train_x) == 21
    assert found.val == []
    assert "too small to validate on" in capsys.readouterr().out


def test_split_file_that_cannot_be_written(pacs, tmp_path_factory):
    output = tmp_path_factory.mktemp("output") / "file"
    output.touch()
    with read_only(pacs), pytest.raises(UserError, match="Cannot write the split file .*set another OUTPUT_DIR"):
        SPG_PACS(config(pacs, ["s"], output=output))


# --- split files that do not fit ---

GOOD = {"train": [["PACS/images/art_painting/dog/pic_000.jpg", 0, 0, "dog"]], "val": []}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "is not JSON"),
        ("", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ([], 'is not {"train"'),
        ({"train": []}, 'is not {"train"'),
        ({"train": {}, "val": []}, 'is not {"train"'),
        ({**GOOD, "val": ["PACS/images/art_painting/dog/pic_000.jpg"]}, r"val\[0\] is"),
        ({**GOOD, "val": [["x", 0, 0, "dog"]]}, r"val\[0\] is .* but must be"),
        ({**GOOD, "val": [["art_painting/dog/pic_000.jpg", "0", 0, "dog"]]}, r"val\[0\] is"),
        ({**GOOD, "val": [["art_painting/dog/pic_000.jpg", True, 0, "dog"]]}, r"val\[0\] is"),
        ({**GOOD, "val": [["art_painting/dog/pic_000.jpg", 0, 0]]}, r"val\[0\] is"),
        ({**GOOD, "val": [["PACS/images/sketch/dog/pic_000.jpg", 0, 3, "dog"]]}, "of another domain"),
        (
            {**GOOD, "val": [["PACS/images/art_painting/dog/pic_999.jpg", 0, 0, "dog"]]},
            "lists 2 images, of which 1",
        ),
        (
            {**GOOD, "val": [["PACS/images/art_painting/wolf/pic_000.jpg", 0, 0, "wolf"]]},
            "lists 2 images, of which 1",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_damaged_and_foreign_split_files(content, expected, pacs):
    put(split_file(pacs), content)
    with pytest.raises(UserError, match=expected) as error:
        SPG_PACS(config(pacs, ["s"]))
    assert str(split_file(pacs)) in str(error.value)


def test_split_file_that_is_not_utf8(pacs):
    split_file(pacs).parent.mkdir()
    split_file(pacs).write_bytes(b'{"train": "\xff\xfe"}')
    with pytest.raises(UserError, match="is not JSON"):
        SPG_PACS(config(pacs, ["s"]))


def test_split_files_that_leave_nothing(pacs):
    for code in "acps":
        put(split_file(pacs, code), {"train": [], "val": []})
    with pytest.raises(UserError, match="no images are left for DATASET.SOURCE_DOMAINS"):
        SPG_PACS(config(pacs, ["s"]))
    for code in "acp":
        split_file(pacs, code).unlink()
    with pytest.raises(UserError, match="no images are left for DATASET.TARGET_DOMAINS"):
        SPG_PACS(config(pacs, ["s"]))


def test_images_that_the_split_file_does_not_list(pacs, capsys):
    SPG_PACS(config(pacs, ["s"]))
    write_images(pacs / "PACS/images/sketch/dog", ["new_1.jpg", "new_2.jpg"])
    found = SPG_PACS(config(pacs, ["s"]))
    assert "2 images of sketch in " in capsys.readouterr().out
    assert len(found.test) == 70


def test_an_image_for_both_train_and_val(pacs, capsys):
    put(split_file(pacs), {"train": GOOD["train"], "val": GOOD["train"]})
    SPG_PACS(config(pacs, ["s"], ["a"]))
    assert "lists 1 images for both train and val" in capsys.readouterr().out
    assert len(SPG_PACS(config(pacs, ["a"], ["s"])).test) == 1


def test_the_skipped_image_in_a_split_file(pacs):
    rows = [["PACS/images/sketch/dog/n02103406_4068-1.png", 0, 3, "dog"]]
    put(
        split_file(pacs, "s"),
        {"train": rows + [["PACS/images/sketch/dog/pic_000.jpg", 0, 3, "dog"]], "val": []},
    )
    assert len(SPG_PACS(config(pacs, ["s"])).test) == 1


def test_labels_come_from_the_folder_not_from_the_file(pacs):
    put(split_file(pacs), {"train": [["pacs/images/Art_Painting/dog/pic_000.jpg", 5, 9, "hound"]], "val": []})
    item = SPG_PACS(config(pacs, ["s"], ["a"])).train_x[0]
    assert (item.label, item.domain, item.classname) == (0, 0, "dog")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["train", "val", "x"]), inner),
    max_leaves=12,
)
rows = st.tuples(st.text() | st.from_regex(r"[a-c]/(train/)?[a-c]/x\.jpg"), st.integers(), st.integers(), st.text())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(json_values | st.fixed_dictionaries({"train": st.lists(rows), "val": st.lists(rows)}))
def test_any_json_is_read_or_refused(tmp_path, content):
    path = tmp_path / "split.json"
    put(path, content)
    try:
        train, val = read_split(path, {"train"})
    except UserError as error:
        assert str(path) in str(error)
        return
    assert len(train) == len(content["train"])
    assert len(val) == len(content["val"])
    assert all(entry.domain and entry.class_folder and entry.name for entry in train + val)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.text(min_size=1).filter(lambda name: not set(name) & set("/\\")),
            st.integers(),
            st.integers(),
            st.text(),
        )
    )
)
def test_what_is_written_is_read(tmp_path, listed):
    path = tmp_path / "split.json"
    train = [[f"set/photo/dog/{name}", *rest] for name, *rest in listed]
    write_split(path, train, [])
    entries, none = read_split(path)
    assert none == []
    assert [entry.path for entry in entries] == [row[0] for row in train]
    assert {(entry.domain, entry.part, entry.class_folder) for entry in entries} <= {("photo", "", "dog")}


# --- few-shot ---


@pytest.mark.parametrize(("shots", "n_train", "n_val"), [(1, 1, 1), (4, 4, 3), (16, 7, 3), (-1, 7, 3), (0, 7, 3)])
def test_few_shot(shots, n_train, n_val, pacs):
    """As CoOp: at most 4 for validation; a class with fewer images gives those it has."""
    found = SPG_PACS(config(pacs, ["s"], shots=shots))
    assert (len(found.train_x), len(found.val), len(found.test)) == (3 * 7 * n_train, 3 * 7 * n_val, 70)
    per_class = {(item.domain, item.label) for item in found.train_x}
    assert len(per_class) == 21


def test_few_shot_is_drawn_by_the_seed_alone(pacs):
    first = SPG_PACS(config(pacs, ["s"], shots=3, seed=1))
    random.seed(123)
    state = random.getstate()
    again = SPG_PACS(config(pacs, ["s"], shots=3, seed=1))
    assert random.getstate() == state
    assert paths(first.train_x) == paths(again.train_x)
    assert first.fingerprint != SPG_PACS(config(pacs, ["s"], shots=3, seed=2)).fingerprint
    assert set(paths(first.train_x)) <= set(paths(SPG_PACS(config(pacs, ["s"])).train_x))


def test_few_shot_images_of_a_domain_do_not_depend_on_the_other_domains(pacs):
    alone = SPG_PACS(config(pacs, ["p"], ["p"], shots=3))
    among = SPG_PACS(config(pacs, ["s"], shots=3))
    assert set(paths(alone.train_x)) == {path for path in paths(among.train_x) if path[0] == 2}


def test_few_shot_without_seed_uses_the_global_state(pacs):
    drawn = []
    for seed in (5, 5, 6):
        random.seed(seed)
        drawn.append(SPG_PACS(config(pacs, ["s"], shots=2, seed=-1)).fingerprint)
    assert drawn[0] == drawn[1] != drawn[2]


# --- DomainNet ---


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(0, (0, 0)), (1, (1, 1)), (50, (1, 1)), (51, (2, 1)), (100, (2, 1)), (101, (3, 2)), (500, (10, 5))],
)
def test_domainnet_takes_2_and_1_percent_rounded_up(n, sizes):
    assert SPG_DomainNet.split_sizes(n) == sizes


def test_domainnet_tests_on_everything_or_on_the_published_part(tmp_path):
    make_set(tmp_path, SPG_DomainNet, SPG_DomainNet.layouts[0], 3, domains=["clipart", "sketch"])
    whole = SPG_DomainNet(config(tmp_path, ["s"], ["c"]))
    assert (len(whole.train_x), len(whole.val), len(whole.test)) == (345, 345, 3 * 345)
    assert whole.test_subset == "all"
    assert set(whole.split_files) == {"clipart"}
    part = SPG_DomainNet(config(tmp_path, ["s"], ["c"], TEST_SUBSET="published"))
    assert (len(part.train_x), len(part.val), len(part.test)) == (345, 345, 2 * 345)
    assert part.test_subset == "published"
    assert set(paths(part.test)) < set(paths(whole.test))


def test_unknown_test_subset(pacs):
    with pytest.raises(UserError, match=r"DATASET.TEST_SUBSET is 'half'\. Accepted: all, published\."):
        SPG_PACS(config(pacs, ["s"], TEST_SUBSET="half"))


def test_splits_of_officehome_are_taken_inside_each_part(tmp_path):
    make_set(tmp_path, SPG_OfficeHome, SPG_OfficeHome.layouts[2], 10, domains=["art", "product"])
    office = SPG_OfficeHome(config(tmp_path, ["a"], ["p"]))
    content = json.loads((tmp_path / "OfficeHome/spg_coop_splits/p_train_val_split.json").read_text())
    assert content["train"][0][0].startswith("OfficeHome/images/product/")
    assert len(content["train"]) == 65 * 7 == len(office.train_x)


def test_every_set_has_room_for_both_splits():
    for dataset in SETS:
        for n in range(500):
            n_train, n_val = dataset.split_sizes(n)
            assert n_train >= 0 and n_val >= 0
            assert n_train + n_val == n or not dataset.splits_cover_all
