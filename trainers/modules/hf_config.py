"""What the JSON files of a CLIP in Hugging Face's layout say: shapes, activation, how images are made, tokenizer."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_text
from trainers.modules.backbone_source import CLIP_MEAN, CLIP_STD, Facts
from trainers.modules.bpe import EOS, SOS, clip_tokenizer
from trainers.modules.clip_model import Kind
from trainers.modules.hf_hub import CONFIG, OPEN_CLIP_CONFIG, PREPROCESSOR
from trainers.modules.tokenizers import CLIP_TOKENIZER, Tokenizer

FAMILY = "Hugging Face"

# What a tower's section leaves out has these values (CLIPTextConfig and CLIPVisionConfig of transformers).
TOWER_DEFAULTS = {"num_hidden_layers": 12, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT_DEFAULTS = {
    **TOWER_DEFAULTS,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
VISION_DEFAULTS = {
    **TOWER_DEFAULTS,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
}
PROJECTION = 512

# Those of our names that Hugging Face's stand for.
ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_pytorch_tanh", "gelu_fast", "gelu_accurate"), "gelu_tanh"),
}

# Before July 2023 configs gave 2 for the EOS, whatever it was, and texts are pooled at their highest id.
POOLED_AT_HIGHEST = 2

# What a preprocessor's config leaves out has these values (CLIPImageProcessor).
PREPROCESSOR_DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(("do_resize", "do_center_crop", "do_normalize", "do_rescale"), True),
    "rescale_factor": 1 / 255,
    **dict.fromkeys(("size", "crop_size")),
    "resample": 3,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}

# PIL's numbers for what INPUT.INTERPOLATION calls so.
RESAMPLES = {0: "nearest", 2: "bilinear", 3: "bicubic"}

# Why CLIPs of other kinds cannot be taken, by their model_type.
OPEN_CLIP = "it is not computed as a CLIPModel is; OpenCLIP has it, in its own layout: open_clip:{}"
BERT = "contexts are made for CLIP's causal text tower, and this one's is a {}, with a tokenizer of its own"
OTHER_KINDS = {
    "align": BERT.format("BERT"),
    "altclip": BERT.format("XLM-RoBERTa"),
    "blip": BERT.format("BERT that also looks at the image"),
    "blip-2": "its text goes through a Q-Former that also looks at the image",
    "chinese_clip": BERT.format("BERT"),
    "clip_text_model": "it is the text tower alone, and images need one, too",
    "clip_vision_model": "it is the image tower alone, and class names need one, too",
    "clipseg": "it is a CLIP with a decoder that marks places in images",
    "coca": "its text tower ends in a token of its own behind the text, and generates captions",
    "flava": BERT.format("BERT"),
    "groupvit": "its image tower groups pixels and is no ViT",
    "jina_clip": "its towers are code that comes with the weights, and no code of a checkpoint is run",
    "metaclip_2": OPEN_CLIP.format("ViT-H-14-worldwide-quickgelu@metaclip2_worldwide"),
    "owlv2": "it finds objects in images, by features of patches",
    "owlvit": "it finds objects in images, by features of patches",
    "siglip": OPEN_CLIP.format("ViT-B-16-SigLIP@webli"),
    "siglip2": OPEN_CLIP.format("ViT-B-16-SigLIP2@webli"),
    "vision-text-dual-encoder": BERT.format("tower of another model"),
    "xclip": "its images are videos",
}


@dataclass(frozen=True)
class TowerShape:
    """Sizes of one of a CLIP's transformers, `inner` that inside an MLP, and how it computes."""

    width: int
    inner: int
    layers: int
    kind: Kind


@dataclass(frozen=True)
class ClipShape:
    """Sizes of a CLIP whose towers are a transformer and a ViT, and how its texts are pooled.

    Attributes:
        text, vision: the towers.
        feature_size: E.
        vocabulary: rows of the token embedding.
        positions: of a text, start and end included.
        eos: id at whose first place a text is pooled; None: where the highest id is.
        image_size, patch_size: sides in pixels.
    """

    text: TowerShape
    vision: TowerShape
    feature_size: int
    vocabulary: int
    positions: int
    eos: int | None
    image_size: int
    patch_size: int


