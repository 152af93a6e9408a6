"""A frozen CLIP, by OpenAI name or from a file, and what is known of it."""

import contextlib
import hashlib
import pickle
import warnings
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

import torch
from clip import clip as openai_clip
from clip.model import CLIP, VisionTransformer, build_model
from torch import Tensor, nn

from common.errors import UserError
from common.kept import Kept
from trainers.modules.clip_weights import MEND, clip_weights
from trainers.modules.finite import require_finite
from trainers.modules.tensor_files import read_tensors
from trainers.modules.torchscript_weights import is_torchscript, torchscript_state_dict

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
DEFAULT_ROOT = "~/.cache/clip"
# Mean and standard deviation of the pixels, by channel, that OpenAI trained with.
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)


# A process has room for one.
_KEPT: "Kept[tuple[Backbone, list]]" = Kept(at_most=1)


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP, and all that the rest has to know of it.

    Attributes:
        model: `clip.model.CLIP` in eval mode, without gradients.
        name: what it was asked for by: an OpenAI name, or a file.
        precision: what it computes in: "fp32", "fp16", "bf16" or "amp".
        device: where it is.
        single_sha256: fingerprint of its weights before they were rounded to half precision; None: they were not.
        pixel_mean, pixel_std: by channel, that its images are normalised with.
    """

    model: CLIP
    name: str
    precision: str
    device: torch.device
    single_sha256: str | None = None
    pixel_mean: tuple[float, ...] = PIXEL_MEAN
    pixel_std: tuple[float, ...] = PIXEL_STD

    @property
    def label(self) -> str:
        """Its name in folders and tables."""
        return backbone_label(self.name)

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        return self.model.visual.input_resolution

    @property
    def feature_size(self) -> int:
        """E, the size of its features."""
        return self.model.text_projection.shape[1]

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of its weights in single precision: a backbone is the same one in every precision."""
        return self.single_sha256 or weights_fingerprint(self.model)

    @cached_property
    def image_sha256(self) -> str:
        """Fingerprint of the image tower's weights as they are used."""
        return weights_fingerprint(self.model.visual)

    @property
    def n_tower_weights(self) -> int:
        """Number of weights of both towers, without the vocabulary's: what the time of a step goes by."""
        vocabulary = self.model.token_embedding.weight
        return sum(weight.numel() for weight in self.model.parameters()) - vocabulary.numel()

    @property
    def is_vit(self) -> bool:
        """Whether its image tower is a ViT."""
        return isinstance(self.model.visual, VisionTransformer)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Autocast under precision amp, nothing otherwise."""
        return torch.autocast(self.device.type, enabled=self.precision == "amp")


def load_backbone(
    name_or_path: str, device: str | torch.device = "cpu", precision: str = "fp32", root: str | PathLike = DEFAULT_ROOT
) -> Backbone:
    """Load a frozen CLIP of any architecture.

    Args:
        name_or_path: an OpenAI name ("RN50", "ViT-B/16", ...; downloaded with a progress bar, its SHA-256 checked,
            cached under root), or a file: a state_dict saved by torch.save (see `clip_weights`), or OpenAI's
            TorchScript archive.
        device: where the model is put.
        precision: "fp32"; "fp16" or "bf16" (matrices and convolutions in that type, layer norms in single precision, as
            OpenAI's); "amp" (weights in single precision, for use under autocast). Half precision and amp need a
            GPU: on a CPU they become fp32, with one line that says so.
        root: folder for downloads.

    Raises:
        UserError: unknown name or precision, a file that is missing or no CLIP, a failed download, weights that are not
            finite.
    """
    backbone = read_backbone(name_or_path, device, precision, root)
    if backbone.device.type == "cpu":
        # Convolutions on a CPU are up to twice as fast in this layout; the numbers are the same.
        backbone.model.visual.to(memory_format=torch.channels_last)
    backbone.model.to(backbone.device)
    cause = "The file is damaged, or was saved from a training that broke: get it again"
    if backbone.single_sha256:
        cause += f"; or its weights are too large for {precision}: set PREC to fp32"
    path = clip_file(name_or_path, root)
    require_finite(backbone.model.state_dict(), f"Backbone {name_or_path} ({path})", f"{cause}.")
    return backbone


def kept_backbone(name_or_path: str, device: str | torch.device, precision: str, root: str | PathLike) -> Backbone:
    """As `load_backbone`; a process that does several runs keeps the last one, for runs with the same."""
    path = clip_file(name_or_path, root)
    status = path.stat()
    file = str(path.resolve()), status.st_size, status.st_mtime_ns
    made: list[Backbone] = []

    def make() -> tuple[Backbone, list]:
        made.append(load_backbone(name_or_path, device, precision, root))
        return made[0], _state_of(made[0].model)

    key = (name_or_path, *file, str(device), precision)
    backbone, _ = _KEPT.get(key, make, lambda kept: _state_of(kept[0].model) == kept[1])
    if not made:
        effective_precision(precision, device)  # which says in each log what becomes of it
    return backbone


def _state_of(model: nn.Module) -> list[tuple]:
    """What shows whether a run has changed a model, in place or by what hangs on it."""
    modules = [(name, module.training, len(module._forward_hooks)) for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return [*modules, *((name, id(tensor), tensor._version, tensor.requires_grad) for name, tensor in tensors)]


def read_backbone(name_or_path: str, device: str | torch.device, precision: str, root: str | PathLike) -> Backbone:
    """What `load_backbone` gives, but for the model, which stays in main memory: for its fingerprints."""
    check_precision(precision)
    path = clip_file(name_or_path, root)
    model, device = _build(_read_state_dict(path), path), torch.device(device)
    precision, single_sha256 = effective_precision(precision, device), None
    if precision in ("fp16", "bf16"):
        single_sha256 = weights_fingerprint(model)
        _convert(model, torch.float16 if precision == "fp16" else torch.bfloat16)
    model.eval().requires_grad_(False)
    return Backbone(model, str(name_or_path), precision, device, single_sha256)


def load_clip(
    name_or_path: str, device: str | torch.device = "cpu", precision: str = "fp32", root: str | PathLike = DEFAULT_ROOT
) -> CLIP:
    """The model alone of `load_backbone`, a `clip.model.CLIP` in eval mode, without gradients."""
    return load_backbone(name_or_path, device, precision, root).model


def check_precision(precision: str) -> None:
    """Raise UserError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise UserError(f"Precision (PREC) is {precision!r}; accepted: {', '.join(PRECISIONS)}.")


def effective_precision(precision: str, device: str | torch.device) -> str:
    """The precision that can be had on `device`: anything but fp32 becomes fp32 on a CPU, with a line that says so."""
    if precision != "fp32" and torch.device(device).type == "cpu":
        print(f"Precision {precision} needs a GPU; on this CPU the computation runs in fp32.")
        return "fp32"
    return precision


def backbone_label(name_or_path: str) -> str:
    """The name by which folders and tables call a backbone: "ViT-B/16" -> "ViT-B16", "x/tiny.pt" -> "tiny"."""
    if name_or_path in openai_clip._MODELS:
        return name_or_path.replace("/", "")
    return Path(name_or_path).stem


def clip_file(name_or_path: str, root: str | PathLike = DEFAULT_ROOT) -> Path:
    """The file that holds a backbone, downloaded first if it is an OpenAI name that is not cached yet.

    Raises:
        UserError: neither a name nor a file, or the download failed.
    """
    check_backbone(name_or_path)
    names = openai_clip._MODELS
    if name_or_path in names:
        folder = Path(root).expanduser()
        try:
            return Path(openai_clip._download(names[name_or_path], str(folder)))
        except (OSError, RuntimeError, TypeError) as error:
            raise UserError(
                f"Could not download CLIP {name_or_path} from {names[name_or_path]} to {folder}: {error}. Check the "
                "network and run the command again, or give the path of a file you already have as the backbone."
            ) from error
    return Path(name_or_path).expanduser()


def check_backbone(name_or_path: str) -> None:
    """Raise UserError unless a backbone is one of OpenAI's names or a file."""
    names = openai_clip._MODELS
    if name_or_path not in names and not Path(name_or_path).expanduser().is_file():
        raise UserError(f"Backbone {name_or_path!r} is neither a file nor one of OpenAI's names: {', '.join(names)}.")


def has_vit(name_or_path: str) -> bool:
    """Whether a backbone's image tower is a ViT: by OpenAI's name, or by what is in its file.

    Raises:
        UserError: the file cannot be used.
    """
    if name_or_path in openai_clip._MODELS:
        return name_or_path.startswith("ViT")
    return "visual.proj" in _read_state_dict(clip_file(name_or_path))


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 (hex) of a module's parameters and buffers: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_state_dict(path):
    if is_torchscript(path):
        try:
            state_dict = torchscript_state_dict(path)
        except pickle.UnpicklingError as error:
            raise UserError(f"Backbone file {path} is refused: {error}, and might run code. {MEND}") from error
        except Exception as error:  # a damaged pickle can end in any kind of exception
            raise UserError(f"Backbone file {path} is a damaged TorchScript archive ({error!r}). {MEND}") from error
    else:
        state_dict = read_tensors(path, "Backbone file", MEND)
    return clip_weights(state_dict, path)


def _build(state_dict: dict[str, Tensor], path: Path) -> nn.Module:
    try:
        return _build_in_single_precision(state_dict)
    except (KeyError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError, IndexError) as error:
        # PyTorch names the entries, each kind in a line of its own under a title.
        lines = [line.strip() for line in str(error).splitlines()]
        reason = " ".join(lines[1:] if isinstance(error, RuntimeError) and len(lines) > 1 else lines)
        if isinstance(error, KeyError):
            reason = f"it has no {error.args[0]}"
        reason = reason[:400].removesuffix(".") or "its sizes do not go together"
        raise UserError(f"Backbone file {path} is no CLIP in OpenAI's format: {reason}. {MEND}") from error


def _build_in_single_precision(state_dict):
    state_dict = {key: value.float() if value.is_floating_point() else value for key, value in state_dict.items()}
    # On the meta device nothing is initialised, which takes most of the time that a large CLIP takes to build; and
    # the weights are not rounded to half precision, as build_model would have it.
    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is a no-op", category=UserWarning)
        model = build_model(dict(state_dict)).float()
    model.load_state_dict(state_dict, assign=True)
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return model


def _convert(model, dtype):
    """Matrices and convolutions to a half-precision type, as OpenAI's convert_weights does for fp16."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    model.text_projection.data = model.text_projection.data.to(dtype)
    if isinstance(getattr(model.visual, "proj", None), nn.Parameter):
        model.visual.proj.data = model.visual.proj.data.to(dtype)
