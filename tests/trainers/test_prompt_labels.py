import dataclasses

import pytest
import torch

from common.errors import UserError
from trainers.modules.prompt_labels import LabelFolder, LabelOrigin, load_prompt_label, save_prompt_label

ORIGIN = LabelOrigin("0" * 64, ("dog", "cat"), "end", "f" * 64)


def test_round_trip_is_exact_and_compact(tmp_path):
    path = LabelFolder(str(tmp_path), "PACS", "RN50", 3).file_for("photo")
    assert path == tmp_path / "PACS" / "RN50" / "seed_3" / "photo.pt"
    whole = torch.randn(1000, 4, 512)
    save_prompt_label(path, whole[7].requires_grad_(), ORIGIN)  # a view of a large storage
    loaded = load_prompt_label(path, 4, 512, ORIGIN)
    assert torch.equal(loaded, whole[7])
    assert not loaded.requires_grad
    assert path.stat().st_size < 12_000


def test_ours_comes_before_a_published_one(tmp_path):
    folder = LabelFolder(str(tmp_path), "PACS", "RN50", 1)
    assert folder.find("photo", "p") is None
    folder.path.mkdir(parents=True)
    torch.save(torch.zeros(4, 512, dtype=torch.float16), folder.path / "PACS_CoOp_p.pt")
    assert folder.find("photo", "p").name == "PACS_CoOp_p.pt"
    save_prompt_label(folder.file_for("photo"), torch.ones(4, 512), ORIGIN)
    assert folder.find("photo", "p").name == "photo.pt"


def test_another_shape(tmp_path):
    path = tmp_path / "photo.pt"
    save_prompt_label(path, torch.zeros(16, 512), ORIGIN)
    with pytest.raises(UserError, match=r"photo.pt has shape \(16, 512\); this run needs \(4, 512\).*N_CTX"):
        load_prompt_label(path, 4, 512, ORIGIN)
    torch.save(torch.zeros(4, 768), path)  # a published one of a wider text tower
    with pytest.raises(UserError, match=r"shape \(4, 768\); this run needs \(4, 512\).*text tower"):
        load_prompt_label(path, 4, 512, ORIGIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone_sha256": "1" * 64}, "another backbone"),
        ({"classnames": ("dog", "fox")}, "other class names"),
        ({"class_token_position": "front"}, "another CLASS_TOKEN_POSITION"),
        ({"data": "e" * 64}, "other training images"),
    ],
)
def test_another_origin(tmp_path, change, message):
    path = tmp_path / "photo.pt"
    save_prompt_label(path, torch.zeros(4, 512), ORIGIN)
    with pytest.raises(UserError, match=rf"photo.pt was learned with {message}.*Delete .*photo.pt"):
        load_prompt_label(path, 4, 512, dataclasses.replace(ORIGIN, **change))


def test_another_recipe(tmp_path):
    path = tmp_path / "photo.pt"
    save_prompt_label(
        path, torch.zeros(4, 512), dataclasses.replace(ORIGIN, recipe={"EPOCHS": 2, "LR": 1.0, "T": ["a"]})
    )
    ours = dataclasses.replace(ORIGIN, recipe={"EPOCHS": 50, "LR": 1.0, "T": ["a"]})
    with pytest.raises(UserError, match="learned with other settings of stage I: EPOCHS 2 there and 50 here. Delete"):
        load_prompt_label(path, 4, 512, ours)
    load_prompt_label(path, 4, 512, ORIGIN)  # a run that knows no recipe takes it


class Malicious:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file has run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"junk", "cannot be read"),
        (Malicious(), "holds more than tensors and might run code when opened"),
        ({"weights": torch.zeros(2)}, "is no prompt label"),
        ([1, 2], "is no prompt label"),
        (torch.full((4, 512), float("nan")), "not finite"),
    ],
)
def test_files_that_are_no_labels(tmp_path, content, message):
    path = tmp_path / "photo.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_prompt_label(path, 4, 512, ORIGIN)


def test_a_truncated_label(tmp_path):
    path = tmp_path / "photo.pt"
    save_prompt_label(path, torch.zeros(4, 512), ORIGIN)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="cannot be read"):
        load_prompt_label(path, 4, 512, ORIGIN)
