"""One CLIP, saved in each format: whole runs come to the same numbers."""

import json
import shutil

import pytest
import torch
from hf_folders import preprocessor, save_hugging_face, save_tokenizer, small_vocabulary, write_json
from quick_run import command_line, run_train
from reference import tiny_clip

from common.run.results import CIRCUMSTANCES, read_results
from trainers.modules.clip_backbone import load_clip

# What may differ between two runs whose CLIPs are the same.
NAMES = {"backbone", "backbone_name", "backbone_family", *CIRCUMSTANCES}
SIZES = {
    "embed_dim": 32,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"width": 64, "heads": 1, "layers": 3},
}


@pytest.fixture
def saved(tmp_path):
    """saved(suffix) -> the name of the same CLIP in OpenCLIP's format; saved() -> its file in OpenAI's."""
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    from safetensors.torch import save_file

    (tmp_path / "tiny-vit.json").write_text(json.dumps(SIZES))
    open_clip.add_model_config(tmp_path / "tiny-vit.json")
    state = tiny_clip(vision=2).state_dict()

    def save(suffix=None):
        file = tmp_path / f"weights{suffix or '.pt'}"
        if suffix == ".safetensors":
            save_file(state, file)
        else:
            torch.save(state if suffix in (None, ".pt") else {"state_dict": state}, file)
        return f"open_clip:tiny-vit@{file}" if suffix else str(file)

    return save


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe", "SPG"])
def test_the_same_numbers_in_hugging_faces_layout(trainer, image_folder, tmp_path, monkeypatch):
    opts = ("TRAINER.MAPLE.PROMPT_DEPTH", "2") if trainer == "MaPLe" else ()
    model = tiny_clip(vision=2)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    expected = results_of(trainer, tmp_path / "weights.pt", image_folder, tmp_path / "openai", monkeypatch, *opts)
    name = f"hf:{save_hugging_face(model, tmp_path / 'mine', shards=2)}"
    found = results_of(trainer, name, image_folder, tmp_path / "hf", monkeypatch, *opts)
    assert {key for key in expected if found[key] != expected[key]} <= NAMES
    assert (found["backbone"], found["backbone_name"]) == ("hf-mine", name)
    assert found["backbone_family"] == "Hugging Face"


def test_a_run_with_another_vocabulary_and_its_predictions(image_folder, tmp_path, monkeypatch, capsys):
    from predict import Predictor

    model = tiny_clip(vision=2)
    model.vocab_size, model.token_embedding = 832, torch.nn.Embedding(832, 64)
    folder = save_hugging_face(model, tmp_path / "small", with_tokenizer=False)
    save_tokenizer(folder, *small_vocabulary())
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 813
    write_json(folder / "config.json", config)
    write_json(folder / "preprocessor_config.json", preprocessor(32, image_mean=[0.5, 0.5, 0.5]))
    found = results_of("SPG", f"hf:{folder}", image_folder, tmp_path / "spg", monkeypatch)
    assert f"the backbone hf:{folder} expects them: INPUT.PIXEL_MEAN [0.5, 0.5, 0.5]." in capsys.readouterr().out
    predictor = Predictor(tmp_path / "spg/run")
    pictures = sorted((image_folder / "red").rglob("*.png"))
    right = [best[0] == path.parent.name for (best, *_), path in zip(predictor(pictures), pictures, strict=True)]
    assert 100 * sum(right) / len(right) == pytest.approx(found["accuracy"])


def results_of(trainer, backbone, images, folder, monkeypatch, *opts, target="red"):
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert run_train(command_line(trainer, target, *opts, root=images, clip=backbone)) == 0
    return read_results(folder / "run/results.json")


@pytest.mark.parametrize("trainer", ["CoOp", "MaPLe", "SPG"])
def test_the_same_numbers_from_each_format(saved, trainer, image_folder, tmp_path, monkeypatch):
    opts = ("TRAINER.MAPLE.PROMPT_DEPTH", "2") if trainer == "MaPLe" else ()
    expected = results_of(trainer, saved(), image_folder, tmp_path / "openai", monkeypatch, *opts)
    assert (expected["backbone"], expected["backbone_family"]) == ("weights", "OpenAI")
    for suffix in (".pt", ".bin", ".safetensors") if trainer == "CoOp" else (".safetensors",):
        name = saved(suffix)
        found = results_of(trainer, name, image_folder, tmp_path / suffix, monkeypatch, *opts)
        assert {key for key in expected if found[key] != expected[key]} <= NAMES
        assert (found["backbone"], found["backbone_name"]) == ("tiny-vit@weights", name)
        assert found["backbone_family"] == "OpenCLIP"


