"""Which pictures of Caltech Camera Traps make up TerraIncognita."""

import json
from pathlib import Path

import pytest
from download_site import camera_trap_annotations

from common.errors import UserError
from datasets.download.camera_traps import select_images
from datasets.spg_terraincognita import SPG_TerraIncognita


def annotation_files(folder, *contents):
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"{number}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def select(folder):
    return select_images(folder, SPG_TerraIncognita.domains, SPG_TerraIncognita.classes, source=Path("a.tar.gz"))


def test_selection_by_location_and_class(tmp_path):
    train = camera_trap_annotations(
        {
            "a.jpg": (38, ("dog",)),
            "b.jpg": ("38", ("dog", "cat", "dog")),  # two classes, one of them in two boxes
            "c.jpg": (46, ("car",)),
            "d.jpg": (138, ("dog",)),
            "e.jpg": (100, ("empty",)),
            "f.jpg": (43, ("car", "bird")),
            "g.jpg": (43, ()),
        }
    )
    # Other files may number the categories otherwise, and list a picture again.
    test = camera_trap_annotations({"a.jpg": (38, ("dog",)), "h.jpg": (46, ("rabbit",))}, ("rabbit", "dog"))
    assert select(annotation_files(tmp_path / "json", train, test)) == {
        "a.jpg": ["location_38/dog/a.jpg"],
        "b.jpg": ["location_38/cat/b.jpg", "location_38/dog/b.jpg"],
        "e.jpg": ["location_100/empty/e.jpg"],
        "f.jpg": ["location_43/bird/f.jpg"],
        "h.jpg": ["location_46/rabbit/h.jpg"],
    }


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"images": []}', '{"categories": [], "images": [], "annotations": [1]}']
)
def test_damaged_annotations(tmp_path, content):
    with pytest.raises(UserError, match="0.json in a.tar.gz is no annotation file in the format COCO"):
        select(annotation_files(tmp_path / "json", content))


def test_no_annotations(tmp_path):
    with pytest.raises(UserError, match="a.tar.gz holds no annotation files"):
        select(annotation_files(tmp_path / "json"))
