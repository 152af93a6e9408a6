"""FolderDG: any <root>/<domain>/<class>/<image>."""

import shutil

import pytest
from dataset_trees import config, write_images

from common.errors import UserError
from datasets.folder_dg import FolderDG

PICTURES = ["1.jpg", "2.PNG", "3.webp", "4.bmp", "5.jpeg"]


@pytest.fixture
def folder(tmp_path):
    for domain in ("Photo", "drawn by hand", "Ölgemälde"):
        for name in ("Snow_Owl", "großer Hund"):
            write_images(tmp_path / "mine" / domain / name, PICTURES)
    (tmp_path / "mine/README.txt").touch()
    (tmp_path / "mine/papers").mkdir()
    (tmp_path / "mine/.git/objects").mkdir(parents=True)
    return tmp_path / "mine"


def test_domains_and_classes_are_discovered(folder, tmp_path):
    found = FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert found.domains == found.codes == ["Photo", "drawn by hand", "Ölgemälde"]
    assert found.source_domains == ["drawn by hand", "Ölgemälde"]
    assert found.classnames == ["großer hund", "snow owl"]
    assert (len(found.train_x), len(found.val), len(found.test)) == (16, 4, 10)
    assert found.split_files["Photo"] == str(folder / "spg_coop_splits/Photo_train_val_split.json")
    assert found.code("Photo") == "Photo"


def test_a_second_run_finds_the_same(folder, tmp_path):
    first = FolderDG(config(folder, ["Photo"], output=tmp_path))
    again = FolderDG(config(folder, ["photo"], ["Drawn by Hand", "ölgemälde"], output=tmp_path))
    assert again.domains == first.domains
    assert again.fingerprint == first.fingerprint


def test_launchers_can_ask_for_the_domains(folder):
    assert FolderDG.list_domains(folder) == FolderDG.list_codes(str(folder))
    assert FolderDG.resolve_domains(folder, [], ["photo"]) == (["drawn by hand", "Ölgemälde"], ["Photo"])


def test_class_in_one_domain_only(folder, tmp_path, capsys):
    write_images(folder / "Photo/Gray_Wolf", PICTURES)
    with pytest.raises(
        UserError, match=r"of drawn by hand in .* Missing: gray wolf\. .* is there in Photo: rename"
    ) as error:
        FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert str(error.value).endswith(f"by an empty folder: mkdir '{folder}/drawn by hand/gray wolf'")
    (folder / "drawn by hand/gray wolf").mkdir()
    (folder / "Ölgemälde/Gray_Wolf").mkdir()
    found = FolderDG(config(folder, ["Photo"], output=tmp_path))
    output = capsys.readouterr().out
    for domain in ("drawn by hand", "Ölgemälde"):
        assert f"Warning: {domain} of FolderDG in {folder} has no images of: gray wolf." in output
    assert "Warning: no source domain of FolderDG has training images of gray wolf, but the target" in output
    assert found.classnames == ["gray wolf", "großer hund", "snow owl"]
    assert found.num_classes == 3
    assert len(found.test) == 15
    found = FolderDG(config(folder, ["Ölgemälde"], ["drawn by hand"], output=tmp_path))
    assert found.num_classes == 3  # labels do not depend on the choice of domains
    assert "training images of gray wolf" not in capsys.readouterr().out  # nor is it tested on here


def test_class_that_is_empty_in_the_target(folder, tmp_path, capsys):
    for domain in ("Photo", "drawn by hand"):
        write_images(folder / domain / "Wolf", PICTURES)
    (folder / "Ölgemälde/Wolf").mkdir()
    found = FolderDG(config(folder, ["Ölgemälde"], output=tmp_path))
    assert capsys.readouterr().out.count("Warning: Ölgemälde of FolderDG in") == 1
    assert found.classnames == ["großer hund", "snow owl", "wolf"]
    assert len(found.test) == 10


def test_one_domain_only(folder, tmp_path):
    single = folder / "drawn by hand"
    for name in ("cat", "dog"):
        write_images(single / "all" / name, PICTURES)
    with pytest.raises(UserError, match="names every domain of FolderDG"):
        FolderDG(config(single, ["all"], output=tmp_path))
    assert len(FolderDG(config(single, ["all"], ["all"], output=tmp_path)).test) == 10


