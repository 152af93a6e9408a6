"""OpenCLIP's models: open_clip:<architecture>@<tag or file>, open_clip:local-dir:<folder>, open_clip:hf-hub:<id>."""

import difflib
import importlib.util
import json
import math
import os
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.errors import UserError, some
from trainers.modules.backbone_source import RESIZE_MODES, Facts, Loaded, Source
from trainers.modules.clip_model import Kind, build_clip, build_image_tower, computes
from trainers.modules.clip_weights import unwrapped
from trainers.modules.hf_hub import HUB_ID, OPEN_CLIP_CONFIG, cached_file, offline
from trainers.modules.openai_source import read_weights
from trainers.modules.text_tower import POOLS
from trainers.modules.tokenizers import CLIP_TOKENIZER, Tokenizer, digest
from trainers.modules.torchscript_weights import is_torchscript

PREFIX = "open_clip:"
# open_clip's own names of a model with its config: a folder, or a repository of Hugging Face's hub.
LOCAL_DIR, HF_HUB = "local-dir:", "hf-hub:"
# Weights in a folder, in open_clip's order.
WEIGHTS = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin"),
    *("open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth"),
)
# Files that open_clip reads in a folder besides weights.
READ_WITH_WEIGHTS = (OPEN_CLIP_CONFIG, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
INSTALL = "pip install open_clip_torch"
FILES = f"Accepted: a state_dict of OpenCLIP's model, in a file {', '.join(SUFFIXES)}."
AT_MOST = 6  # names that a message gives
# Keys of a vision_cfg, and of a text_cfg, that a tower with OpenAI's layout may have.
OF_TOWER = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout", "norm_kwargs"}
OF_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "norm_kwargs", "act_kwargs"}
# Keys of a text_cfg by which a text tower is not another one than ours, or only in ways that TextTower knows.
KNOWN_OF_TEXT = OF_TEXT | {
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "ls_init_value", "pad_id", "eos_id", "no_causal_mask"),
    *("final_ln_after_pool", "pool_type", "proj_bias", "proj_type", "output_tokens"),
}
# Keys of an architecture that weights, their shapes or the tokenizer say, or that nothing goes by once it is trained.
SAID_ELSEWHERE = {
    *("init_logit_scale", "init_logit_bias", "nonscalar_logit_scale", "custom_text", "output_dict", "cast_dtype"),
    *("patch_dropout", "output_tokens", "timm_model_pretrained", "timm_drop", "timm_drop_path"),
    *("hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs", "hf_model_pretrained", "hf_proj_type"),
    "hf_pooler_type",
}
# What open_clip's own preprocessing has where a tag says nothing else.
OF_A_TAG: dict[str, Any] = {
    "mean": Facts.pixel_mean,
    "std": Facts.pixel_std,
    "interpolation": "bicubic",
    "resize_mode": "shortest",
    "fill_color": 0,
}


