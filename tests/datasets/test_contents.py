"""What of a folder is an image of a data set: the same in training, in predict.py and in scripts/datasets.py."""

import json
import os
import shutil

import pytest
from dataset_trees import SET_LAYOUT_IDS, SET_LAYOUTS, config, make_set, write_images
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

import predict
from datasets.contents import IMAGE_EXTENSIONS, images_below
from datasets.folder_dg import FolderDG
from datasets.spg_domainnet import SPG_DomainNet
from datasets.spg_pacs import SPG_PACS
from datasets.survey import look


@pytest.fixture
def folder(tmp_path):
    """Two domains of two classes, three images each."""
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            write_images(tmp_path / "mine" / domain / name, ["1.jpg", "2.jpg", "3.jpg"])
    return tmp_path / "mine"


def trained_and_tested_on(root, domain):
    """Paths of the images of a domain that a run knows, once as a source and once as a target."""
    as_source = FolderDG(config(root, [domain], [domain], output=root.parent))
    target = FolderDG(config(root, [domain], output=root.parent)).test
    source = as_source.train_x + as_source.val
    assert sorted(item.impath for item in source) == sorted(item.impath for item in target)
    return {os.path.relpath(item.impath, root / domain) for item in target}


def predicted(root, domain):
    return {os.path.relpath(path, root / domain) for path in predict.find_images([str(root / domain)], "")}


def surveyed(root, domain):
    by_class = look("mine", FolderDG, root).images[domain]
    return {os.path.relpath(path, domain) for paths in by_class.values() for path in paths}


def entry(path, kind):
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "file":
        write_images(path.parent, [path.name])
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(kind)


# Path in the domain, what it is ("file", "folder", "pipe", or where a link leads), and why it is not used.
UNUSED = [
    ("cat/notes.txt", "file", "with other extensions (.txt)"),
    ("cat/im.svg", "file", "with other extensions (.svg)"),
    ("cat/im.npy", "file", "with other extensions (.npy)"),
    ("cat/jpg", "file", "with other extensions (none)"),
    ("cat/im.jpg.part", "file", "with other extensions (.part)"),
    ("cat/more/deeper/notes.txt", "file", "with other extensions (.txt)"),
    ("cat/.DS_Store", "file", "hidden"),
    ("cat/._1.jpg", "file", "hidden"),
    ("cat/.ipynb_checkpoints/1.jpg", "file", "hidden"),
    ("cat/__pycache__/1.jpg", "file", "left behind by other programs"),
    ("cat/@eaDir/1.jpg", "file", "left behind by other programs"),
    (".thumbnails/1.jpg", "file", "hidden"),
    ("__pycache__/1.jpg", "file", "left behind by other programs"),
    ("__MACOSX/cat/1.jpg", "file", "left behind by other programs"),
    ("cat/gone.jpg", "nowhere.jpg", "links that lead nowhere"),
    ("cat/gone", "nowhere", "links that lead nowhere"),
    ("cat/round.jpg", "round.jpg", "links that lead nowhere"),
    ("cat/up", "..", "links back to a folder above"),
    ("cat/more/up", "../../..", "links back to a folder above"),
    ("cat/pipe.jpg", "pipe", "neither file nor folder"),
]
USED = [
    ("cat/more/1.jpg", "file"),
    ("cat/a/b/c/d/1.JPEG", "file"),
    ("dog/folder.jpg/1.jpg", "file"),
    ("cat/linked.jpg", "../dog/1.jpg"),
    ("cat/linked", "../../../elsewhere"),
    *((f"cat/x{extension}", "file") for extension in IMAGE_EXTENSIONS),
    *((f"cat/x{extension.upper()}", "file") for extension in IMAGE_EXTENSIONS),
]
PLAIN = {f"{name}/{i}.jpg" for name in ("cat", "dog") for i in (1, 2, 3)}


@pytest.mark.parametrize(("path", "kind", "reason"), UNUSED, ids=[path for path, *_ in UNUSED])
def test_what_is_not_used_is_told_by_domain_and_reason_everywhere(folder, path, kind, reason, capsys):
    entry(folder / "photo" / path, kind)
    assert trained_and_tested_on(folder, "photo") == PLAIN
    printed = capsys.readouterr().out
    assert (
        f"not used of FolderDG in {folder}: photo: 1 {reason}. Which: python scripts/datasets.py {folder}\n" in printed
    )
    assert predicted(folder, "photo") == PLAIN
    assert capsys.readouterr().err == f"Not used of {folder / 'photo'}: 1 {reason}.\n"
    assert surveyed(folder, "photo") == PLAIN
    unused = look("mine", FolderDG, folder).unused
    ((found, (told,)),) = unused["photo"].items()
    assert f"photo/{path}".startswith(told) and os.path.lexists(folder / told)
    assert (found, unused["sketch"], unused[""]) == (reason.partition(" (")[0], {}, {})