def test_one_class_is_refused_before_a_split_is_written(folder, tmp_path):
    for domain in ("Photo", "drawn by hand", "Ölgemälde"):
        shutil.rmtree(folder / domain / "Snow_Owl")
    with pytest.raises(UserError, match="it has 1 class, 'großer hund'. A classifier chooses"):
        FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert not (folder / "spg_coop_splits").exists()


@pytest.mark.parametrize("names", [[], ["cat", "dog"]])
def test_no_domains(names, tmp_path):
    for name in names:
        write_images(tmp_path / "mine" / name, PICTURES)
    (tmp_path / "mine").mkdir(exist_ok=True)
    with pytest.raises(UserError, match=r"must hold images as <domain>/<class>/<image>"):
        FolderDG(config(tmp_path / "mine", ["cat"], output=tmp_path))


def test_one_level_too_many(folder, tmp_path):
    with pytest.raises(UserError, match="no class folder of mine in .* holds images .* called Snow_Owl, gro") as error:
        FolderDG(config(tmp_path, ["mine"], ["mine"]))
    assert f"Then point DATASET.ROOT (--root) at {folder}." in str(error.value)


def test_train_and_val_folders_in_the_domains_are_splits(tmp_path, capsys):
    for split, names in {"train": ["1.jpg", "2.jpg", "3.jpg"], "val": ["1.jpg"]}.items():
        for path in ("a/%s/cat", "a/%s/dog", "b/%s/cat", "b/%s/dog"):
            write_images(tmp_path / (path % split), names)
    for _ in range(2):  # the second one reads the split file that the first one wrote
        found = FolderDG(config(tmp_path, ["b"], output=tmp_path))
        assert found.classnames == ["cat", "dog"]
        assert (len(found.train_x), len(found.val), len(found.test)) == (6, 2, 8)
        assert {item.impath.split("/")[-3] for item in found.val} == {"val"}
        assert "Warning: the folders train and val in the domains of" in capsys.readouterr().out
    write_images(tmp_path / "a/test/cat", ["1.jpg"])
    with pytest.raises(UserError, match="the folders test, train, val of its domains are splits, not classes. Give"):
        FolderDG(config(tmp_path, ["b"], output=tmp_path))


def test_train_beside_other_classes_is_a_class(tmp_path):
    for path in ("a/train", "a/car", "b/train", "b/car"):
        write_images(tmp_path / path / "more", PICTURES)
        write_images(tmp_path / path, PICTURES)
    for _ in range(2):
        found = FolderDG(config(tmp_path, ["b"], output=tmp_path))
        assert (found.classnames, len(found.train_x), len(found.test)) == (["car", "train"], 14, 20)


def test_folder_of_something_else_among_the_domains(folder, tmp_path):
    (folder / "papers/2024").mkdir()
    with pytest.raises(UserError, match="Missing: 2024.* 2024 is there in papers: .* move it away if it is no class"):
        FolderDG(config(folder, ["Photo"], output=tmp_path))


def test_links_that_lead_in_circles(folder, tmp_path):
    (folder / "loop").symlink_to("loop")
    (folder / "Photo/loop").symlink_to("loop")
    (folder / "Photo/Snow_Owl/loop.jpg").symlink_to("loop.jpg")
    (folder / "Photo/Snow_Owl/up").symlink_to(folder)
    found = FolderDG(config(folder, ["Photo"], output=tmp_path))
    assert found.domains == ["Photo", "drawn by hand", "Ölgemälde"]
    assert (found.num_classes, len(found.test)) == (2, 10)
    # Followed one level at a time, a folder that holds itself is a domain of domains.
    (folder / "again").symlink_to(folder)
    with pytest.raises(UserError, match="folders of Photo in .* Missing: again, .* again is there in again: "):
        FolderDG(config(folder, ["Photo"], output=tmp_path))


def test_unknown_domain_lists_the_names(folder, tmp_path):
    with pytest.raises(
        UserError, match="has no domain 'Foto'. Accepted: Photo, drawn by hand, Ölgemälde. Did you mean"
    ):
        FolderDG(config(folder, ["Foto"], output=tmp_path))


def test_classes_spelled_differently_in_different_domains_are_one(folder, tmp_path):
    (folder / "Photo/Snow_Owl").rename(folder / "Photo/snow owl")
    assert FolderDG(config(folder, ["Photo"], output=tmp_path)).num_classes == 2
