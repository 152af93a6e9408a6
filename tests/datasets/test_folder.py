"""FolderDG: any <root>/<domain>/<class>/<image>."""

import shutil

import pytest
from dataset_trees import config, write_images

from common.errors import UserError
from datasets.folder import FolderDG

PICTURES = ["1.jpg", "2.PNG", "3.webp", "4.bmp", "5.jpeg"]
DOMAINS = ["Photo", "drawn by hand", "Ölgemälde"]


@pytest.fixture
def folder(tmp_path):
    for domain in DOMAINS:
        for name in ("Snow_Owl", "großer Hund"):
            write_images(tmp_path / "mine" / domain / name, PICTURES)
    (tmp_path / "mine/README.txt").touch()
    (tmp_path / "mine/papers").mkdir()
    (tmp_path / "mine/.git/objects").mkdir(parents=True)
    return tmp_path / "mine"


def test_folders_are_domains_and_classes(folder, tmp_path):
    found = FolderDG(config(folder, ["photo"], output=tmp_path))
    assert found.domains == found.codes == FolderDG.list_domains(folder) == FolderDG.list_codes(str(folder)) == DOMAINS
    assert (found.source_domains, found.target_domains) == (DOMAINS[1:], DOMAINS[:1])
    assert (found.classnames, found.code("Photo")) == (["großer hund", "snow owl"], "Photo")
    assert (len(found.train_x), len(found.val), len(found.test)) == (16, 4, 10)
    assert found.split_files["Photo"] == str(folder / "spg_coop_splits/Photo_train_val_split.json")
    before = found.fingerprint, found.test_fingerprint
    (folder / "Photo/Snow_Owl").rename(folder / "Photo/snow owl")
    again = FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert (again.fingerprint, again.test_fingerprint) == before


def test_class_of_one_domain_needs_empty_folders(folder, tmp_path, capsys):
    write_images(folder / "Photo/Gray_Wolf", PICTURES)
    with pytest.raises(UserError, match=r"of drawn by hand in .* Missing: gray wolf\. .* is there in Photo") as error:
        FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert str(error.value).endswith(f"for a class without images: mkdir '{folder}/drawn by hand/gray wolf'")
    for domain in DOMAINS[1:]:
        (folder / domain / "gray wolf").mkdir()
    found = FolderDG(config(folder, ["Photo"], output=tmp_path))
    output = capsys.readouterr().out
    assert f"Warning: drawn by hand of FolderDG in {folder} has no images of: gray wolf." in output
    assert (found.classnames, len(found.test)) == (["gray wolf", "großer hund", "snow owl"], 15)
    # Labels do not depend on the choice of domains.
    assert FolderDG(config(folder, ["Ölgemälde"], ["drawn by hand"], output=tmp_path)).num_classes == 3


@pytest.mark.parametrize(("subset", "labels"), [("all", "abcde"), ("base", "abc"), ("new", "de")])
def test_base_classes_are_the_larger_half(tmp_path, subset, labels):
    for name in "abcde":
        write_images(tmp_path / "mine/left" / name, PICTURES)
        write_images(tmp_path / "mine/right" / name, PICTURES)
    found = FolderDG(config(tmp_path / "mine", ["left"], output=tmp_path, SUBSAMPLE_CLASSES=subset))
    assert found.classnames == list(labels) and {item.label for item in found.test} == set(range(len(labels)))


def test_one_class_raises_before_a_split_is_written(folder, tmp_path):
    for domain in DOMAINS:
        shutil.rmtree(folder / domain / "Snow_Owl")
    with pytest.raises(UserError, match=r"leaves 1 of 1 classes \('großer hund'\), and a classifier needs two"):
        FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert not (folder / "spg_coop_splits").exists()


def test_train_and_val_in_the_domains_are_splits(tmp_path, capsys):
    for split, names in {"train": ["1.jpg", "2.jpg", "3.jpg"], "val": ["1.jpg"]}.items():
        for path in ("a/%s/cat", "a/%s/dog", "b/%s/cat", "b/%s/dog"):
            write_images(tmp_path / (path % split), names)
    for _ in range(2):  # the second one reads the split file of the first one
        found = FolderDG(config(tmp_path, ["b"], output=tmp_path))
        assert found.classnames == ["cat", "dog"]
        assert (len(found.train_x), len(found.val), len(found.test)) == (6, 2, 8)
        assert {item.impath.split("/")[-3] for item in found.val} == {"val"}
        assert "Warning: the folders train and val in the domains of" in capsys.readouterr().out
    write_images(tmp_path / "a/test/cat", ["1.jpg"])
    with pytest.raises(UserError, match="the folders test, train, val of its domains are splits. Give"):
        FolderDG(config(tmp_path, ["b"], output=tmp_path))
