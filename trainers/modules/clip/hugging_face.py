"""CLIPModels in Hugging Face's format: hf:<folder>, hf:<organisation>/<name>, hf:<organisation>/<name>@<revision>."""

import re
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from clip.clip import _tokenizer as openai_bpe
from clip.model import CLIP
from torch import Tensor

from common.errors import UserError, join_truncated
from trainers.modules.clip.backbone import BackboneInfo, library_errors
from trainers.modules.clip.openai import TowerKind, build_clip
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, LibraryTokenizer, Tokenizer

PACKAGE = "transformers"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
# transformers' names of our activations.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
RESAMPLES = {0: "nearest", 2: "bilinear", 3: "bicubic"}
ARGMAX_EOS = 2  # eos_token_id of old configs; their texts are read at the highest id
# transformers' names of weights -> OpenAI's, by replacements in this order.
RENAMED = {
    "text_model.": "",
    "vision_model.": "visual.",
    "encoder.layers": "transformer.resblocks",
    "embeddings.token_embedding": "token_embedding",
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding": "conv1",
    "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post",
    "final_layer_norm": "ln_final",
    "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn": "attn",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}


def check(name: str) -> None:
    """Raise UserError if transformers is missing, or the name is neither a CLIPModel's folder nor an id of the hub."""
    rest = name.removeprefix("hf:")
    if not Path(rest).expanduser().is_dir() and not HUB_ID.fullmatch(rest):
        raise UserError(
            f"Backbone {name} is neither a folder nor an id of Hugging Face's hub. Name a folder with config.json, or "
            "an id such as hf:openai/clip-vit-base-patch16."
        )
    with library_errors(name, PACKAGE):
        import transformers  # noqa: F401 (whether it is installed)


def load(name: str, root: str | PathLike) -> tuple[CLIP, BackboneInfo]:
    """Load a CLIPModel with transformers, and return it as a `clip.model.CLIP` with the same weights."""
    with library_errors(name, PACKAGE):
        from transformers import CLIPModel, PretrainedConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        # AutoConfig is not safe here: it can ask for code in the config's folder.
        kind = _from_pretrained(PretrainedConfig.get_config_dict, name)[0].get("model_type")
        if kind != "clip":
            raise UserError(f"Backbone {name}: model_type in config.json is {kind!r}. Accepted: 'clip' (CLIPModel).")
        model, found = _from_pretrained(CLIPModel.from_pretrained, name, output_loading_info=True)
        text, vision = model.config.text_config, model.config.vision_config
        if found["missing_keys"]:
            raise UserError(f"Backbone {name}: its weights lack {join_truncated(sorted(found['missing_keys']), 3)}.")
        clip = build_clip(_openai_names(model.state_dict()), _kind(vision), _kind(text))
        info = _info(name, vision.image_size, _tokenizer(name, text))
    clip.visual.input_resolution = vision.image_size  # need not be a multiple of the patch size
    if text.eos_token_id != ARGMAX_EOS:
        clip.text_pool_type, clip.text_eos_id = "eos", text.eos_token_id
    return clip, info


def _from_pretrained(method: Callable[..., Any], name: str, **how: Any) -> Any:
    """Call a from_pretrained, without asking the hub if its cache has the files, so that runs share one version."""
    rest = name.removeprefix("hf:")
    folder = Path(rest).expanduser()
    place, _, revision = (str(folder), "", "") if folder.is_dir() else rest.partition("@")
    try:
        return method(place, revision=revision or "main", local_files_only=True, **how)
    except OSError:
        if folder.is_dir():
            raise
        return method(place, revision=revision or "main", **how)


def _kind(config: Any) -> TowerKind:
    if config.hidden_act not in ACTIVATIONS:
        raise ValueError(f"hidden_act {config.hidden_act!r} is not one of {', '.join(ACTIVATIONS)}")
    return TowerKind(ACTIVATIONS[config.hidden_act], config.num_attention_heads, config.layer_norm_eps)


def _openai_names(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a CLIPModel by the names of `clip.model.CLIP`."""
    weights = {}
    for name, tensor in theirs.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        weights[name] = tensor.t().contiguous() if name in ("text_projection", "visual.proj") else tensor
    # OpenAI has queries, keys and values in one matrix.
    for name in [name for name in weights if ".q_proj." in name]:
        parts = [weights.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        weights[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return weights


def _tokenizer(name: str, config: Any) -> Tokenizer:
    """The model's tokenizer; OpenAI's if it has none and the vocabulary is as large."""
    from transformers import CLIPTokenizer

    def read(place: str, **how: Any) -> Any:
        found = CLIPTokenizer.from_pretrained(place, **how)
        if len(found) <= 2:  # without files, transformers returns a tokenizer without words
            raise OSError("It has no tokenizer. Add tokenizer.json, or vocab.json and merges.txt.")
        return found

    try:
        inner = _from_pretrained(read, name)
    except OSError:
        if config.vocab_size == CLIP_TOKENIZER.size:
            return CLIP_TOKENIZER
        raise
    if inner.get_vocab() == openai_bpe.encoder:
        return CLIP_TOKENIZER
    row = inner(LibraryTokenizer.SAMPLE, padding="max_length", max_length=config.max_position_embeddings).input_ids
    return LibraryTokenizer(inner, lambda text: inner(text, add_special_tokens=False).input_ids, row, name)


def _info(name: str, image_size: int, tokenizer: Tokenizer) -> BackboneInfo:
    """Facts with the preprocessing of the model's image processor; OpenAI's if it has none."""
    from transformers import CLIPImageProcessor

    square, shortest, note = {"height": image_size, "width": image_size}, {"shortest_edge": image_size}, ""
    try:
        images = _from_pretrained(CLIPImageProcessor.from_pretrained, name)
    except OSError:
        images = CLIPImageProcessor(size=shortest)
        note = f"Note: {name} has no preprocessor_config.json. Images are made as for OpenAI's CLIPs."
    size = dict(images.size or {})
    squash = images.do_resize and size == square and (not images.do_center_crop or dict(images.crop_size) == square)
    if not squash and not (images.do_resize and images.do_center_crop and size == shortest):
        note = f"Note: {name} resizes images to {size}. Here the shorter side becomes {image_size}, then a crop."
    # Their pixels may have another range than 0 to 1.
    scale = 255 * images.rescale_factor if images.do_rescale else 255
    mean, std = (images.image_mean, images.image_std) if images.do_normalize else ([0.0] * 3, [1.0] * 3)
    return BackboneInfo(
        "Hugging Face",
        tuple(round(value / scale, 10) for value in mean),
        tuple(round(value / scale, 10) for value in std),
        RESAMPLES[int(images.resample)],
        "squash" if squash else "shortest",
        tokenizer=tokenizer,
        files=tuple(sorted(Path(name.removeprefix("hf:")).expanduser().glob("*.*"))),
        notes=(note,) if note else (),
    )
