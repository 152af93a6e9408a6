"""OpenAI's CLIPs by name, files in their format, and `clip.model.CLIP` from a state_dict."""

import pickle
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from clip import clip as openai_clip
from clip.model import CLIP, ModifiedResNet, QuickGELU, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError, join_truncated
from trainers.modules.clip.backbone import BackboneInfo, library_errors
from trainers.modules.tensor_files import read_tensors

ACTIVATIONS = {"quick_gelu": QuickGELU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU(approximate="tanh")}
HEAD_WIDTH, LARGEST_WIDTH = 64, 1024  # of OpenAI's towers
MARK = "token_embedding.weight"  # in the state_dict of every CLIP
WRAPPERS = ("state_dict", "model_state_dict", "model")  # keys of training loops
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in OpenAI's archives
FORMATS = "Accepted: a state_dict of clip.model.CLIP (torch.save or safetensors), or OpenAI's TorchScript archive."
OTHERS = "Name open_clip:<architecture>@<file> for weights of OpenCLIP, hf:<folder> for a CLIPModel of Hugging Face."
ASSETS = Path(__file__).resolve().parents[3] / "assets"
STORAGES = {f"{kind}Storage": getattr(torch, kind.lower()) for kind in ("Float", "Half", "BFloat16", "Long", "Int")}


class TowerKind(NamedTuple):
    """How a transformer computes, if weights do not say it; the defaults are OpenAI's, with heads of HEAD_WIDTH."""

    activation: str = "quick_gelu"
    heads: int | None = None
    eps: float = 1e-5


def check(name: str) -> None:
    """Raise UserError if the name is neither OpenAI's nor a file."""
    path, names = Path(name).expanduser(), openai_clip._MODELS
    if name not in names and not path.is_file():
        meant = f" Is hf:{name} meant?" if path.is_dir() or ("/" in name and not path.suffix) else ""
        raise UserError(
            f"Backbone {name!r} is neither a file nor one of OpenAI's names: {', '.join(names)}. Names of others begin "
            f"with open_clip: or hf:, see docs/backbones.md.{meant}"
        )


def load(name: str, root: str | PathLike) -> tuple[CLIP, BackboneInfo]:
    """Load one of OpenAI's models, downloaded to `root` if necessary, or a file."""
    path, url = Path(name).expanduser(), openai_clip._MODELS.get(name)
    if url:
        folder = Path(root).expanduser()
        task = f"download {url}. Download it elsewhere, and copy it to {folder}"
        with library_errors(name, "clip-anytorch", task):
            path = Path(openai_clip._download(url, str(folder)))
    weights = read_state_dict(path)
    with library_errors(f"file {path}", "clip-anytorch", "build a CLIP in OpenAI's format from it"):
        model = build_clip(weights)
    note = f"Note: {path} is computed with QuickGELU. For weights of OpenCLIP name open_clip:<architecture>@{path}."
    is_openai = url or path.resolve().parent == ASSETS
    return model, BackboneInfo(files=(path,), notes=() if is_openai else (note,))


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read weights in OpenAI's format, by their names in `clip.model.CLIP`; no code in the file runs."""
    content = _read_torchscript(path) or read_tensors(path, "Backbone file", FORMATS)
    is_open_clip = isinstance(content, Mapping) and {"epoch", "name", "state_dict"} <= content.keys()
    while isinstance(content, Mapping) and (keys := [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]):
        content = content[keys[0]]
    weights = {str(key): value for key, value in content.items()} if isinstance(content, Mapping) else {}
    weights = {key: value for key, value in weights.items() if key.rpartition(".")[2] not in NOT_WEIGHTS}
    prefix = next((key.removesuffix(MARK) for key in weights if key.endswith(MARK)), None)
    if is_open_clip or prefix is None or not all(isinstance(value, Tensor) for value in weights.values()):
        raise UserError(
            f"Backbone file {path} is not a CLIP in OpenAI's format: it holds {join_truncated(weights, 3)}. {OTHERS}"
        )
    weights = {key.removeprefix(prefix): value for key, value in weights.items()}
    if "visual.proj" in weights and weights["visual.proj"].shape[0] > LARGEST_WIDTH:
        raise UserError(f"Backbone file {path} has an image tower larger than OpenAI's, with other heads. {OTHERS}")
    return weights


