"""Warnings about data: on the launcher's screen, once for all runs of a data set."""

import shutil

import pytest
from dataset_trees import write_images
from test_launch import QUICK


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