class OpenClip(Source):
    """Models of the open_clip package, with its architectures, tags, downloads, tokenizers and preprocessing.

    What has OpenAI's layout becomes a `clip.model.CLIP`; all others compute as open_clip has it.
    """

    prefix = PREFIX
    accepts = f"{PREFIX}<architecture>@<pretrained tag or file>, {PREFIX}{LOCAL_DIR}<folder>, {PREFIX}{HF_HUB}<id>"

    def label(self, name: str) -> str:
        architecture, weights = self._parts(name)
        if not weights:
            schema, _, place = architecture.partition(":")
            folder = os.path.basename(os.path.abspath(Path(place).expanduser()))
            return f"{schema}-{folder if schema == LOCAL_DIR[:-1] else place.replace('/', '-')}"
        return f"{architecture}@{Path(os.path.abspath(weights)).stem if _is_path(weights) else weights}"

    def check(self, name: str) -> None:
        if importlib.util.find_spec("open_clip") is None:
            raise UserError(f"Backbone {name} takes the package open_clip_torch, which is not installed: {INSTALL}")
        import open_clip

        architecture, weights = self._parts(name)
        known = open_clip.list_models()
        if weights and architecture not in known:
            close = difflib.get_close_matches(architecture, known, n=AT_MOST, cutoff=0.5)
            near = f"; close to it: {', '.join(close)}" if close else ""
            raise UserError(f"Backbone {name}: OpenCLIP has no architecture {architecture!r}{near}. {_form(known)}")
        if reason := why_not_prompted(self._config(name)[0]):
            raise UserError(f"Backbone {name} cannot be taken: {reason} Name another architecture.")
        if architecture.startswith(HF_HUB) or open_clip.is_pretrained_cfg(architecture, weights):
            return
        tags = open_clip.list_pretrained_tags_by_model(architecture)
        if weights and not _is_path(weights):
            has = f"it has {', '.join(tags)}" if tags else "none is published of it, so name a file"
            raise UserError(f"Backbone {name}: {architecture} has no pretrained tag {weights!r}; {has}.")
        path = self._local_file(name)
        if not path.is_file():
            raise UserError(f"Backbone {name}: there is no file {weights}. Tags of {architecture}: {', '.join(tags)}.")
        if path.suffix not in SUFFIXES:
            raise UserError(f"Backbone {name}: {weights} is of no format that is read. {FILES}")

    def load(self, name: str, root: str | PathLike) -> Loaded:
        import open_clip

        self.check(name)
        architecture, weights = self._parts(name)
        config, images, config_file = self._config(name)
        tokenizer = self._tokenizer(name, architecture, config, config_file)
        notes, files = [], []
        if architecture.startswith(HF_HUB):
            path = _downloaded(name, {"hf_hub": f"{architecture.removeprefix(HF_HUB)}/"})
        elif open_clip.is_pretrained_cfg(architecture, weights):
            path = _downloaded(name, open_clip.get_pretrained_cfg(architecture, weights))
        else:
            path = self._local_file(name)
            files = [path.parent / file for file in READ_WITH_WEIGHTS]
            if config_file is None:
                notes += _settle_activation(name, architecture, config, path)
        if weights and config_file is not None:
            notes += [f"Note: backbone {name} uses the model and the preprocessing of {config_file}."]
        facts, disagreement = _facts(name, architecture, images, tokenizer)
        read = _read(path)
        source = architecture if config_file is None else str(config_file)
        if _has_openais_layout(config):
            model, facts = _as_openais(config, read, source, path, facts)
        else:
            model, facts = _as_it_is(config, read, source, path, facts)
        return Loaded(model, facts, str(path), (path, *files), (*notes, *disagreement))

    def has_vit(self, name: str) -> bool:
        self.check(name)
        config = self._config(name)[0]
        return _has_openais_tower(config) and isinstance(config["vision_cfg"].get("layers", 12), int)

    def resolved(self, name: str) -> str:
        architecture, weights = self._parts(name)
        if architecture.startswith(LOCAL_DIR):
            return f"{PREFIX}{LOCAL_DIR}{Path(architecture.removeprefix(LOCAL_DIR)).expanduser().resolve()}"
        return f"{PREFIX}{architecture}@{Path(weights).resolve()}" if weights and Path(weights).exists() else name

    def _parts(self, name: str) -> tuple[str, str]:
        """(architecture, tag or path) of a name; of local-dir: and hf-hub: (the whole, "")."""
        rest = self.rest(name)
        for schema in (LOCAL_DIR, HF_HUB):
            if rest.startswith(schema):
                place = rest.removeprefix(schema)
                if not place or (schema == HF_HUB and ("@" in place or not HUB_ID.fullmatch(place))):
                    raise UserError(f"Backbone {name!r} names no place. Accepted: {self.accepts}.")
                return rest, ""
        architecture, _, weights = rest.partition("@")
        if not architecture or not weights:
            raise UserError(
                f"Backbone {name!r} does not say both architecture and weights; accepted: {self.accepts}, such as "
                f"{PREFIX}ViT-B-32@laion2b_s34b_b79k or {PREFIX}ViT-B-32@weights.safetensors."
            )
        return architecture.replace("/", "-"), weights

    def _local_file(self, name: str) -> Path:
        """The file of weights that a name gives, or that open_clip takes in the folder that it gives."""
        architecture, weights = self._parts(name)
        path = Path(weights or architecture.removeprefix(LOCAL_DIR)).expanduser()
        if not path.is_dir():
            return path
        named = [path / file for file in WEIGHTS if (path / file).is_file()]
        found = named or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
        if not named and len(found) != 1:
            some_file = found[0] if found else path / WEIGHTS[0]
            raise UserError(
                f"Backbone {name}: {path} has {len(found)} files of weights and none of open_clip's names, such as "
                f"{WEIGHTS[0]}. Name the file: {PREFIX}<architecture>@{some_file}."
            )
        return found[0]

    def _config(self, name: str) -> tuple[dict[str, Any], Mapping[str, Any] | None, Path | None]:
        """Config of a model, its preprocessing (None: unknown), and the open_clip_config.json that they come from.

        Raises:
            UserError: the file cannot be used, or is of another model than the architecture.
        """
        import open_clip

        architecture, weights = self._parts(name)
        if open_clip.is_pretrained_cfg(architecture, weights):
            tag = open_clip.get_pretrained_cfg(architecture, weights)
            # The same architecture is published with either activation: the tag says with which one.
            quick_gelu = tag.get("quick_gelu", False)
            return {**deepcopy(open_clip.get_model_config(architecture)), "quick_gelu": quick_gelu}, tag, None
        if architecture.startswith(HF_HUB):
            file = _downloaded(name, {"hf_hub": f"{architecture.removeprefix(HF_HUB)}/{OPEN_CLIP_CONFIG}"})
        else:
            path = Path(weights or architecture.removeprefix(LOCAL_DIR)).expanduser()
            file = (path if path.is_dir() or not weights else path.parent) / OPEN_CLIP_CONFIG
        named = deepcopy(open_clip.get_model_config(architecture)) if weights else None
        if named is not None and not (_is_path(weights) and file.is_file()):
            return named, None, None
        config, images = _read_config(file)
        # The name of an architecture need not have the activation, but "-quickgelu" in it has to be true.
        quick_gelu = named is not None and (named.get("quick_gelu") or config.get("quick_gelu"))
        if named is not None and _computed_by({**named, "quick_gelu": quick_gelu}) != _computed_by(config):
            raise UserError(
                f"Backbone {name}: {file} describes another model than {architecture}. Name {PREFIX}{LOCAL_DIR}"
                f"{file.parent}, or move the file of weights to another folder."
            )
        return config, images, file

    def _tokenizer(self, name, architecture, config, config_file):
        import open_clip
        from open_clip.tokenizer import HFTokenizer, SimpleTokenizer

        text = config["text_cfg"]
        own, options = text.get("hf_tokenizer_name"), text.get("tokenizer_kwargs") or {}
        by_name = config_file is None and "siglip" in architecture.lower()  # a rule of get_tokenizer
        if not own and not options and not by_name:
            return CLIP_TOKENIZER
        if config_file is not None and not architecture.startswith(HF_HUB):
            own = own and str(config_file.parent)  # as open_clip has it for a folder
        what = f"The tokenizer of backbone {name}, {own or architecture},"
        length = text.get("context_length", 77)
        try:
            if config_file is None:
                tokenizer = open_clip.get_tokenizer(architecture)
            elif own:
                mode = text.get("tokenizer_mode")
                tokenizer = HFTokenizer(own, context_length=length, tokenizer_mode=mode, **options)
            else:
                tokenizer = SimpleTokenizer(context_length=length, **options)
        except ImportError as error:
            raise UserError(
                f"The tokenizer of backbone {name} takes a package that is not installed: {error}. pip install "
                "transformers sentencepiece"
            ) from error
        except (OSError, ValueError, RuntimeError) as error:
            mend = f"It {told}" if (told := offline()) else "It is downloaded once; check the network"
            raise UserError(
                f"{what} could not be had: {str(error).splitlines()[0]} {mend}, or copy its folder from a machine that "
                "has it (~/.cache/huggingface)."
            ) from error
        return OpenClipTokenizer(tokenizer, length, what)