def _read_torchscript(path: Path) -> dict[str, Tensor] | None:
    """All tensors in the module tree of a TorchScript archive, without running its program; None for other files."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2]: name for name in archive.namelist()}
            if "constants.pkl" not in names:
                return None
            with archive.open(names["data.pkl"]) as handle:
                return dict(_tensors(_Unpickler(handle, archive, names["data.pkl"].removesuffix(".pkl")).load()))
    except Exception as error:  # a damaged pickle ends in any kind of exception
        raise UserError(f"Backbone file {path} is damaged, or might run code: {error}. {FORMATS}") from error


class _Unpickler(pickle.Unpickler):
    """Knows tensors, containers and modules, and refuses everything else."""

    def __init__(self, handle: Any, archive: zipfile.ZipFile, folder: str) -> None:
        super().__init__(handle)
        self._archive, self._folder = archive, folder

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return SimpleNamespace
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":  # build_intlist and the like
            return list
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, stride, *_: torch.as_strided(storage, size, stride, offset)
        raise pickle.UnpicklingError(f"{module}.{name} is neither a tensor nor a container")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, _ = pid
        content = bytearray(self._archive.read(f"{self._folder}/{key}"))
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)


def _tensors(module, prefix=""):
    for name, value in vars(module).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, SimpleNamespace):
            yield from _tensors(value, f"{prefix}{name}.")


def build_clip(weights: Mapping[str, Tensor], image: TowerKind | None = None, text: TowerKind | None = None) -> CLIP:
    """Build a CLIP of any size; it shares the fp32 tensors among the weights.

    `clip.model.build_model` rounds weights to fp16, and knows only OpenAI's heads, MLPs and activation.
    """
    image, text = image or TowerKind(), text or TowerKind()
    length, width = weights["positional_embedding"].shape
    vocabulary, feature_size = weights[MARK].shape[0], weights["text_projection"].shape[1]
    layers = _count(weights, "transformer.resblocks.")
    with torch.device("meta"):  # without the initialisation, which takes most of the time
        # The constructor cannot build all image towers; this one, the smallest, is replaced.
        heads = text.heads or width // HEAD_WIDTH
        model = CLIP(feature_size, 1, 1, HEAD_WIDTH, 1, length, vocabulary, width, heads, layers)
        _adapt(model, weights, text)
        model.visual = nn.Module()
    fill(model, {key: value for key, value in weights.items() if not key.startswith("visual.")})
    visual = {key.removeprefix("visual."): value for key, value in weights.items() if key.startswith("visual.")}
    model.visual = build_image_tower(visual, image)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model


def build_image_tower(weights: Mapping[str, Tensor], kind: TowerKind) -> VisionTransformer | ModifiedResNet:
    """Build one of OpenAI's image towers from its state_dict."""
    with torch.device("meta"):
        if "proj" in weights:
            width, _, patch, _ = weights["conv1.weight"].shape
            grid = round((weights["positional_embedding"].shape[0] - 1) ** 0.5)
            layers, heads = _count(weights, "transformer.resblocks."), kind.heads or width // HEAD_WIDTH
            tower = VisionTransformer(patch * grid, patch, width, layers, heads, weights["proj"].shape[1])
            _adapt(tower, weights, kind)
        else:
            width, feature_size = weights["layer1.0.conv1.weight"].shape[0], weights["attnpool.c_proj.weight"].shape[0]
            grid = round((weights["attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
            heads = kind.heads or width * 32 // HEAD_WIDTH
            counts = tuple(_count(weights, f"layer{i}.") for i in (1, 2, 3, 4))
            tower = ModifiedResNet(counts, feature_size, heads, grid * 32, width)
    return fill(tower, weights)


def _count(weights, prefix):
    return len({key.removeprefix(prefix).split(".")[0] for key in weights if key.startswith(prefix)})


def _adapt(tower, weights, kind):
    """Set the width of a tower's MLPs, their activation, and the epsilon of the layer norms."""
    for i, block in enumerate(tower.transformer.resblocks):
        hidden, width = weights[f"transformer.resblocks.{i}.mlp.c_fc.weight"].shape
        block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, hidden), nn.Linear(hidden, width)
        block.mlp.gelu = ACTIVATIONS[kind.activation]()
    for module in tower.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = kind.eps


def fill(module: Any, weights: Mapping[str, Tensor]) -> Any:
    """Assign weights to a module in fp32, without a copy of fp32 weights."""
    fp32 = {key: value.float() if value.is_floating_point() else value for key, value in weights.items()}
    nn.Module.load_state_dict(module, fp32, assign=True)
    return module.eval()
