"""CLIPModels in Hugging Face's format: hf:<folder>, hf:<organisation>/<name>, hf:<organisation>/<name>@<revision>."""

import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from clip.clip import _tokenizer as openai_bpe
from clip.model import CLIP
from torch import Tensor

from common.errors import UserError
from common.messages import some
from trainers.modules.clip.info import BackboneInfo, library_errors
from trainers.modules.clip.openai import TowerKind, build_clip
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, LibraryTokenizer, Tokenizer

PACKAGE = "transformers"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
HUB_FILES, HUB_PICKLES = ["*.json", "merges.txt", "model*.safetensors"], ["pytorch_model*.bin"]
# transformers' names of our activations.
ACTIVATIONS = {"quick_gelu": "quick_gelu", "gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh"}
RESAMPLES = {0: "nearest", 2: "bilinear", 3: "bicubic"}
ARGMAX_EOS = 2  # eos_token_id of old configs, whose texts are read at the highest id
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


def label(name: str) -> str:
    """Short name: hf-<folder>, or hf-<organisation>-<name>."""
    rest = name.removeprefix("hf:")
    folder = Path(rest).expanduser()
    return f"hf-{folder.resolve().name if folder.is_dir() else rest.replace('/', '-')}"


def check(name: str) -> None:
    """Raise UserError if transformers is missing, or the name is neither a CLIPModel's folder nor an id of the hub."""
    rest = name.removeprefix("hf:")
    folder = Path(rest).expanduser()
    if not folder.is_dir() and not HUB_ID.fullmatch(rest):
        raise UserError(
            f"Backbone {name} is neither a folder nor an id of Hugging Face's hub. Name a folder with config.json, or "
            "an id such as hf:openai/clip-vit-base-patch16."
        )
    with library_errors(name, PACKAGE):
        from transformers import PretrainedConfig

        # No class, so that no code beside the config can be asked for.
        kind = PretrainedConfig.get_config_dict(folder)[0].get("model_type") if folder.is_dir() else "clip"
    if kind != "clip":
        raise UserError(f"Backbone {name}: model_type in config.json is {kind!r}. Accepted: 'clip' (CLIPModel).")


def has_vit(name: str) -> bool:
    """Whether the image tower is a ViT, as in each CLIPModel."""
    return True


def load(name: str, root: str | PathLike) -> tuple[CLIP, BackboneInfo]:
    """Load a CLIPModel with transformers, and return it as a `clip.model.CLIP` with the same weights."""
    rest = name.removeprefix("hf:")
    with library_errors(name, PACKAGE):
        from transformers import CLIPModel
        from transformers.utils import logging

        folder = Path(rest).expanduser()
        if not folder.is_dir():
            folder = hub_folder(rest, HUB_FILES, HUB_PICKLES)
            check(f"hf:{folder}")
        logging.disable_progress_bar()
        found: Any = CLIPModel.from_pretrained(folder, output_loading_info=True)
        model, config, missing = found[0], found[0].config, sorted(found[1]["missing_keys"])
        if missing:
            raise UserError(f"Backbone {name}: its weights lack {some(missing, 3)}. Get them again.")
        clip = build_clip(_openai_names(model.state_dict()), _kind(config.vision_config), _kind(config.text_config))
        tokenizer = _tokenizer(name, folder, config.text_config)
        info = _info(name, folder, config.vision_config.image_size, tokenizer)
    # The image size need not be a multiple of the patch size.
    clip.visual.input_resolution = config.vision_config.image_size
    if config.text_config.eos_token_id != ARGMAX_EOS:
        clip.text_pool_type, clip.text_eos_id = "eos", config.text_config.eos_token_id
    return clip, info


def hub_folder(name: str, files: Sequence[str], pickles: Sequence[str]) -> Path:
    """The folder of a model in the hub's cache, downloaded if the cache lacks it.

    A complete copy is used without asking the hub, so that all runs of a comparison have one backbone.

    Args:
        name: <organisation>/<name>, or <organisation>/<name>@<revision>.
        files: patterns of the files to download; the last one matches the weights.
        pickles: patterns of weights in repositories without safetensors.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    repository, _, revision = name.partition("@")
    for offline in (True, False):
        for patterns in ([*files], [*files, *pickles]):
            try:
                found = snapshot_download(
                    repository, revision=revision or None, allow_patterns=patterns, local_files_only=offline
                )
            except LocalEntryNotFoundError:
                if offline:
                    continue
                raise
            if any(path for pattern in (files[-1], *pickles) for path in Path(found).glob(pattern)):
                return Path(found)
    raise UserError(f"Backbone {name}: its repository has no weights.")


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


def _tokenizer(name: str, folder: Path, config: Any) -> Tokenizer:
    """The folder's tokenizer; OpenAI's if the folder has none and the vocabulary is as large."""
    from transformers import CLIPTokenizer

    # transformers makes an empty tokenizer if files are missing.
    if not any((folder / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        if config.vocab_size == CLIP_TOKENIZER.size:
            return CLIP_TOKENIZER
        raise UserError(f"Backbone {name} has no tokenizer. Add tokenizer.json, or vocab.json and merges.txt.")
    inner: Any = CLIPTokenizer.from_pretrained(folder)
    if inner.get_vocab() == openai_bpe.encoder:
        return CLIP_TOKENIZER
    row = inner(LibraryTokenizer.SAMPLE, padding="max_length", max_length=config.max_position_embeddings).input_ids
    return LibraryTokenizer(inner, lambda text: inner(text, add_special_tokens=False).input_ids, row, name)


def _info(name: str, folder: Path, image_size: int, tokenizer: Tokenizer) -> BackboneInfo:
    """Facts with the preprocessing of the folder's image processor; OpenAI's if the folder has none."""
    from transformers import CLIPImageProcessor

    files = tuple(sorted(folder.glob("*.*")))
    if not any((folder / file).is_file() for file in ("preprocessor_config.json", "processor_config.json")):
        note = f"Note: {name} has no preprocessor_config.json. Images are made as for OpenAI's CLIPs."
        return BackboneInfo("Hugging Face", tokenizer=tokenizer, files=files, notes=(note,))
    images = CLIPImageProcessor.from_pretrained(folder)
    size, square = dict(images.size or {}), {"height": image_size, "width": image_size}
    squash = images.do_resize and size == square and (not images.do_center_crop or dict(images.crop_size) == square)
    notes = []
    if not squash and not (images.do_resize and images.do_center_crop and size == {"shortest_edge": image_size}):
        notes = [f"Note: {name} resizes images to {size}. Here the shorter side becomes {image_size}, then a crop."]
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
        files=files,
        notes=tuple(notes),
    )