def read_shape(folder: Path, what: str) -> ClipShape:
    """What config.json says.

    Args:
        folder: that it lies in.
        what: whose it is, to begin messages with.

    Raises:
        UserError: it is missing or damaged, of a model of another kind, or says what no CLIP has.
    """
    config = _read(folder / CONFIG, what)
    kind = config.get("model_type")
    if kind != "clip":
        why = OTHER_KINDS.get(str(kind), "its towers are not CLIP's") if kind else "its kind is not known"
        raise UserError(
            f"{what}: model_type in {CONFIG} is {kind!r}: {why}. Accepted: 'clip' (CLIPModel), or open_clip's "
            "architectures as open_clip:<architecture>@<pretrained>."
        )
    text, vision = (
        _section(config, name, defaults)
        for name, defaults in (("text_config", TEXT_DEFAULTS), ("vision_config", VISION_DEFAULTS))
    )
    try:
        if vision["num_channels"] != 3:
            raise ValueError(f"num_channels is {vision['num_channels']!r}; accepted: 3")
        eos = _one(text, "eos_token_id")
        return ClipShape(
            _tower(text),
            _tower(vision),
            _size({"projection_dim": PROJECTION, **config}, "projection_dim"),
            _size(text, "vocab_size"),
            _size(text, "max_position_embeddings"),
            None if eos == POOLED_AT_HIGHEST else eos,
            _size(vision, "image_size"),
            _size(vision, "patch_size"),
        )
    except ValueError as error:
        raise UserError(f"{what}: {error} in {CONFIG}.") from error


def _section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's entries; old configs have a second section, which wins with what it leaves out, as in transformers."""
    old = config.get(f"{name}_dict")
    return {**defaults, **(config.get(name) or {})} | ({} if old is None else {**defaults, **old})


def read_facts(folder: Path, what: str, image_size: int) -> Facts:
    """How images are made, by preprocessor_config.json; a folder that has none takes them as OpenAI's, which is said.

    Raises:
        UserError: it is damaged, or resizes in a way that is not known here.
    """
    facts = Facts(FAMILY)
    name = next((name for name in PREPROCESSOR if (folder / name).is_file()), None)
    if name is None:
        print(f"Note: {what} has no {PREPROCESSOR[0]}; images are made as OpenAI's CLIPs take them.")
        return facts
    said = _read(folder / name, what)
    config = {**PREPROCESSOR_DEFAULTS, **said.get("image_processor", said)}
    factor = config["rescale_factor"]
    is_ours = isinstance(factor, (int, float)) and math.isclose(255 * factor, 1, rel_tol=1e-6)
    if not (config["do_rescale"] and is_ours):
        raise UserError(
            f"{what}: {name} says do_rescale {config['do_rescale']} and rescale_factor {factor!r}; accepted: True and "
            "1/255 (0.00392156862745098), pixels between 0 and 1. Set these, and image_mean and image_std to what "
            "they come to for such pixels."
        )
    if not config["do_normalize"]:
        config.update(image_mean=[0.0] * 3, image_std=[1.0] * 3)
    mean, std = (
        _three_numbers(config[key], f"{what}: {key} in {name} is {config[key]!r}")
        for key in ("image_mean", "image_std")
    )
    if config["resample"] not in RESAMPLES:
        raise UserError(
            f"{what}: resample in {name} is {config['resample']!r}; accepted: "
            f"{', '.join(f'{number} ({kind})' for number, kind in RESAMPLES.items())}."
        )
    mode = "squash" if _is_squashed(config, image_size, f"{what}: {name}") else "shortest"
    return replace(facts, pixel_mean=mean, pixel_std=std, interpolation=RESAMPLES[config["resample"]], resize_mode=mode)


def read_tokenizer(folder: Path, what: str, shape: ClipShape) -> Tokenizer:
    """The tokenizer that comes with weights, CLIP's own byte pair encoding or one with another vocabulary.

    Raises:
        UserError: it is of another kind, damaged, or does not fit the weights.
    """
    vocabulary, merges, whole = (folder / name for name in ("vocab.json", "merges.txt", "tokenizer.json"))
    try:
        if whole.is_file():  # which transformers reads first, too
            source, tokenizer = whole, _from_one_file(whole, what)
        elif vocabulary.is_file() and merges.is_file():
            source, tokenizer = vocabulary, _from_two_files(vocabulary, merges, what)
        elif shape.vocabulary == CLIP_TOKENIZER.size:
            return CLIP_TOKENIZER
        else:
            raise UserError(
                f"{what} has no tokenizer, and a vocabulary of {shape.vocabulary:,} is not OpenAI's, of "
                f"{CLIP_TOKENIZER.size:,}. Put vocab.json and merges.txt, or tokenizer.json, beside {CONFIG}."
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{what}: its tokenizer cannot be built: {error}. Accepted: CLIP's byte pair encoding (CLIPTokenizer), as "
            "vocab.json and merges.txt, or as tokenizer.json."
        ) from error
    _check_fit(tokenizer, shape, f"{what}: {source.name}")
    return tokenizer


def _check_fit(tokenizer: Tokenizer, shape: ClipShape, where: str) -> None:
    """Raise UserError unless a tokenizer's ids are rows of the embedding, and texts are pooled at its EOS."""
    highest, (eos,) = tokenizer.size - 1, tokenizer.after
    mend = "It belongs to other weights: get both from the same place."
    if highest >= shape.vocabulary:
        raise UserError(
            f"{where} has ids up to {highest:,}, and the weights have embeddings for {shape.vocabulary:,} tokens "
            f"(vocab_size in {CONFIG}). {mend}"
        )
    if shape.eos is None and highest != eos:
        raise UserError(
            f"{where} has {EOS} at {eos:,} and ids up to {highest:,}, and {CONFIG} says eos_token_id 2, by which texts "
            f"are read at their highest id. Set eos_token_id of text_config to {eos}, if that is what they end in."
        )
    if shape.eos not in (None, eos):
        raise UserError(f"{where} has {EOS} at {eos:,}, and eos_token_id in {CONFIG} is {shape.eos:,}. {mend}")


