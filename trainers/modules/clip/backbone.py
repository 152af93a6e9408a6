"""A frozen CLIP from any source, with everything that the methods need to know of it."""

import contextlib
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from os import PathLike
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from clip import available_models
from clip.model import ModifiedResNet, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from trainers.modules.clip.text_tower import TextTower, architecture_of
from trainers.modules.clip.tokenizer import CLIP_TOKENIZER, LibraryTokenizer, Tokenizer
from trainers.modules.tensor_files import require_finite

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class BackboneInfo:
    """Facts of a CLIP that are not in its weights; the defaults are OpenAI's.

    Attributes:
        pixel_mean, pixel_std: for each channel, of pixels between 0 and 1.
        interpolation: in the words of INPUT.INTERPOLATION.
        resize_mode: "shortest" (resize the shorter side, crop), "longest" (resize the longer side, pad) or "squash".
        image_architecture: how an image tower computes that is not one of OpenAI's ViTs.
        files: the files that the CLIP was read from.
    """

    family: str = "OpenAI"
    pixel_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    pixel_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    tokenizer: Tokenizer = CLIP_TOKENIZER
    image_architecture: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How images are resized and normalised."""
        keys = ("pixel_mean", "pixel_std", "interpolation", "resize_mode", "fill_color")
        return {key: getattr(self, key) for key in keys}


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP.

    Attributes:
        model: in eval mode, without gradients: a `clip.model.CLIP`, or a model of open_clip.
        fp32_sha256: `sha256` before the weights were rounded; None: they were not.
    """

    model: Any
    name: str
    precision: str
    device: torch.device
    info: BackboneInfo = BackboneInfo()
    fp32_sha256: str | None = None

    @property
    def visual(self) -> Any:
        return self.model.visual

    @cached_property
    def text(self) -> TextTower:
        return TextTower.of(self.model, self.info.tokenizer)

    @property
    def image_size(self) -> int:
        """Side of an image in pixels."""
        size = getattr(self.visual, "input_resolution", None) or self.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def feature_size(self) -> int:
        """E, the size of a feature."""
        return self.text.feature_size

    @cached_property
    def sha256(self) -> str:
        """Hash of everything that features depend on; equal in every precision and file format."""
        if self.fp32_sha256:
            return self.fp32_sha256
        image = architecture_of(self.visual.transformer.resblocks) if self.is_vit else self.info.image_architecture
        tokens = self.info.tokenizer.sha256() if isinstance(self.info.tokenizer, LibraryTokenizer) else ""
        digest = hashlib.sha256(repr((image, self.text.architecture, self.info.preprocessing, tokens)).encode())
        # open_clip puts some text towers into a module of their own.
        weights = {name.removeprefix("text."): weight for name, weight in self.model.state_dict().items()}
        for name, weight in sorted(weights.items()):
            digest.update(f"{name} {tuple(weight.shape)} {weight.dtype};".encode())
            digest.update(weight.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @property
    def n_tower_weights(self) -> int:
        """Number of weights without the token embedding, which the time of a step depends on."""
        return sum(weight.numel() for weight in self.model.parameters()) - self.text.token_embedding.weight.numel()

    @property
    def is_vit(self) -> bool:
        """Whether the image tower is a ViT that can have prompts (see `PromptedViT`)."""
        return isinstance(self.visual, VisionTransformer)

    @property
    def logit_scale(self) -> Tensor:
        """Factor of the cosines."""
        return self.model.logit_scale.exp().float()

    @property
    def logit_bias(self) -> Tensor | None:
        """Term that is added to all logits, as in SigLIP."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.float()

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) images -> (B, E) features, not normalised."""
        if isinstance(self.visual, (VisionTransformer, ModifiedResNet)):
            return self.visual(images.type(self.visual.conv1.weight.dtype))
        # Only OpenAI's layer norms compute in fp32 by themselves.
        half = HALVES.get(self.precision)
        with torch.autocast(self.device.type, half) if half else contextlib.nullcontext():
            return self.visual(images)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Autocast under precision amp."""
        return torch.autocast(self.device.type, enabled=self.precision == "amp")


def load_backbone(
    name: str, device: str | torch.device = "cpu", precision: str = "fp32", root: str | PathLike = "~/.cache/clip"
) -> Backbone:
    """Load a frozen CLIP.

    Args:
        name: "RN50", "ViT-B/16", ..., a file in OpenAI's format, open_clip:... or hf:... (see docs/backbones.md).
        precision: "fp16" and "bf16" convert matrices and convolutions; "amp" is for use under autocast. On a CPU all
            become fp32, and a line says so.
        root: folder for downloads of OpenAI's models.
    """
    check_backbone(name)
    device, precision = torch.device(device), effective_precision(precision, device)
    with torch.random.fork_rng(devices=[]):  # libraries initialise models at random before they load weights
        model, info = _source(name).load(name, root)
    model.eval().requires_grad_(False)
    backbone = Backbone(model, name, precision, device, info)
    _ = backbone.text  # raises if text tower or tokenizer do not fit
    advice = "Get the weights again: the file is damaged, or training diverged."
    if precision in HALVES:
        backbone = replace(backbone, fp32_sha256=backbone.sha256)
        to_half(model, HALVES[precision])
        advice += f" Or they are too large for {precision}: set PREC fp32."
    if device.type == "cpu":
        # Convolutions on a CPU are up to twice as fast in this layout; the numbers are the same.
        backbone.visual.to(memory_format=torch.channels_last)
    model.to(device)
    require_finite(model.state_dict(), f"Backbone {name}", advice)
    return backbone


_cached: dict[tuple, tuple[Backbone, list]] = {}  # the last backbone of this process


def cached_backbone(name: str, device: str | torch.device, precision: str, root: str | PathLike) -> Backbone:
    """As `load_backbone`, but runs one after another load a CLIP once, unless its files or weights have changed."""
    key = name, str(device), precision, str(root)
    backbone, state = _cached.get(key, (None, []))
    if backbone is not None and state == _state(backbone):
        effective_precision(precision, device)  # prints its line in each log
        return backbone
    _cached.clear()  # before the next one takes memory
    backbone = load_backbone(name, device, precision, root)
    _cached[key] = backbone, _state(backbone)
    return backbone


def _state(backbone: Backbone) -> list:
    """Size and time of the files, and the versions of the weights, which count changes in place."""
    stats = [path.stat() for path in backbone.info.files if path.is_file()]
    weights = [(id(weight), weight._version, weight.requires_grad) for weight in backbone.model.parameters()]
    return [*((stat.st_size, stat.st_mtime_ns) for stat in stats), *weights]


def effective_precision(precision: str, device: str | torch.device) -> str:
    """The precision on a device: on a CPU it is fp32, and a line says so."""
    if precision != "fp32" and torch.device(device).type == "cpu":
        print(f"Precision {precision} needs a GPU; on this CPU the computation runs in fp32.")
        return "fp32"
    return precision


def backbone_label(name: str) -> str:
    """Short name for folders and tables: "ViT-B/16" -> "ViT-B16", "x/tiny.pt" -> "tiny"."""
    front, path = _front_and_path(name)
    if name in available_models():
        return name.replace("/", "")
    is_file = path.is_file() or path.suffix in (".pt", ".pth", ".bin", ".safetensors")
    short = path.stem if is_file else path.resolve().name if path.is_dir() else str(path)
    return (front.removeprefix("open_clip:").replace(":", "-") + short).replace("/", "-")


def check_backbone(name: str) -> None:
    """Raise UserError if there is no such backbone, as far as one can tell without reading weights."""
    _source(name).check(name)


def has_vit(name: str) -> bool:
    """Whether a backbone's image tower is a ViT that can have prompts; some names need their weights for that."""
    check_backbone(name)
    is_known = name in available_models() or name.startswith("hf:")
    return name.startswith(("ViT", "hf:")) if is_known else load_backbone(name).is_vit


def absolute_name(name: str) -> str:
    """The name with an absolute path, for processes with another working directory."""
    front, path = _front_and_path(name)
    return f"{front}{path.resolve()}" if path.exists() else name


def _front_and_path(name: str) -> tuple[str, Path]:
    """Split a name into the source, with an architecture, and a path, tag or id."""
    front = re.findall("^(?:open_clip:(?:local-dir:|hf-hub:|[^@]*@)|hf:|)", name)[0]
    return front, Path(name.removeprefix(front)).expanduser()


def _source(name: str) -> ModuleType:
    """The module that loads backbones with such a name."""
    module = {"open_clip": "open_clip", "hf": "hugging_face"}.get(name.partition(":")[0], "openai")
    return import_module(f"trainers.modules.clip.{module}")


@contextlib.contextmanager
def library_errors(name: str, package: str, task: str = "load it") -> Iterator[None]:
    """Turn errors of a package into a UserError: a line with the backbone's name, then the package's own words."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        missing = error.name if error.name and error.name != "open_clip" else package
        raise UserError(f"Backbone {name} needs the package {missing}: pip install {missing}\n{error}") from error
    except Exception as error:  # of the package, the network, the disk
        raise UserError(f"Backbone {name}: {package} cannot {task}.\n{(str(error) or repr(error))[:1500]}") from error


def to_half(model: Any, dtype: torch.dtype) -> None:
    """Convert matrices and convolutions to half precision, as OpenAI's convert_weights does for fp16."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    for owner, name in ((getattr(model, "text", model), "text_projection"), (model.visual, "proj")):
        if isinstance(getattr(owner, name, None), nn.Parameter):
            getattr(owner, name).data = getattr(owner, name).data.to(dtype)
