"""CLIP's weights as people have them in files: loaded where it is clear what they are, else told where they lie."""

import pytest
import torch
from hf_folders import hugging_face_state
from reference import tiny_clip
from safetensors.torch import save_file

from common.errors import UserError
from trainers.modules.clip_backbone import load_backbone, weights_fingerprint

STATE = tiny_clip().state_dict()
VIT = tiny_clip(vision=2).state_dict()


def prefixed(state, prefix):
    return {prefix + key: value for key, value in state.items()}


LOADED = {
    "bare": STATE,
    "a ViT": VIT,
    "state_dict, as training loops save": {"state_dict": STATE, "epoch": 3, "optimizer": {"state": {}}},
    "model": {"model": STATE, "args": {"lr": 0.1}},
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": {}},
    "model in state_dict": {"state_dict": {"model": STATE}},
    "module., as DataParallel saves": prefixed(STATE, "module."),
    "model.": prefixed(STATE, "model."),
    "clip.": prefixed(STATE, "clip."),
    "all prefixes": prefixed(STATE, "module.model.clip."),
    "state_dict and module.": {"state_dict": prefixed(STATE, "module."), "epoch": 1, "args": {}},
    "a ViT under state_dict and model.": {"state_dict": prefixed(VIT, "model.")},
    "what OpenAI has beside": {**STATE, "input_resolution": torch.tensor(32), "visual.attn_mask": torch.zeros(2)},
    "with attention masks": {
        "state_dict": {**prefixed(STATE, "module."), "module.transformer.attn_mask": torch.zeros(2)}
    },
}


@pytest.mark.parametrize("form", LOADED)
def test_what_can_be_loaded_is_loaded(form, tmp_path):
    torch.save(LOADED[form], tmp_path / "clip.pt")
    expected = tiny_clip(vision=2) if "ViT" in form else tiny_clip()
    assert weights_fingerprint(load_backbone(str(tmp_path / "clip.pt")).model) == weights_fingerprint(expected)


HUGGING_FACE = hugging_face_state(tiny_clip(vision=2))


def without(key):
    return {name: value for name, value in STATE.items() if name != key}


REFUSED = {
    "Hugging Face": (HUGGING_FACE, "Hugging Face's layout .* config.json, .* --backbone hf:<folder>. Models of"),
    "Hugging Face, wrapped": ({"state_dict": prefixed(HUGGING_FACE, "model.")}, "--backbone hf:<folder>"),
    "under another name": ({"ema": STATE, "epoch": 1}, r"CLIP's weights inside, under \['ema'\]. Save those alone"),
    "deeper": ({"state_dict": {"nets": {"clip": STATE}}}, r"inside, under \['nets'\]\['clip'\]"),
    "in several places": ({"a": STATE, "b": STATE}, r"inside, under \['a'\] and \['b'\]"),
    "two wrappers": ({"state_dict": STATE, "model": STATE}, "several sets of weights: state_dict, model. Save one"),
    "another prefix": (prefixed(STATE, "image_text."), "under names that begin with 'image_text.'. Save those alone"),
    "beside others": ({**prefixed(STATE, "clip."), "head.weight": torch.zeros(1)}, r"1 other entries \(head.weight\)"),
    "two models": (prefixed(STATE, "a.") | prefixed(STATE, "b."), "begin with 'a.' beside"),
    "bare, with others": ({**STATE, "head.weight": torch.zeros(1)}, r'Unexpected key\(s\) .* "head.weight"'),
    "no tensor among them": ({**STATE, "epoch": 3}, "entries that are no tensors: epoch"),
    "no token embedding": (without("token_embedding.weight"), r"none is token_embedding.weight\. Accepted"),
    "no text projection": (without("text_projection"), r"none is text_projection\. Accepted"),
    "no last norm": (without("ln_final.bias"), r"none is ln_final.bias\. Accepted"),
    "a missing layer norm": (without("transformer.resblocks.1.ln_1.bias"), r'Missing key\(s\) .*1.ln_1.bias"'),
    "a missing image layer": (without("visual.layer2.0.conv1.weight"), r'Missing key\(s\) .*layer2.0.conv1.w'),
    "another size": ({**STATE, "ln_final.bias": torch.zeros(3)}, "size mismatch for ln_final.bias"),
    "something else": ({"weight": torch.zeros(2)}, r"of 1 entries \(weight\) none is token_e.* 6 more"),
    "nothing": ({}, "it has none of token_embedding.weight"),
    "a list": ([torch.zeros(2)], "holds a list"),
    "a tensor": (torch.zeros(2), "holds a Tensor"),
}  # fmt: skip


@pytest.mark.parametrize("form", REFUSED)
def test_else_it_is_said_where_they_lie_or_what_is_missing(form, tmp_path):
    content, message = REFUSED[form]
    torch.save(content, tmp_path / "clip.pt")
    with pytest.raises(UserError, match=message) as error:
        load_backbone(str(tmp_path / "clip.pt"))
    assert str(error.value).startswith(f"Backbone file {tmp_path / 'clip.pt'} ")
    assert "Error:" not in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("form", ["bare", "a ViT", "module., as DataParallel saves"])
def test_safetensors(form, tmp_path):
    save_file(LOADED[form], tmp_path / "clip.safetensors")
    expected = tiny_clip(vision=2) if "ViT" in form else tiny_clip()
    assert weights_fingerprint(load_backbone(str(tmp_path / "clip.safetensors")).model) == weights_fingerprint(expected)


@pytest.mark.parametrize("content", [HUGGING_FACE, prefixed(HUGGING_FACE, "model.")])
def test_a_file_of_a_folder_in_hugging_faces_layout_points_to_it(content, tmp_path):
    (tmp_path / "config.json").touch()
    save_file(content, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=rf"Name its folder, .*: --backbone hf:{tmp_path}\.$"):
        load_backbone(str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("share", [0.01, 0.9])
def test_safetensors_that_break_off(share, tmp_path):
    save_file(STATE, tmp_path / "whole.safetensors")
    content = (tmp_path / "whole.safetensors").read_bytes()
    (tmp_path / "clip.safetensors").write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="clip.safetensors is damaged, or was not downloaded to its end"):
        load_backbone(str(tmp_path / "clip.safetensors"))


FLOATING = [key for key, value in (STATE | VIT).items() if value.is_floating_point() and value.numel()]


@pytest.mark.parametrize("key", FLOATING)
def test_weights_that_are_not_finite_are_refused_by_name(key, tmp_path):
    """Each parameter and buffer of both image towers."""
    state = {name: value.clone() for name, value in (STATE if key in STATE else VIT).items()}
    state[key].view(-1)[-1] = float(("nan", "inf", "-inf")[FLOATING.index(key) % 3])
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(
        UserError, match=rf"clip.pt\): 1 of the [\d,]+ numbers of {key} are not finite .* The file is dam"
    ):
        load_backbone(str(tmp_path / "clip.pt"))
