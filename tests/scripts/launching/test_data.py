"""Launchers and data: warnings on the screen, output among the images, names of data sets."""

import shutil
from pathlib import Path

import pytest
from dataset_trees import write_images
from scripts.launching.plans import Set
from test_launch import QUICK

from common.run.results import read_results
from datasets.contents import images_below
from datasets.known import CONFIGS
from scripts.launching.sets import named_apart, note_names


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_launcher_data_with_faults_shows_each_warning_once(bash, tmp_path, image_folder, clip_file, jobs):
    root = shutil.copytree(image_folder, tmp_path / "mine", ignore=shutil.ignore_patterns("spg_coop_splits"))
    write_images(root / "blue/down", ["notes.txt"])
    write_images(root / "red/spiral", ["1.jpg"])
    for domain in ("blue", "green"):
        (root / domain / "spiral").mkdir()
    words = ("compare.sh", root, clip_file, *QUICK)
    finished = bash(*words, METHODS="zsclip,coop", TARGETS="blue,red", JOBS=jobs)
    assert finished.returncode == 0, finished.stderr
    for warning in (
        f"blue of FolderDG in {root} has no images of: spiral.",
        f"green of FolderDG in {root} has no images of: spiral.",
        "no source domain of FolderDG has training images of spiral, but the target domains are tested on them.",
        f"not used of FolderDG in {root}: blue: 1 with other extensions (.txt). Which: ",
    ):
        assert finished.stderr.count(f"Warning: {warning}") == 1, finished.stderr


@pytest.mark.parametrize(
    ("method", "place"),
    [("spg", "output"), ("zsclip", "a/b"), ("spg", "red/output"), ("zsclip", "red/down/output"), ("spg", "red")],
)
def test_launcher_output_among_the_images_is_never_data(launched, tmp_path, image_folder, clip_file, method, place):
    root = shutil.copytree(image_folder, tmp_path / "mine", ignore=shutil.ignore_patterns("spg_coop_splits"))
    before = images_below(root)[0]
    for output, seed in ((f"mine/{place}", "1"), (f"mine/{place}", "2"), ("outside", "2")):
        finished = launched(f"{method}/main.sh", "mine", clip_file, *QUICK, TARGETS="red", OUTPUT=output, SEEDS=seed)
        assert finished.returncode == 0, finished.stderr
        assert images_below(root)[0] == before
    inside, outside = map(read_results, tmp_path.rglob("red/seed2/results.json"))
    for key in ("accuracy", "classnames", "test_fingerprint", "data_fingerprint"):
        assert inside[key] == outside[key]


@pytest.fixture
def two_of_one_name(tmp_path, image_folder):
    """x/test and y/test, which has an image more."""
    for name in ("x", "y"):
        copied = tmp_path / name / "test"
        shutil.copytree(image_folder, copied, ignore=shutil.ignore_patterns("spg_coop_splits"))
    shutil.copy(copied / "red/down/0.png", copied / "red/across/more.png")


def test_cross_two_sets_of_one_name_have_different_names(launched, tmp_path, image_folder, clip_file, two_of_one_name):
    finished = launched("zsclip/cross.sh", image_folder, "x/test,y/test,x/test/", clip_file, *QUICK)
    assert finished.returncode == 0, finished.stderr
    assert "| x_test   | y_test   |" in finished.stdout
    base = tmp_path / "output/stripes/ZeroshotCLIP/tiny/default/cross"
    assert [read_results(base / f"to_{name}/seed1/results.json")["n_test"] for name in ("x_test", "y_test")] == [30, 31]
    finished = launched("zsclip/cross.sh", "x/test", "y/test", clip_file, *QUICK)
    assert finished.returncode == 0, finished.stderr
    assert "trained on x_test" in finished.stdout and "x_test to y_test" in finished.stdout


def test_main_two_sets_of_one_name_in_one_output_both_run(launched, tmp_path, image_folder, clip_file, two_of_one_name):
    for word, name in (("x/test", "test"), ("y/test", "y_test"), ("x/test", "test"), ("y/test", "y_test")):
        finished = launched("spg/main.sh", word, clip_file, *QUICK, TARGETS="red")
        assert finished.returncode == 0, finished.stderr
        assert f"\n{name}, tiny, multi-source" in finished.stdout
        results = read_results(tmp_path / f"output/{name}/SPG/tiny/default/red/seed1/results.json")
        assert (results["dataset"], results["n_test"]) == (name, 10 if name == "test" else 11)
    assert finished.stdout.count("finished before") == 1
    assert sorted(path.name for path in (tmp_path / "output/prompt_labels").glob("*test")) == ["test", "y_test"]


def test_names_known_sets_and_moved_folders_keep_theirs(tmp_path, two_of_one_name):
    def names(output, *roots):
        sets = [Set(Path(root).name, CONFIGS / f"{'pacs' if root == 'pacs' else 'folder'}.yaml", str(root), (), ())
                for root in roots]  # fmt: skip
        named = named_apart(sets, tmp_path / output)
        note_names(named, tmp_path / output)
        return [one.name for one in named]

    (tmp_path / "mine/PACS").mkdir(parents=True)
    assert names("a", tmp_path / "mine/PACS", "pacs", tmp_path / "x/test") == ["mine_PACS", "pacs", "test"]
    (tmp_path / "x/test").rename(tmp_path / "test")
    assert names("a", tmp_path / "test") == ["test"]
    assert names("a", tmp_path / "y/test", tmp_path / "test") == ["y_test", "test"]
    shutil.copytree(tmp_path / "test", tmp_path / "z/test")
    assert names("a", tmp_path / "z/test") == ["test"]
    assert names("b", tmp_path / "mine/PACS") == ["PACS"]
    assert names("b", "pacs") == ["SPG_PACS"]