def _from_two_files(vocabulary, merges, what):
    lines = read_text(merges).splitlines()
    return clip_tokenizer(_read(vocabulary, what), _pairs(line for line in lines if line and line[:9] != "#version:"))


def _from_one_file(path, what):
    content = _read(path, what)
    model = content["model"]
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        kind = model.get("type", "BPE")
        raise ValueError(f"{path.name} is a {kind} model, not one with CLIP's end of words, '</w>'")
    for part, needed in (("normalizer", "Lowercase"), ("pre_tokenizer", "ByteLevel")):
        if needed not in _types(content.get(part)):
            raise ValueError(
                f"{path.name} has a {part} without {needed}, which CLIP's has, so it makes other tokens of a text"
            )
    added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    added = {token: added[token] for token in (SOS, EOS) if token in added}
    return clip_tokenizer({**model["vocab"], **added}, _pairs(model["merges"]))


def _types(part: Any) -> set[str]:
    """Names of all steps of a part of tokenizer.json."""
    if isinstance(part, list):
        return set().union(*map(_types, part))
    if not isinstance(part, dict):
        return set()
    inside = part.get("normalizers") or part.get("pretokenizers")
    return {str(part.get("type"))} | _types(inside)


def _pairs(merges):
    """Merges as pairs, whether they are written as "a b" or as two."""
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    if any(len(pair) != 2 for pair in pairs):
        raise ValueError("its merges are not pairs of tokens")
    return pairs


def _read(path: Path, what: str) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except FileNotFoundError as error:
        if (path.parent / OPEN_CLIP_CONFIG).is_file():
            raise UserError(f"{what} is a model of OpenCLIP. Name open_clip:local-dir:{path.parent}.") from error
        raise UserError(
            f"{what} has no {path.name}. Get the whole folder of the model, or save it with save_pretrained(<folder>)."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{what}: {path.name} cannot be read ({error}). Get it again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{what}: {path.name} holds a {type(content).__name__}, not entries by name. Get it again.")
    return content


def _tower(config: Mapping[str, Any]) -> TowerShape:
    activation, eps = config["hidden_act"], config["layer_norm_eps"]
    if activation not in ACTIVATIONS:
        raise ValueError(f"hidden_act is {activation!r}; accepted: {', '.join(ACTIVATIONS)}")
    if not isinstance(eps, (int, float)) or not eps > 0:
        raise ValueError(f"layer_norm_eps is {eps!r}; accepted: a number above 0")
    width, heads = _size(config, "hidden_size"), _size(config, "num_attention_heads")
    if width % heads:
        raise ValueError(f"hidden_size is {width}, which {heads} heads (num_attention_heads) cannot share")
    inner, layers = _size(config, "intermediate_size"), _size(config, "num_hidden_layers")
    return TowerShape(width, inner, layers, Kind(ACTIVATIONS[activation], heads, float(eps)))


def _size(config: Mapping[str, Any], key: str) -> int:
    """A whole number above 0, or sides of a square."""
    value = _one(config, key)
    if not value > 0:
        raise ValueError(f"{key} is {value!r}; accepted: a whole number above 0")
    return value


def _one(config: Mapping[str, Any], key: str) -> int:
    values = config[key] if isinstance(config[key], list) else [config[key]]
    if len(set(map(repr, values))) != 1 or type(values[0]) is not int:
        raise ValueError(f"{key} is {config[key]!r}; accepted: a whole number")
    return values[0]


def _three_numbers(value, message):
    if not isinstance(value, (list, tuple)) or len(value) != 3 or any(type(x) not in (int, float) for x in value):
        raise UserError(f"{message}; accepted: three numbers.")
    return tuple(map(float, value))


def _is_squashed(config: Mapping[str, Any], image_size: int, where: str) -> bool:
    """Whether images are resized to a square whatever their form, else cut to one; a note where it is neither."""
    square = {"height": image_size, "width": image_size}
    uncut = not config["do_center_crop"] or config["crop_size"] in (None, image_size, square)
    if config["do_resize"] and uncut and config["size"] == square:
        return True
    by_shorter_side = config["size"] in (None, image_size, {"shortest_edge": image_size})
    if not (config["do_resize"] and uncut and by_shorter_side and config["do_center_crop"]):
        said = ", ".join(f"{key} {config[key]}" for key in ("do_resize", "size", "do_center_crop", "crop_size"))
        print(
            f"Note: {where} says {said}; here images are resized to {image_size} pixels by their shorter side and cut "
            "to a square."
        )
    return False
