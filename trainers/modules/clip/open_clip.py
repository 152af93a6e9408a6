"""OpenCLIP's models: open_clip:<architecture>@<tag or file>, open_clip:local-dir:<folder>, open_clip:hf-hub:<id>."""

import difflib
import json
import os
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from common.errors import UserError, join_truncated
from trainers.modules.clip.backbone import BackboneInfo, library_errors
from trainers.modules.clip.openai import TowerKind, build_image_tower, fill
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
        with library_errors(name, PACKAGE):
            _config(name, architecture)


def load(name: str, root: str | PathLike) -> tuple[nn.Module, BackboneInfo]:
    """Load a model of open_clip, with the activation and preprocessing of its tag or config."""
    import open_clip
    from open_clip.factory import _find_checkpoint_in_dir
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    architecture, weights = _split(name)
    with library_errors(name, PACKAGE):
        tag = open_clip.get_pretrained_cfg(architecture, weights)
        path, place = weights, architecture
        if tag:
            path = _cached(*os.path.split(tag.get("hf_hub") or "")) or open_clip.download_pretrained(tag)
        elif architecture.startswith(HF_HUB):
            repository = architecture.removeprefix(HF_HUB)
            if not (path := _cached(repository, "")):
                _config(name, place)  # downloads it, into the folder of the weights
                path = open_clip.download_pretrained_from_hf(repository)
            place = f"{LOCAL_DIR}{os.path.dirname(path)}"
        folder = None if weights else Path(place.removeprefix(LOCAL_DIR))
        config, facts = _config(name, place), _facts(architecture, tag, folder)
        config["quick_gelu"] = bool(facts.pop("quick_gelu", False)) or config.get("quick_gelu", False)
        vision, text = config["vision_cfg"], config["text_cfg"]
        model = _build(config, path or _find_checkpoint_in_dir(folder))
        tokenizer = _tokenizer(name, architecture if text.get("hf_tokenizer_name") else place, text)
        images = merge_preprocess_dict(PreprocessCfg(), facts)
    model.logit_scale.data = model.logit_scale.data.reshape(())
    image_architecture = json.dumps([vision, config["quick_gelu"]])
    if {key for key, value in vision.items() if value and (key, value) != ("pool_type", "tok")} <= OPENAI_KEYS:
        model.visual, image_architecture = _openai_tower(model.visual), ""
    activation = "QuickGELU" if config["quick_gelu"] else "GELU"
    note = f"Note: {name} is computed with {activation}, and images with mean {images['mean']}."
    info = BackboneInfo(
        "OpenCLIP",
        tuple(map(float, images["mean"])),
        tuple(map(float, images["std"])),
        images["interpolation"].replace("random", "bicubic"),
        images["resize_mode"],
        images["fill_color"],
        tokenizer,
        image_architecture,
        tuple(sorted(folder.glob("*.*"))) if folder else (Path(path),),
        (note,) if weights and not tag else (),
    )
    return model, info


def _build(config: dict[str, Any], path: str | None) -> Any:
    """Build a model with the weights of a file, in single precision."""
    import open_clip

    if path is None or Path(path).suffix in (".npz", ".npy"):  # big_vision's, which open_clip copies weight by weight
        raise ValueError(f"{path or 'The folder'} has no weights of PyTorch or safetensors.")
    build = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP

    def on_meta(module, key, weight):
        # Random initialisation takes most of the time, so parameters get memory only with the weights. timm's towers
        # compute with their parameters while they are built.
        return None if "timm_model_name" in config["vision_cfg"] else nn.Parameter(weight.to("meta"))

    with register_module_parameter_registration_hook(on_meta):
        model: Any = build(**config)
    # load_checkpoint renames weights of other libraries, then calls this method.
    model.load_state_dict = lambda weights, strict: fill(model, weights)
    open_clip.load_checkpoint(model, path)
    del model.load_state_dict
    return model


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

    config = open_clip.get_model_config(architecture)
    if config["text_cfg"].get("hf_model_name") or "multimodal_cfg" in config:
        raise UserError(f"Backbone {name}: its text tower is not CLIP's transformer. Name another architecture.")
    return config


def _facts(architecture: str, tag: dict[str, Any], folder: Path | None) -> dict[str, Any]:
    """Activation and preprocessing of a tag or folder; for a file, facts that all tags of its architecture share."""
    import open_clip

    if folder:
        return json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8")).get("preprocess_cfg", {})
    names = open_clip.list_pretrained_tags_by_model(architecture)
    tags = [tag] if tag else [open_clip.get_pretrained_cfg(architecture, name) for name in names]
    return {key: tags[0].get(key) for key in RECORDED if tags and all(one.get(key) == tags[0].get(key) for one in tags)}


def _cached(repository: str, file: str) -> str:
    """The weights of a repository in the hub's cache, which open_clip reads without asking the hub, or ""."""
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    names = [Path(file).with_suffix(".safetensors").name, file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    found = [try_to_load_from_cache(repository, name) for name in names] if repository else []
    return next((path for path in found if isinstance(path, str)), "")


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
