"""Which files of a folder are images of a data set: the same in training, predict.py and scripts/datasets.py."""

import os

from dataset_trees import config, make_folder, write_images
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

import predict
from datasets.folder import FolderDG
from datasets.image_files import IMAGE_EXTENSIONS, images_below, same_images
from scripts.datasets import find_set

PLAIN = {f"{name}/{i}.jpg" for name in ("cat", "dog") for i in (1, 2, 3)}
# Paths in a domain: files, or links with their target.
UNUSED = [
    *("cat/notes.txt", "cat/im.svg", "cat/jpg", "cat/im.jpg.part", "cat/._1.jpg", "cat/.ipynb_checkpoints/1.jpg"),
    *("cat/@eaDir/1.jpg", ".thumbnails/1.jpg", "__pycache__/1.jpg", "__MACOSX/cat/1.jpg", "spg_coop_splits/1.jpg"),
    *(("cat/gone.jpg", "nowhere.jpg"), ("cat/round.jpg", "round.jpg"), ("cat/up", ".."), ("cat/more/up", "../../..")),
    *(("cat/pipe.jpg", None), "lost.jpg", "cat/run/.spg_output", "cat/run/1.jpg"),
]
USED = [
    *("cat/more/1.jpg", "cat/a/b/c/1.JPEG", "dog/folder.jpg/1.jpg", "cat/größe 1.png"),
    *(("cat/link.jpg", "../dog/1.jpg"), *(f"cat/x{extension.upper()}" for extension in IMAGE_EXTENSIONS)),
]


def make(domain, path):
    path, target = path if isinstance(path, tuple) else (path, "")
    (domain / path).parent.mkdir(parents=True, exist_ok=True)
    if target is None:
        os.mkfifo(domain / path)
    elif target:
        (domain / path).symlink_to(target)
    else:
        write_images((domain / path).parent, [os.path.basename(path)])


def found_everywhere(root):
    """Paths of the images of photo: in training, as a target, in predict.py and in scripts/datasets.py."""
    as_source = FolderDG(config(root, ["sketch"], output=root.parent))
    as_target = FolderDG(config(root, ["photo"], output=root.parent))
    script = find_set(str(root), "").images
    found = [
        [item.impath for item in as_source.train_x + as_source.val],
        [item.impath for item in as_target.test],
        predict.find_images([str(root / "photo")], ""),
        list(script.loc[script["domain"] == "photo", "path"]),
    ]
    return [{os.path.relpath(path, root / "photo") for path in paths} for paths in found]


def test_other_files_are_ignored_everywhere(tmp_path, capsys):
    folder = make_folder(tmp_path)
    for path in UNUSED:
        make(folder / "photo", path)
    train, test, predicted, counted = found_everywhere(folder)
    assert train == test == counted == PLAIN
    assert predicted == PLAIN | {"lost.jpg"}
    lost = f"1 images are not used, as they are in no class folder: {folder}/photo/lost.jpg."
    assert lost in capsys.readouterr().out
    assert FolderDG.list_domains(folder) == ["photo", "sketch"]


def test_images_are_used_everywhere(tmp_path):
    folder = make_folder(tmp_path)
    for path in USED:
        make(folder / "photo", path)
    used = {path[0] if isinstance(path, tuple) else path for path in USED}
    assert found_everywhere(folder) == [PLAIN | used] * 4


def test_image_extensions_include_torchvisions_and_are_pillows():
    assert set(IMG_EXTENSIONS) <= set(IMAGE_EXTENSIONS) <= set(Image.registered_extensions())


def test_output_in_the_folder_of_a_domain_raises(train, tmp_path, capsys):
    folder = make_folder(tmp_path)
    assert train("ZeroshotCLIP", "photo", flags=["--root", str(folder), "--output-dir", str(folder / "photo")]) == 1
    assert "it is the folder of the domain photo. Name another" in capsys.readouterr().err
