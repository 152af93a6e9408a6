"""OpenAI's CLIPs by name, files in their format, and `clip.model.CLIP` from a state_dict."""

import collections
import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from clip import clip as openai_clip
from clip.model import CLIP, ModifiedResNet, QuickGELU, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from common.messages import some
from trainers.modules.clip.info import BackboneInfo
from trainers.modules.tensor_files import read_tensors

ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}
HEAD_WIDTH, LARGEST_WIDTH = 64, 1024  # of OpenAI's towers
MARK = "token_embedding.weight"  # in the state_dict of every CLIP
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of training loops
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in OpenAI's archives
FORMATS = "Accepted: a state_dict of clip.model.CLIP (torch.save or safetensors), or OpenAI's TorchScript archive."
ASSETS = Path(__file__).resolve().parents[3] / "assets"


class TowerKind(NamedTuple):
    """How a transformer computes, if weights do not say it; the defaults are OpenAI's, with heads of HEAD_WIDTH."""

    activation: str = "quick_gelu"
    heads: int | None = None
    eps: float = 1e-5


def label(name: str) -> str:
    """Short name: ViT-B16, or the file's without its suffix."""
    return name.replace("/", "") if name in openai_clip._MODELS else Path(name).stem


def check(name: str) -> None:
    """Raise UserError if the name is neither OpenAI's nor a file."""
    path, names = Path(name).expanduser(), openai_clip._MODELS
    if name not in names and not path.is_file():
        meant = f" Is hf:{name} meant?" if path.is_dir() or ("/" in name and not path.suffix) else ""
        raise UserError(
            f"Backbone {name!r} is neither a file nor one of OpenAI's names: {', '.join(names)}. Names of others begin "
            f"with open_clip: or hf:, see BACKBONES.md.{meant}"
        )


def has_vit(name: str) -> bool:
    """Whether the image tower is a ViT."""
    if name in openai_clip._MODELS:
        return name.startswith("ViT")
    return "visual.proj" in read_state_dict(Path(name).expanduser())


def load(name: str, root: str | PathLike) -> tuple[CLIP, BackboneInfo]:
    """Load one of OpenAI's models, downloaded to `root` if necessary, or a file."""
    path = _download(name, root) if name in openai_clip._MODELS else Path(name).expanduser()
    weights = read_state_dict(path)
    try:
        model = build_clip(weights)
    except (KeyError, RuntimeError, AssertionError, ZeroDivisionError, IndexError) as error:
        raise UserError(f"Backbone file {path} is not a CLIP in OpenAI's format. {FORMATS}\n{error!s:.1500}") from error
    note = f"Note: {path} is computed with QuickGELU. For weights of OpenCLIP name open_clip:<architecture>@{path}."
    is_openai = is_torchscript(path) or path.resolve().parent == ASSETS
    return model, BackboneInfo(files=(path,), notes=() if is_openai else (note,))


def _download(name: str, root: str | PathLike) -> Path:
    url, folder = openai_clip._MODELS[name], Path(root).expanduser()
    try:
        return Path(openai_clip._download(url, str(folder)))
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(
            f"Backbone {name}: the download from {url} to {folder} failed: {error}. Check the network and run the "
            "command again, or name a file."
        ) from error


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights in OpenAI's format, by their names in `clip.model.CLIP`; no code in the file runs.

    Raises:
        UserError: the file is damaged, or something else.
    """
    what = f"Backbone file {path}"
    content = _read_torchscript(path) if is_torchscript(path) else read_tensors(path, "Backbone file", FORMATS)
    elsewhere = f"Name open_clip:<architecture>@{path}."
    if isinstance(content, Mapping) and {"epoch", "name", "state_dict"} <= content.keys():
        raise UserError(f"{what} is a checkpoint of OpenCLIP's training. {elsewhere}")
    while isinstance(content, Mapping) and (keys := [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]):
        content = content[keys[0]]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{what} holds something other than tensors by name ({type(content).__name__}). {FORMATS}")
    weights = {str(key): value for key, value in content.items() if str(key).rpartition(".")[2] not in NOT_WEIGHTS}
    if any(key.startswith("vision_model.") for key in weights):
        raise UserError(f"{what} is in Hugging Face's format. Name its folder, with config.json: hf:{path.parent}.")
    prefix = next((key.removesuffix(MARK) for key in weights if key.endswith(MARK)), None)
    if prefix is None:
        raise UserError(f"{what} is not a CLIP in OpenAI's format: it holds {some(weights, 3)}. {FORMATS}")
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    if "visual.proj" in weights and weights["visual.proj"].shape[0] > LARGEST_WIDTH:
        raise UserError(f"{what} has an image tower larger than OpenAI's, with other heads. {elsewhere}")
    return weights


# ---- TorchScript archives, the format of OpenAI's downloads ----


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read_torchscript(path: Path) -> dict[str, Tensor]:
    """All tensors in the module tree of an archive, whose program does not run.

    data.pkl is the tree, data/<key> the numbers of a tensor.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            tree = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(tree) as handle:
                return dict(_tensors(_Unpickler(handle, archive, tree.removesuffix("data.pkl")).load(), ""))
    except Exception as error:  # a damaged pickle ends in any kind of exception
        raise UserError(f"Backbone file {path} is damaged, or might run code: {error}. {FORMATS}") from error