@pytest.fixture(scope="module")
def photos(shared, tmp_path_factory):
    """Four real images of each class and domain of PACS."""
    root = tmp_path_factory.mktemp("pacs") / "photos"
    for folder in (shared / "data/PACS/images").glob("*/*"):
        (root / folder.parent.name / folder.name).mkdir(parents=True)
        for path in sorted(folder.iterdir())[:4]:
            shutil.copy(path, root / folder.parent.name / folder.name)
    return root


@pytest.mark.parametrize("trainer", ["CoOp", "SPG"])
def test_the_tiny_clip_on_real_images_in_all_layouts(trainer, shared, photos, tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch")
    from safetensors.torch import save_file

    file = shared / "clip/tiny_vit.pt"
    clip = load_clip(str(file))
    vision = {"image_size": 64, "layers": 6, "width": 192, "patch_size": 16}
    config = {**SIZES, "embed_dim": 128, "vision_cfg": vision, "text_cfg": {"width": 128, "heads": 2, "layers": 4}}
    (tmp_path / "tiny-real-vit.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-real-vit.json")
    save_file({key: value.contiguous() for key, value in clip.state_dict().items()}, tmp_path / "tiny.safetensors")
    save_hugging_face(clip, tmp_path / "tiny")
    opts = ("DATALOADER.TRAIN_X.BATCH_SIZE", "16")
    names = [str(file), f"open_clip:tiny-real-vit@{tmp_path / 'tiny.safetensors'}", f"hf:{tmp_path / 'tiny'}"]
    first, *others = (
        results_of(trainer, name, photos, tmp_path / str(i), monkeypatch, *opts, target="sketch")
        for i, name in enumerate(names)
    )
    assert first["n_test"] == 28
    for found, family in zip(others, ("OpenCLIP", "Hugging Face"), strict=True):
        assert {key for key in first if found[key] != first[key]} <= NAMES
        assert found["backbone_family"] == family


def test_images_are_made_as_the_backbone_expects_them(saved, image_folder, tmp_path, monkeypatch, capsys):
    import open_clip

    from predict import Predictor

    said = {"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4), "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {"here": {"file": saved(".pt").partition("@")[2], "quick_gelu": True, **said}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny-vit", tags)
    results_of("CoOp", "open_clip:tiny-vit@here", image_folder, tmp_path / "followed", monkeypatch)
    out = capsys.readouterr().out
    assert "Note: images are made as the backbone open_clip:tiny-vit@here expects them: INPUT.PIXEL_MEAN [0.5," in out
    assert "INPUT.INTERPOLATION bilinear" in out and "Warning: CLIP expects images" not in out
    predictor = Predictor(tmp_path / "followed/run")
    resize, *_, normalize = predictor.transform.transforms
    assert (list(resize.size), resize.interpolation.value) == ([32, 32], "bilinear")
    assert (list(normalize.mean), list(normalize.std)) == ([0.5] * 3, [0.4] * 3)
    assert "resize mode squash at validation and test" in out and "Warning: open_clip" not in out
    own = ("INPUT.PIXEL_MEAN", "(0.1, 0.1, 0.1)", "INPUT.INTERPOLATION", "nearest")
    results_of("CoOp", "open_clip:tiny-vit@here", image_folder, tmp_path / "own", monkeypatch, *own)
    out = capsys.readouterr().out
    assert "Warning: CLIP expects images normalised by its own mean" in out
    assert "tiny-vit@here expects images resized by bilinear interpolation, and INPUT.INTERPOLATION is nearest" in out
    assert out.count("they become the backbone's own, [0.5, 0.5, 0.5], [0.4, 0.4, 0.4] and bilinear") == 2


def test_a_text_tower_that_looks_at_all_positions_says_so_once(saved, image_folder, tmp_path, monkeypatch, capsys):
    import open_clip

    config = {**SIZES, "custom_text": True, "text_cfg": {**SIZES["text_cfg"], "no_causal_mask": True}}
    (tmp_path / "all-positions.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "all-positions.json")
    torch.save(open_clip.create_model("all-positions").state_dict(), tmp_path / "all.pt")
    name = f"open_clip:all-positions@{tmp_path / 'all.pt'}"
    found = results_of("SPG", name, image_folder, tmp_path / "spg", monkeypatch)
    assert found["backbone"] == "all-positions@all"
    assert capsys.readouterr().out.count("looks at all positions of a prompt, so each is encoded over all 77") == 1