@pytest.mark.parametrize(("path", "kind"), USED, ids=[path for path, _ in USED])
def test_what_is_used_is_used_everywhere(folder, path, kind, capsys):
    write_images(folder.parent / "elsewhere", ["5.jpg"])
    entry(folder / "photo" / path, kind)
    path = "cat/linked/5.jpg" if path == "cat/linked" else path
    expected = PLAIN | {path}
    found = [look_in(folder, "photo") for look_in in (trained_and_tested_on, predicted, surveyed)]
    assert found == [expected] * 3
    assert "not used" not in "".join(capsys.readouterr()).lower()


def test_images_beside_the_class_folders_are_told(folder, capsys):
    write_images(folder / "photo", ["lost.jpg", "notes.txt", "cat.png"])
    trained_and_tested_on(folder, "photo")
    assert f"FolderDG in {folder}: photo: 3 beside the class folders. " in capsys.readouterr().out
    paths = ["photo/cat.png", "photo/lost.jpg", "photo/notes.txt"]
    assert look("mine", FolderDG, folder).unused["photo"] == {"beside the class folders": paths}


def test_what_lies_beside_the_domains_is_told(folder, capsys):
    write_images(folder / "loose", ["1.jpg"])
    write_images(folder, ["README.md"])
    (folder / "__pycache__").mkdir()
    trained_and_tested_on(folder, "photo")
    expected = "the set's own folder: 2 beside the domain folders, 1 left behind by other programs"
    assert expected in capsys.readouterr().out
    assert look("mine", FolderDG, folder).unused[""] == {
        "beside the domain folders": ["README.md", "loose"],
        "left behind by other programs": ["__pycache__"],
    }


def test_a_target_s_empty_class_is_told(folder, capsys):
    for path in (folder / "sketch/cat").iterdir():
        path.unlink()
    FolderDG(config(folder, ["sketch"], output=folder.parent))
    assert f"Warning: sketch of FolderDG in {folder} has no images of: cat." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["__pycache__", ".git", "@eaDir", "__MACOSX", "spg_coop_splits"])
def test_litter_is_neither_a_class_nor_a_domain(folder, name):
    write_images(folder / name / "cat", ["1.jpg"])
    write_images(folder / "photo" / name, ["1.jpg"])
    found = FolderDG(config(folder, ["sketch"], output=folder.parent))
    assert (found.domains, found.classnames) == (["photo", "sketch"], ["cat", "dog"])
    assert FolderDG.list_domains(folder) == ["photo", "sketch"]


def test_the_table_of_extensions():
    assert set(IMG_EXTENSIONS) <= set(IMAGE_EXTENSIONS) <= set(Image.registered_extensions())
    assert all(extension == extension.lower() and extension.startswith(".") for extension in IMAGE_EXTENSIONS)


def test_six_of_six_are_tested(folder):
    """Five images of a class in its folder, and one in a folder below it."""
    write_images(folder / "sketch/cat", ["4.jpg", "5.jpg"])
    write_images(folder / "sketch/cat/more", ["im000.png"])
    tested = FolderDG(config(folder, ["sketch"], output=folder.parent)).test
    assert [item.classname for item in tested].count("cat") == 6


@pytest.mark.parametrize(("dataset", "layout"), SET_LAYOUTS, ids=SET_LAYOUT_IDS)
def test_images_below_a_class_in_every_layout(dataset, layout, tmp_path, capsys):
    domain, target = dataset.domains[0], dataset.domains[-1]
    whole = make_set(tmp_path, dataset, layout, per_class=3, domains=[domain, target])
    place = sorted((whole / layout.images).rglob("pic_001.jpg"))[0]
    (place.parent / "more/er").mkdir(parents=True)
    shutil.copy(place, place.parent / "more/er/nested.jpg")
    cfg = config(tmp_path, [target], [domain])
    first = dataset(cfg)
    assert "not used" not in capsys.readouterr().out
    again = dataset(config(tmp_path, [domain], [target]))
    nested = [item for item in first.train_x + first.val + again.test if "nested" in item.impath]
    assert nested and all(item.impath.endswith("/more/er/nested.jpg") for item in nested)
    assert dataset(cfg).fingerprint == first.fingerprint  # by the split file that was written


