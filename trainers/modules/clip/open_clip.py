"""OpenCLIP's models: open_clip:<architecture>@<tag or file>, open_clip:local-dir:<folder>, open_clip:hf-hub:<id>."""

import difflib
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn

from common.errors import UserError, join_truncated
from trainers.modules.clip.info import BackboneInfo, library_errors
from trainers.modules.clip.openai import TowerKind, build_image_tower
from trainers.modules.clip.text_tower import activation_of
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, LibraryTokenizer, Tokenizer

PACKAGE = "open_clip_torch"
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
# Keys of image towers that one of OpenAI's classes computes.
OPENAI_KEYS = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "norm_kwargs"}
RECORDED = ("mean", "std", "interpolation", "resize_mode", "fill_color", "quick_gelu")  # facts of a tag


def check(name: str) -> None:
    """Raise UserError if there is no such architecture, tag or file, or if the text tower is not CLIP's."""
    architecture, weights = _split(name)
    with library_errors(name, PACKAGE):
        import open_clip
    if weights:
        known = open_clip.list_models()
        if architecture not in known:
            close = join_truncated(difflib.get_close_matches(architecture, known, cutoff=0.5))
            raise UserError(f"Backbone {name}: open_clip has no architecture {architecture!r}. Close to it: {close}.")
        if not open_clip.is_pretrained_cfg(architecture, weights) and not os.path.isfile(weights):
            tags = join_truncated(open_clip.list_pretrained_tags_by_model(architecture))
            raise UserError(f"Backbone {name}: {weights} is neither a file nor a tag of {architecture}. Tags: {tags}.")
    if not architecture.startswith(HF_HUB):
        _config(name, architecture)


def load(name: str, root: str | PathLike) -> tuple[nn.Module, BackboneInfo]:
    """Load a model with open_clip, with the activation and preprocessing of its tag or config.

    A file has neither, and gets those that all tags of its architecture share.
    """
    import open_clip

    architecture, weights = _split(name)
    with library_errors(name, PACKAGE):
        tag = open_clip.get_pretrained_cfg(architecture, weights)
        facts, path, place = _facts(architecture, tag), weights, architecture
        if tag:
            path = _cached(*os.path.split(tag.get("hf_hub") or "")) or open_clip.download_pretrained(tag)
        elif architecture.startswith(HF_HUB) and (cached := _cached(architecture.removeprefix(HF_HUB), "")):
            place = f"{LOCAL_DIR}{os.path.dirname(cached)}"
        config = _config(name, place)
        vision, text = config["vision_cfg"], config["text_cfg"]
        quick_gelu = bool(facts.pop("quick_gelu", False)) or config.get("quick_gelu", False)
        model = open_clip.create_model(
            place, path, force_quick_gelu=quick_gelu, force_preprocess_cfg=facts, require_pretrained=True
        )
        tokenizer = _tokenizer(name, architecture if text.get("hf_tokenizer_name") else place, text)
        images = open_clip.get_model_preprocess_cfg(model)
    model.logit_scale.data = model.logit_scale.data.reshape(())
    image_architecture = json.dumps([vision, quick_gelu])
    if {key for key, value in vision.items() if value and (key, value) != ("pool_type", "tok")} <= OPENAI_KEYS:
        model.visual, image_architecture = _openai_tower(model.visual), ""
    note = f"Note: {name} is computed with {'Quick' * quick_gelu}GELU, and images with mean {images['mean']}."
    info = BackboneInfo(
        "OpenCLIP",
        tuple(map(float, images["mean"])),
        tuple(map(float, images["std"])),
        images["interpolation"].replace("random", "bicubic"),
        images["resize_mode"],
        images["fill_color"],
        tokenizer,
        image_architecture,
        (Path(path),) if path else tuple(sorted(Path(place.removeprefix(LOCAL_DIR)).glob("*.*"))),
        (note,) if weights and not tag else (),
    )
    return model, info


def _split(name: str) -> tuple[str, str]:
    """Split a name into (architecture, tag or file), or (local-dir:<folder> or hf-hub:<id>, "")."""
    rest = name.removeprefix("open_clip:")
    schema, colon, place = rest.partition(":")
    if schema + colon in (LOCAL_DIR, HF_HUB) and place:
        return f"{schema}:{os.path.expanduser(place)}", ""
    architecture, _, weights = rest.partition("@")
    if not architecture or not weights:
        raise UserError(
            f"Backbone {name!r} does not name architecture and weights. Accepted: open_clip:<architecture>@<tag or "
            "file>, open_clip:local-dir:<folder>, open_clip:hf-hub:<id>."
        )
    return architecture.replace("/", "-"), os.path.expanduser(weights)


def _config(name: str, architecture: str) -> dict[str, Any]:
    """Config of an architecture, if its text tower is CLIP's."""
    import open_clip

    with library_errors(name, PACKAGE):
        config = open_clip.get_model_config(architecture)
    if config["text_cfg"].get("hf_model_name") or "multimodal_cfg" in config:
        raise UserError(f"Backbone {name}: its text tower is not CLIP's transformer. Name another architecture.")
    return config


def _facts(architecture: str, tag: dict[str, Any]) -> dict[str, Any]:
    """Activation and preprocessing of a tag; without a tag, what all tags of the architecture share."""
    import open_clip

    names = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [tag] if tag else [open_clip.get_pretrained_cfg(architecture, name) for name in names]
    return {key: tags[0].get(key) for key in RECORDED if tags and all(one.get(key) == tags[0].get(key) for one in tags)}


def _cached(repository: str, file: str) -> str | None:
    """The weights of a repository in the hub's cache, so that open_clip need not ask the hub."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    names = [Path(file).with_suffix(".safetensors").name, file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = [try_to_load_from_cache(repository, name) for name in names] if repository else []
    return next((path for path in found if isinstance(path, str)), None)


def _tokenizer(name: str, architecture: str, config: dict[str, Any]) -> Tokenizer:
    import open_clip
    from open_clip.tokenizer import basic_clean, canonicalize_text

    tokenizer: Any = open_clip.get_tokenizer(architecture)
    row = tokenizer([LibraryTokenizer.SAMPLE], context_length=config.get("context_length", 77))[0].tolist()
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        if config.get("tokenizer_kwargs"):
            raise UserError(f"Backbone {name}: a tokenizer with tokenizer_kwargs cannot be used.")
        return CLIP_TOKENIZER
    inner = tokenizer.tokenizer
    clean = getattr(tokenizer, "clean_fn", None) or (lambda text: canonicalize_text(basic_clean(text)))
    return LibraryTokenizer(inner, lambda text: inner(clean(text), add_special_tokens=False).input_ids, row, name)


def _openai_tower(visual: Any) -> Any:
    """An image tower as one of OpenAI's classes, which PromptedViT knows; it shares the weights."""
    if hasattr(visual, "transformer"):
        block = visual.transformer.resblocks[0]
        kind = TowerKind(activation_of(block), block.attn.num_heads, block.ln_1.eps)
    else:
        kind = TowerKind(heads=visual.attnpool.num_heads)
    tower: Any = build_image_tower(visual.state_dict(), kind)
    tower.input_resolution = visual.image_size  # need not be a multiple of the patch size
    return tower
