import pytest
import torch

from common.errors import UserError
from trainers.modules.prompt_labels import LabelFolder, load_prompt_label, save_prompt_label

ORIGIN = {"backbone weights": "0" * 64, "class names": ["dog", "cat"], "training images": "f" * 64}


def test_prompt_label_round_trip_is_exact_and_compact(tmp_path):
    path = LabelFolder(str(tmp_path), "PACS", "RN50", 3).file_for("photo")
    assert path == tmp_path / "PACS" / "RN50" / "seed_3" / "photo.pt"
    tensor = torch.randn(1000, 4, 512)
    save_prompt_label(path, tensor[7].requires_grad_(), ORIGIN, 1.5)  # a view of a large storage
    loaded, seconds = load_prompt_label(path, 4, 512, ORIGIN)
    assert torch.equal(loaded, tensor[7]) and seconds == 1.5
    assert not loaded.requires_grad
    assert path.stat().st_size < 12_000


def test_own_prompt_label_has_priority_over_a_published_one(tmp_path):
    folder = LabelFolder(str(tmp_path), "PACS", "RN50", 1)
    assert folder.find("photo", "p") is None
    folder.file_for("photo").parent.mkdir(parents=True)
    torch.save(torch.zeros(4, 512, dtype=torch.float16), folder.file_for("photo").with_name("PACS_CoOp_p.pt"))
    published = folder.find("photo", "p")
    assert published.name == "PACS_CoOp_p.pt"
    loaded, seconds = load_prompt_label(published, 4, 512, ORIGIN)
    assert loaded.dtype == torch.float32 and seconds is None
    save_prompt_label(folder.file_for("photo"), torch.ones(4, 512), ORIGIN)
    assert folder.find("photo", "p").name == "photo.pt"


@pytest.mark.parametrize(
    "place", ["{sign}/PACS/RN50/seed_1", "PACS/RN50/seed_1/{sign}", "{sign}/PACS/RN50", "PACS/{sign}/RN50"]
)
def test_published_prompt_labels_may_have_their_sign_at_any_level(tmp_path, place):
    for sign in ("pos", "neg"):
        path = tmp_path / place.format(sign=sign) / "PACS_CoOp_p.pt"
        path.parent.mkdir(parents=True)
        path.touch()
        assert LabelFolder(str(tmp_path), "PACS", "RN50", 1, sign).find("photo", "p") == path
    assert LabelFolder(str(tmp_path), "PACS", "RN50", 1, "pos").find("sketch", "s") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone weights": "1" * 64}, "other settings: other backbone weights. Delete"),
        ({"class names": ["dog", "fox"]}, r"class names \['dog', 'cat'\] there and \['dog', 'fox'\] here"),
        ({"OPTIM.LR": 1.0}, "other settings: OPTIM.LR 0.5 there and 1.0 here. Delete"),
    ],
)
def test_prompt_label_of_another_origin_is_an_error(tmp_path, change, message):
    path = tmp_path / "photo.pt"
    save_prompt_label(path, torch.zeros(4, 512), {**ORIGIN, "OPTIM.LR": 0.5})
    load_prompt_label(path, 4, 512, ORIGIN)  # a run that does not know OPTIM.LR
    with pytest.raises(UserError, match=message):
        load_prompt_label(path, 4, 512, {**ORIGIN, **change})


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
        (torch.zeros(16, 512), r"photo.pt has shape \(16, 512\); this run needs \(4, 512\).*N_CTX"),
    ],
)
def test_files_that_are_no_labels_raise(tmp_path, content, message):
    path = tmp_path / "photo.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message):
        load_prompt_label(path, 4, 512, ORIGIN)