class _Module:
    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


def _strided(storage, offset, size, stride, *_):
    return torch.as_strided(storage, size, stride, offset)


class _Unpickler(pickle.Unpickler):
    """Knows tensors, containers and modules, and refuses everything else."""

    KNOWN: dict[tuple[str, str], Any] = {
        ("torch._utils", "_rebuild_tensor_v2"): _strided,
        ("collections", "OrderedDict"): collections.OrderedDict,
        **{("torch.jit._pickle", f"build_{kind}list"): list for kind in ("int", "tensor", "double", "bool")},
        **{
            ("torch", f"{kind}Storage"): getattr(torch, kind.lower())
            for kind in ("Float", "Half", "BFloat16", "Double", "Long", "Int", "Bool")
        },
    }

    def __init__(self, handle: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(handle)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name} is neither a tensor nor a container")
        return self.KNOWN[module, name]

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        content = bytearray(self._archive.read(f"{self._folder}data/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensors(module, prefix):
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, _Module):
            yield from _tensors(value, f"{prefix}{name}.")


# ---- models from weights ----


def build_clip(weights: Mapping[str, Tensor], image: TowerKind | None = None, text: TowerKind | None = None) -> CLIP:
    """Build a CLIP of any size; it shares the fp32 tensors among the weights.

    `clip.model.build_model` rounds weights to fp16, and knows only OpenAI's heads, MLPs and activation.

    Raises:
        KeyError, RuntimeError, AssertionError, ZeroDivisionError, IndexError: the weights do not make a CLIP.
    """
    text = text or TowerKind()
    length, width = weights["positional_embedding"].shape
    heads, layers = text.heads or width // HEAD_WIDTH, _count(weights, "transformer.resblocks.")
    vocabulary, feature_size = weights[MARK].shape[0], weights["text_projection"].shape[1]
    with torch.device("meta"):  # without the initialisation, which takes most of the time
        # The constructor cannot build all image towers; this one, the smallest, is replaced.
        model = CLIP(feature_size, 1, 1, HEAD_WIDTH, 1, length, vocabulary, width, heads, layers)
        model.visual = _empty_image_tower(_visual(weights), image or TowerKind())
        _adapt(model, weights, text)
    model.load_state_dict({key: _float(value) for key, value in weights.items()}, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model.eval()


def build_image_tower(weights: Mapping[str, Tensor], kind: TowerKind) -> VisionTransformer | ModifiedResNet:
    """Build one of OpenAI's image towers from its state_dict."""
    with torch.device("meta"):
        tower = _empty_image_tower(weights, kind)
    tower.load_state_dict({key: _float(value) for key, value in weights.items()}, assign=True)
    return tower.eval()


def _visual(weights):
    return {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}


def _float(value):
    return value.float() if value.is_floating_point() else value


def _count(weights, prefix):
    """Number of modules behind a prefix."""
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def _empty_image_tower(weights, kind):
    if "proj" in weights:
        width, patch = weights["conv1.weight"].shape[0], weights["conv1.weight"].shape[-1]
        grid = round((weights["positional_embedding"].shape[0] - 1) ** 0.5)
        heads, layers = kind.heads or width // HEAD_WIDTH, _count(weights, "transformer.resblocks.")
        tower = VisionTransformer(patch * grid, patch, width, layers, heads, weights["proj"].shape[1])
        _adapt(tower, weights, kind)
        return tower
    width, positions = weights["layer1.0.conv1.weight"].shape[0], weights["attnpool.positional_embedding"].shape[0]
    grid, feature_size = round((positions - 1) ** 0.5), weights["attnpool.c_proj.weight"].shape[0]
    assert grid**2 + 1 == positions, "its images are no squares"
    layers = tuple(_count(weights, f"layer{i}.") for i in (1, 2, 3, 4))
    return ModifiedResNet(layers, feature_size, kind.heads or width * 32 // HEAD_WIDTH, grid * 32, width)


def _adapt(tower, weights, kind):
    """Set the activation, the width of the MLPs and the epsilon of a tower's layer norms."""
    for i, block in enumerate(tower.transformer.resblocks):
        hidden, width = weights[f"transformer.resblocks.{i}.mlp.c_fc.weight"].shape
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        block.mlp.gelu = ACTIVATIONS[kind.activation]()
    norms = [module for name, module in tower.named_modules() if not name.startswith("visual.")]
    for module in norms:
        if isinstance(module, nn.LayerNorm):
            module.eps = kind.eps
