"""Folders of open_clip's models with their config, against open_clip's own factory."""

import json
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hf_folders import put_in_cache
from PIL import Image
from quick_run import command_line, run_train
from safetensors.torch import save_file

from common.errors import UserError
from trainers.modules.clip_backbone import backbone_label, has_vit, load_backbone
from trainers.modules.prompt_encoder import PromptEncoder

open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch, for OpenCLIP's own code")

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8},
    "text_cfg": {"width": 64, "heads": 2, "layers": 2},
}
IMAGES = {"mean": [0.5] * 3, "std": [0.4] * 3, "interpolation": "bilinear", "resize_mode": "squash"}


@pytest.fixture
def save(tmp_path):
    """save(...) -> folder with open_clip_config.json and weights; the architecture is also known as folder-vit."""
    (tmp_path / "folder-vit.json").write_text(json.dumps(MODEL))
    open_clip.add_model_config(tmp_path / "folder-vit.json")

    def make(name="model", weights="open_clip_model.safetensors", images=IMAGES, **model):
        folder, config = tmp_path / name, {**deepcopy(MODEL), **model}
        folder.mkdir()
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": images}))
        torch.manual_seed(0)
        state = open_clip.model.CLIP(**config).state_dict()
        (save_file if weights.endswith(".safetensors") else torch.save)(state, folder / weights)
        return folder

    return make


@pytest.fixture
def photos(tmp_path):
    """Images that are not squares: <domain>/<class>/<image>."""
    random = np.random.default_rng(0)
    for i in range(24):
        path = tmp_path / f"photos/{('red', 'blue')[i % 2]}/{('cat', 'dog')[i // 2 % 2]}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 30 + 5 * i, 3), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.mark.parametrize("resize_mode", ["squash", "longest", "shortest"])
@pytest.mark.parametrize("form", ["folder-vit@{}/open_clip_pytorch_model.bin", "local-dir:{}"])
def test_run_on_folder_has_the_logits_of_open_clips_local_dir(form, resize_mode, save, photos, tmp_path, monkeypatch):
    images = {**IMAGES, "resize_mode": resize_mode, "fill_color": 200}
    folder = save(weights="open_clip_pytorch_model.bin", quick_gelu=True, images=images)
    monkeypatch.chdir(tmp_path)
    name = "open_clip:" + form.format(folder)
    assert run_train(command_line("ZeroshotCLIP", "red", root=photos, clip=name)) == 0
    logits = torch.from_numpy(np.load("run/logits.npy").astype(np.float32))
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    paths = [line.partition(",")[0] for line in Path("run/predictions.csv").read_text().splitlines()[1:]]
    batch = torch.stack([transform(Image.open(photos / path)) for path in paths])
    texts = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a cat.", "a photo of a dog."])
    with torch.no_grad():
        features = model.eval().encode_image(batch, normalize=True)
        own = model.logit_scale.exp() * features @ model.encode_text(texts, normalize=True).T
    torch.testing.assert_close(logits.softmax(-1), own.softmax(-1), atol=2e-4, rtol=0)


def test_forms_of_one_model_give_one_backbone(save, monkeypatch):
    folder = save(quick_gelu=True)
    first = load_backbone(f"open_clip:local-dir:{folder}")
    assert f"open_clip:local-dir:{folder}" == first.name and has_vit(first.name)
    for form in ("folder-vit@{}", "folder-vit@{}/open_clip_model.safetensors"):
        other = load_backbone("open_clip:" + form.format(folder))
        assert other.sha256 == first.sha256
        assert "uses the model and the preprocessing of" in other.notes[0]
    assert backbone_label(first.name) == "local-dir-model"
    monkeypatch.chdir(folder)
    assert load_backbone("open_clip:local-dir:.").sha256 == first.sha256
    (folder / "open_clip_model.safetensors").rename(folder / "epoch_3.safetensors")  # alone, so it is the one
    assert load_backbone(first.name).sha256 == first.sha256