@pytest.mark.parametrize("layout", SPG_PACS.layouts, ids=lambda layout: layout.name)
def test_split_files_with_images_below_a_class_serve_in_every_layout(layout, tmp_path):
    written = SPG_PACS.layouts[2]
    for number, where in enumerate((written, layout)):
        root = tmp_path / str(number)
        own = make_set(root, SPG_PACS, where, per_class=3) / where.images
        write_images(own / "photo/dog/more", ["pic_000.jpg", "b.jpg"])
        write_images(own / "photo/dog/photo/cat", ["pic_000.jpg"])  # as if a domain and a class lay there
    first = SPG_PACS(config(tmp_path / "0", ["s"]))
    splits = tmp_path / "1" / layout.folder / "spg_coop_splits"
    shutil.copytree(tmp_path / "0" / written.folder / "spg_coop_splits", splits)
    assert SPG_PACS(config(tmp_path / "1", ["s"])).fingerprint == first.fingerprint
    found = [item.impath for item in first.train_x + first.val]
    names = [path.partition("/photo/dog/")[2] for path in found if "/photo/dog/" in path]
    assert sorted(names) == [
        "more/b.jpg", "more/pic_000.jpg", "photo/cat/pic_000.jpg", "pic_000.jpg", "pic_001.jpg", "pic_002.jpg",
    ]  # fmt: skip


def test_two_images_of_one_name_in_different_folders_are_two(folder):
    write_images(folder / "photo/cat/a", ["1.jpg"])
    (folder / "photo/cat/a/1.jpg").write_bytes((folder / "photo/cat/2.jpg").read_bytes())
    found = FolderDG(config(folder, ["sketch"], output=folder.parent))
    names = sorted(item.impath.partition("/cat/")[2] for item in found.train_x + found.val if item.classname == "cat")
    assert names == ["1.jpg", "2.jpg", "3.jpg", "a/1.jpg"]
    path = folder / "spg_coop_splits/photo_train_val_split.json"
    rows = [[f"mine/photo/cat/{name}", 0, 0, "cat"] for name in ("1.jpg", "a/1.jpg")]
    fingerprints = set()
    for train, val in (rows, rows[::-1]):
        path.write_text(json.dumps({"train": [train], "val": [val]}))
        fingerprints.add(FolderDG(config(folder, ["sketch"], output=folder.parent)).fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize("trainer", ["SPG", "CoOp"])
def test_a_run_tells_once(trainer, train, image_folder, tmp_path, capsys):
    root = shutil.copytree(image_folder, tmp_path / "data", ignore=shutil.ignore_patterns("spg_coop_splits"))
    for domain in ("blue", "red"):
        write_images(root / domain / "down", ["notes.txt", "picture.svg"])
    capsys.readouterr()
    assert train(trainer, "red", flags=["--root", str(root)]) == 0
    told = "blue: 2 with other extensions (.svg, .txt); red: 2 with other extensions (.svg, .txt). Which: "
    output = capsys.readouterr().out
    assert output.count("Warning: not used of") == output.count(told) == 1


def test_a_folder_of_no_images_tells_what_is_there(tmp_path):
    write_images(tmp_path / "none", ["a.svg", ".b.jpg"])
    with pytest.raises(predict.UserError, match=r"there: 1 hidden, 1 with other extensions \(.svg\)"):
        predict.find_images([str(tmp_path / "none")], "")
    assert images_below(tmp_path / "none")[0] == []


@pytest.mark.parametrize("place", ["out", "runs/spg/1", "photo/out/1", "sketch/dog/out/1"])
def test_train_output_inside_the_data_is_never_data(train, folder, place):
    labels = (
        "TRAINER.SPG.LABEL_DIR",
        str(folder / "labels"),
        "TRAINER.FEATURES.CACHE_DIR",
        str(folder / "sketch/kept"),
    )
    assert train("SPG", "photo", *labels, flags=["--root", str(folder), "--output-dir", str(folder / place)]) == 0
    assert FolderDG(config(folder, ["photo"], output=folder.parent)).classnames == ["cat", "dog"]
    assert FolderDG.list_domains(folder) == ["photo", "sketch"]
    assert predicted(folder, "sketch") == PLAIN


def test_train_output_in_the_folder_of_a_domain_raises(train, folder, capsys):
    assert train("ZeroshotCLIP", "photo", flags=["--root", str(folder), "--output-dir", str(folder / "photo")]) == 1
    assert "it is the folder of the domain photo. Name another" in capsys.readouterr().err