class OpenClipTokenizer(Tokenizer):
    """A tokenizer of open_clip's: what stands around a text is read off one that it makes.

    Args:
        tokenizer: open_clip's.
        context_length: positions of the text tower.
        what: whose it is, to begin messages with.

    Raises:
        UserError: there is something else around a text than a start, an end, and padding behind.
    """

    SAMPLE = "dog"

    def __init__(self, tokenizer: Any, context_length: int, what: str = "The tokenizer") -> None:
        self._tokenizer = tokenizer
        row = tokenizer([self.SAMPLE], context_length=context_length)[0].tolist()
        words = self.encode(self.SAMPLE)
        at = next((i for i in range(len(row)) if row[i : i + len(words)] == words), None)
        if at is None or len(row) < at + len(words) + 2 or row[-1] != row[-2]:
            raise UserError(
                f"{what} makes {some(map(str, row), 12)} of {self.SAMPLE!r}, whose words are {words}: accepted is what "
                "begins with the tokens of a start, or with the words, and goes on with those of an end and with "
                "padding up to the last position. Name an architecture whose tokenizer does (padding_side is right)."
            )
        self.before, self.pad, behind = tuple(row[:at]), row[-1], row[at + len(words) :]
        # Where the end is the same token as the padding, one of them is the end.
        ends = [i for i, token in enumerate(behind) if token != self.pad]
        self.after = tuple(behind[: ends[-1] + 1 if ends else 1])
        inner = getattr(tokenizer, "tokenizer", tokenizer)
        self.size = len(inner) if hasattr(inner, "__len__") else inner.vocab_size

    def encode(self, text: str) -> list[int]:
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:
            return self._tokenizer.encode(text)
        clean = getattr(self._tokenizer, "clean_fn", None) or _cleaned
        return inner(clean(text), add_special_tokens=False).input_ids

    def sha256(self) -> str:
        inner = getattr(self._tokenizer, "tokenizer", None)
        clean = getattr(getattr(self._tokenizer, "clean_fn", None), "__name__", "")
        around = [self.before, self.after, self.pad, clean]
        if inner is None:
            return digest(around, self._tokenizer.encoder, list(self._tokenizer.bpe_ranks))
        backend = getattr(inner, "backend_tokenizer", None)
        # Not all that it writes: how texts are padded and cut changes with every call.
        whole = json.loads(backend.to_str()) if backend else {}
        parts = [whole.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")]
        return digest(around, parts, inner.get_vocab())

    def words(self) -> list[str]:
        inner = getattr(self._tokenizer, "tokenizer", None)
        if inner is None:
            return [self._tokenizer.decode([i]).strip() for i in range(self.size)]
        return inner.convert_ids_to_tokens(list(range(self.size)))


def _cleaned(text):
    """As SigLipTokenizer has it."""
    from open_clip.tokenizer import basic_clean, canonicalize_text

    return canonicalize_text(basic_clean(text))


def _form(known):
    return f"There are {len(known)}, such as ViT-B-32, ViT-L-14, convnext_base_w (open_clip.list_models())."


def _is_path(weights):
    return Path(weights).suffix in SUFFIXES or "/" in weights or Path(weights).expanduser().exists()


def _read_config(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Model and preprocessing of an open_clip_config.json, as open_clip reads them.

    Raises:
        UserError: it cannot be read, or has values that open_clip does not know.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        config, given = content["model_cfg"], content.get("preprocess_cfg") or {}
        images = {key: given.get(key, default) for key, default in OF_A_TAG.items()}
        images = {key: OF_A_TAG[key] if value is None else value for key, value in images.items()}
        for key in ("mean", "std"):
            value = images[key]
            images[key] = tuple(map(float, value if isinstance(value, (list, tuple)) else [value] * 3))
            if len(images[key]) != 3 or not all(map(math.isfinite, images[key])) or (key == "std" and 0 in images[key]):
                raise ValueError(f"{key} is {value!r}")
        accepted = {"interpolation": ("bicubic", "bilinear", "random"), "resize_mode": RESIZE_MODES}
        for key, values in accepted.items():
            if images[key] not in values:
                raise ValueError(f"{key} is {images[key]!r} and not one of {', '.join(values)}")
        if images["interpolation"] == "random":  # of training; open_clip tests with this
            images["interpolation"] = "bicubic"
        if not why_not_prompted(config):
            with torch.device("meta"):
                _model_of(config)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file. Name open_clip:<architecture>@<file of weights>.") from error
    except Exception as error:  # open_clip builds the model of it, and raises anything
        raise UserError(f"{path}: not a config of open_clip: {error!r}. Save the model again.") from error
    return config, images


def why_not_prompted(config: Mapping[str, Any]) -> str:
    """Why an architecture cannot be taken, most often for its text tower, a sentence; "": it can."""
    text, size = config["text_cfg"], config["vision_cfg"].get("image_size", 224)
    if not isinstance(size, int) and len({*size}) > 1:
        return f"its images are no squares, but {size[0]} x {size[1]}."
    if "multimodal_cfg" in config or text.get("embed_cls"):
        return (
            "it is a CoCa, whose text tower reads the feature at a token behind the padding and hides padding from it."
        )
    if name := text.get("hf_model_name"):
        return (
            f"its text tower is {name}, a model of the transformers package with layers of its own, and not a CLIP's "
            "transformer."
        )
    text = {key: value for key, value in text.items() if value and (key, value) != ("block_type", "default")}
    if unknown := sorted(set(text) - KNOWN_OF_TEXT):
        said = ", ".join(f"{key} {text[key]}" for key in unknown)
        return f"its text tower has attention blocks of another kind than CLIP's ({said})."
    if (pool := text.get("pool_type", "argmax")) not in POOLS:
        return f"its text tower pools by {pool!r}, which is not one of {', '.join(POOLS)}."
    return ""


def _has_openais_layout(config: Mapping[str, Any]) -> bool:
    """Whether weights of an architecture can be those of a `clip.model.CLIP`."""
    return _has_openais_tower(config) and set(config["text_cfg"]) <= OF_TEXT and config.get("init_logit_bias") is None


def _has_openais_tower(config: Mapping[str, Any]) -> bool:
    """Whether its image tower's can be those of one of OpenAI's."""
    return set(config["vision_cfg"]) <= OF_TOWER


def _side(config: Mapping[str, Any]) -> int:
    """Of an architecture's images, in pixels."""
    size = config["vision_cfg"].get("image_size", 224)
    return size if isinstance(size, int) else size[0]


def _kinds(config: Mapping[str, Any]) -> tuple[Kind, Kind]:
    """How the towers of an architecture of OpenAI's layout compute: image, text."""
    vision, text = config["vision_cfg"], config["text_cfg"]
    width, head_width = vision.get("width", 768), vision.get("head_width", 64)
    is_vit = isinstance(vision.get("layers", 12), int)

    def activation(tower):
        if config.get("quick_gelu"):
            return "quick_gelu"
        return "gelu_tanh" if (tower.get("act_kwargs") or {}).get("approximate") == "tanh" else "gelu"

    def eps(tower):
        return (tower.get("norm_kwargs") or {}).get("eps", 1e-5)

    image = Kind(activation(vision), (width if is_vit else width * 32) // head_width, eps(vision))
    return image, Kind(activation(text), text.get("heads", 8), eps(text))


def _settle_activation(name: str, architecture: str, config: dict[str, Any], path: Path) -> list[str]:
    """Let a file compute as all that is published of its architecture does; a line if its name does not say so.

    Raises:
        UserError: the file is OpenAI's archive, and the architecture computes otherwise.
    """
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    published = [open_clip.get_pretrained_cfg(architecture, tag).get("quick_gelu") for tag in tags]
    if config.get("quick_gelu"):
        return []
    if published and all(published):
        config["quick_gelu"] = True
        return [
            f"Note: backbone {name} is computed with QuickGELU, as all published weights of {architecture} are "
            f"({', '.join(tags)})."
        ]
    if _has_openais_layout(config) and is_torchscript(path):
        quick = f"{architecture}-quickgelu"
        named = f"{PREFIX}{quick}@{path}, or " if quick in open_clip.list_models() else ""
        raise UserError(
            f"Backbone {name}: {path} is a TorchScript archive, as OpenAI's, which are computed with QuickGELU, and "
            f"{architecture} is computed with GELU. Name {named}the file alone: {path}."
        )
    return []


def _facts(
    name: str, architecture: str, images: Mapping[str, Any] | None, tokenizer: Tokenizer
) -> tuple[Facts, list[str]]:
    """Facts of a model by its preprocessing, or where it is unknown by that of all tags; a line if they differ."""
    import open_clip

    tags = open_clip.list_pretrained_tags_by_model(architecture)
    published = [images] if images is not None else [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    said = {key: [other.get(key) or default for other in published] for key, default in OF_A_TAG.items()}
    agreed = {key: all(value == values[0] for value in values) for key, values in said.items()}
    taken = {key: said[key][0] if published and agreed[key] else default for key, default in OF_A_TAG.items()}
    facts = Facts(
        "OpenCLIP",
        tuple(taken["mean"]),
        tuple(taken["std"]),
        taken["interpolation"],
        taken["resize_mode"],
        taken["fill_color"],
        tokenizer,
    )
    differ = [key for key in OF_A_TAG if not agreed[key]]
    if not differ:
        return facts, []
    return facts, [
        f"Note: published weights of {architecture} differ in how images are made ({', '.join(differ)}), and a file "
        f"does not say it. For {name} are taken {', '.join(f'{key} {taken[key]}' for key in differ)}; if it has "
        "others, set INPUT.PIXEL_MEAN, PIXEL_STD and INTERPOLATION."
    ]


def _downloaded(name: str, tag: dict[str, Any]) -> Path:
    """The file of a pretrained tag: out of the hub's cache as it is, or by open_clip's own download.

    What is in the cache is not asked for: what is newer would change the backbone of runs that are compared, and for
    weights that the cache has as a pickle open_clip asks the hub for others first, without a network for 23 s.
    """
    import open_clip

    hub = tag.get("hf_hub")
    if hub and (found := cached_file(*_in_hub(hub))) is not None:
        return found
    try:
        return Path(open_clip.download_pretrained(tag))
    except Exception as error:  # of many packages, of the network, of the disk
        reason = str(error).strip().removesuffix(".")
        mend = f"It {told}" if hub and (told := offline()) else "Check the network and run the command again"
        raise UserError(
            f"Could not download backbone {name} from {hub or tag.get('url')}: {reason}. {mend}, or name a file that "
            "you have in the place of the tag."
        ) from error


def _in_hub(place: str) -> tuple[str, list[str]]:
    """Repository on Hugging Face's hub of a tag's place there, and names of files that its weights may be in."""
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    repository, _, name = place.rpartition("/")
    if not name or name == HF_WEIGHTS_NAME:
        return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return repository, [str(Path(name).with_suffix(".safetensors")), name]


def _read(path: Path) -> dict[str, Tensor]:
    """The weights in a file, by OpenCLIP's names; no code of it is run."""
    content = read_weights(path, FILES)
    weights = dict(unwrapped(content, f"Backbone file {path}", FILES))
    if all(str(key).startswith("module.") for key in weights):  # of distributed training
        weights = {key.removeprefix("module."): value for key, value in weights.items()}
    skipped = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # of OpenAI's archives
    return {key: value for key, value in weights.items() if str(key).rpartition(".")[2] not in skipped}


def _as_openais(config, weights, architecture, path, facts):
    """A `clip.model.CLIP` of OpenCLIP's weights."""
    # Text towers of one's own are named so where the architecture asks for it; the names behind are the same.
    weights = {key.removeprefix("text."): value for key, value in weights.items()}
    with torch.device("meta"):  # for its shapes
        expected = _model_of({**config, "custom_text": False}).state_dict()
    _take_shapes(weights, expected)
    _require_same(weights, expected, architecture, path)
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    image, text = _kinds(config)
    model = build_clip(weights, image, text)
    model.visual.input_resolution = _side(config)  # which need not be a multiple of the patches' side
    return model, replace(facts, computes=computes(weights, image, text))


def _as_it_is(config, weights, architecture, path, facts):
    """OpenCLIP's own model, with OpenAI's image tower where it is of that layout."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    model = _model_of(config)
    weights = convert_state_dict(model, weights)
    if hasattr(model, "text"):
        weights = convert_to_custom_text_state_dict(weights)
    own = model.state_dict()
    _take_shapes(weights, own)
    if "logit_bias" in own:
        weights.setdefault("logit_bias", torch.zeros_like(own["logit_bias"]))
    _require_same(weights, own, architecture, path)
    weights = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    model.load_state_dict(weights, assign=True)
    if _has_openais_tower(config):  # so that prompts can be put into it
        of_images = {key: value for key, value in weights.items() if key.startswith("visual.")}
        tower = build_image_tower(of_images, _kinds(config)[0])
        tower.input_resolution = _side(config)
        model.visual = tower
    return model.eval(), replace(facts, computes=f"OpenCLIP {_computed_by(config)}")


def _take_shapes(weights, expected):
    """Give the scale and the bias of logits, single numbers, the form that they should have."""
    for key in ("logit_scale", "logit_bias"):
        if key in weights and key in expected and weights[key].numel() == 1:
            weights[key] = weights[key].reshape(expected[key].shape)


def _computed_by(config: Mapping[str, Any]) -> str:
    """All of an architecture that its towers compute by and weights do not say, without what is open_clip's default."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    def told(given, defaults):
        of_default = vars(defaults) if defaults else {}
        return {
            key: value
            for key, value in given.items()
            if key not in SAID_ELSEWHERE and value not in (None, False) and of_default.get(key) != value
        }

    whole = told({key: value for key, value in config.items() if not key.endswith("_cfg")}, None)
    whole |= {"vision": told(config["vision_cfg"], CLIPVisionCfg()), "text": told(config["text_cfg"], CLIPTextCfg())}
    return json.dumps(whole, sort_keys=True)


def _model_of(config: Mapping[str, Any]) -> nn.Module:
    """OpenCLIP's model of an architecture, with weights of chance."""
    from open_clip.model import CLIP, CustomTextCLIP

    given = deepcopy(dict(config))
    kind = CustomTextCLIP if given.pop("custom_text", False) else CLIP
    given["vision_cfg"]["timm_model_pretrained"] = False
    with torch.random.fork_rng(devices=[]):  # or contexts would depend on whether a process has loaded it
        return kind(**given)


def _require_same(weights: Mapping[str, Any], expected: Mapping[str, Tensor], architecture: str, path: Path) -> None:
    """Raise UserError unless weights are those of an architecture: all of them, of the same shapes, and no others."""
    missing = [key for key in expected if key not in weights]
    others = [key for key in weights if key not in expected]
    wrong = [key for key in expected if key in weights and weights[key].shape != expected[key].shape]
    found = []
    if wrong:
        key = wrong[0]
        found.append(f"{key} is {tuple(weights[key].shape)}, and that of {architecture} {tuple(expected[key].shape)}")
    if missing:
        found.append(f"it lacks {len(missing)} of {len(expected)} entries ({some(missing, 3)})")
    if others:
        found.append(f"it has {len(others)} others ({some(others, 3)})")
    if found:
        raise UserError(
            f"Backbone file {path} is of another architecture than {architecture}: {'; '.join(found)}. Name the "
            f"architecture that it was trained with. {FILES}"
        )
