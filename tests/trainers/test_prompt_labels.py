import pytest
import torch

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
    of_any_seed = tmp_path / "PACS/RN50/PACS_CoOp_p.pt"
    of_any_seed.touch()
    assert folder.find("photo", "p") == of_any_seed
    torch.save(torch.zeros(4, 512, dtype=torch.float16), folder.file_for("photo").with_name("PACS_CoOp_p.pt"))
    published = folder.find("photo", "p")
    assert published.name == "PACS_CoOp_p.pt" and published != of_any_seed
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