def test_plain_file_follows_config_in_its_folder(save):
    folder = save(weights="epoch_3.pt", init_logit_bias=None)
    backbone = load_backbone(f"open_clip:folder-vit@{folder}/epoch_3.pt")
    assert backbone.facts.pixel_mean == (0.5,) * 3 and backbone.facts.resize_mode == "squash"
    (folder / "open_clip_config.json").unlink()
    assert load_backbone(f"open_clip:folder-vit@{folder}/epoch_3.pt").facts.resize_mode == "shortest"


def test_hub_id_is_read_from_the_cache(save, tmp_path, monkeypatch):
    from huggingface_hub import constants

    folder = save()
    first = load_backbone(f"open_clip:local-dir:{folder}")
    put_in_cache(folder, tmp_path / "cache", "org/small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_backbone("open_clip:hf-hub:org/small").sha256 == first.sha256
    assert backbone_label("open_clip:hf-hub:org/small") == "hf-hub-org-small"
    refused("open_clip:hf-hub:org/other", "Could not download backbone open_clip:hf-hub:org/other from org/other")


def test_tokenizer_of_a_folder_is_read_there(save):
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "<s>", "<unk>", "dog", "cat", "a", "photo", "of", ".", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = [("<s>", 1), ("</s>", 9)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    text = {**MODEL["text_cfg"], "vocab_size": 10, "context_length": 20, "hf_tokenizer_name": "org/not-asked"}
    folder = save(text_cfg=text)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    encoder = PromptEncoder(
        load_backbone(f"open_clip:local-dir:{folder}").text, ["dog", "cat"], ctx_init="a photo of a"
    )
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    ids = open_clip.get_tokenizer(f"local-dir:{folder}")(["a photo of a dog.", "a photo of a cat."])
    with torch.no_grad():
        features = encoder(encoder.initial_context())
        torch.testing.assert_close(features, own.encode_text(ids, normalize=True), atol=1e-5, rtol=0)


def refused(name, match):
    with pytest.raises(UserError, match=match):
        load_backbone(name)


def test_config_that_contradicts_the_architecture_is_refused(save):
    folder = save(vision_cfg={**MODEL["vision_cfg"], "head_width": 32})
    refused(f"open_clip:folder-vit@{folder}", f"another model than folder-vit. Name open_clip:local-dir:{folder}")
    load_backbone(f"open_clip:local-dir:{folder}")
    plain = save("plain")
    open_clip.factory._MODEL_CONFIGS["folder-vit-quickgelu"] = {**deepcopy(MODEL), "quick_gelu": True}
    refused(f"open_clip:folder-vit-quickgelu@{plain}", "another model than folder-vit-quickgelu")


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no such file"),
        ("{", "not a config of open_clip"),
        ('{"vision_cfg": {}}', "not a config of open_clip: KeyError"),
        (json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"std": [0, 1, 1]}}), r"std is \[0, 1, 1\]"),
        (json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"mean": [0.5]}}), r"mean is \[0.5\]"),
        (
            json.dumps({"model_cfg": MODEL, "preprocess_cfg": {"interpolation": "nearest"}}),
            "interpolation is 'nearest'",
        ),
        (json.dumps({"model_cfg": {**MODEL, "depth": 3}}), "unexpected keyword argument 'depth'"),
        (json.dumps({"model_cfg": {**MODEL, "text_cfg": {"hf_model_name": "roberta-base"}}}), "roberta-base"),
    ],
)
def test_config_that_cannot_be_used_is_refused(content, match, save):
    folder = save()
    (folder / "open_clip_config.json").unlink()
    if content is not None:
        (folder / "open_clip_config.json").write_text(content)
    refused(f"open_clip:local-dir:{folder}", match)


def test_names_without_prefix_or_weights_say_how_to_name_the_model(save):
    folder = save()
    refused(f"{folder}/open_clip_model.safetensors", f"Name open_clip:local-dir:{folder}")
    refused(f"local-dir:{folder}", f"Is open_clip:local-dir:{folder} meant?")
    refused("hf-hub:org/name", "Is open_clip:hf-hub:org/name meant?")
    refused(f"hf:{folder}", f"Name open_clip:local-dir:{folder}")
    (folder / "open_clip_model.safetensors").unlink()
    refused(f"open_clip:local-dir:{folder}", "has 0 files of weights")
