"""A frozen CLIP of any source, and what is known of it."""

import contextlib
import hashlib
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from clip.model import ModifiedResNet, VisionTransformer
from torch import Tensor, nn

from common.errors import UserError
from trainers.modules.backbone_source import Facts
from trainers.modules.backbone_sources import source_of
from trainers.modules.finite import require_finite
from trainers.modules.text_tower import TextTower

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DEFAULT_ROOT = "~/.cache/clip"


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen CLIP, and all that the rest has to know of it.

    Attributes:
        model: in eval mode, without gradients: a `clip.model.CLIP`, or another that `Loaded` says more of.
        name: what it was asked for by: a name of one of SOURCES.
        precision: what it computes in: "fp32", "fp16", "bf16" or "amp".
        device: where it is.
        single_sha256: fingerprint of its weights before they were rounded to half precision; None: they were not.
        facts: what its weights do not say.
        where: the file or folder that it is from.
        files: all that it was read from, or could have been.
        notes: lines on what was taken where nothing said it.
    """

    model: Any
    name: str
    precision: str
    device: torch.device
    single_sha256: str | None = None
    facts: Facts = Facts()
    where: str = ""
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """Its name in folders and tables."""
        return backbone_label(self.name)

    @property
    def visual(self) -> Any:
        """Its image tower."""
        return self.model.visual

    @cached_property
    def text(self) -> TextTower:
        """Its text tower."""
        return TextTower.of(self.model, self.facts.tokenizer)

    @property
    def image_size(self) -> int:
        """Side of its images in pixels."""
        if self._has_openais_tower:
            return self.visual.input_resolution
        size = self.visual.image_size
        return size if isinstance(size, int) else size[0]

    @property
    def feature_size(self) -> int:
        """E, the size of its features."""
        return self.text.feature_size

    @cached_property
    def sha256(self) -> str:
        """Fingerprint of what it makes of images and texts in single precision: it is the same in every precision."""
        return self.single_sha256 or weights_fingerprint(self.model, self.facts.distinguishing)

    @cached_property
    def image_sha256(self) -> str:
        """Fingerprint of the image tower as it is used."""
        return weights_fingerprint(self.visual, self.facts.computes)

    @property
    def n_tower_weights(self) -> int:
        """Number of weights of both towers, without the vocabulary's: what the time of a step goes by."""
        return sum(weight.numel() for weight in self.model.parameters()) - self.text.token_embedding.weight.numel()

    @property
    def is_vit(self) -> bool:
        """Whether its image tower is a ViT that prompts can be put into."""
        return isinstance(self.visual, VisionTransformer)

    @property
    def _has_openais_tower(self) -> bool:
        """Whether its image tower is of OpenAI's classes, whose layer norms know of half precision."""
        return isinstance(self.visual, (VisionTransformer, ModifiedResNet))

    @property
    def logit_scale(self) -> Tensor:
        """What cosines are multiplied with."""
        return self.model.logit_scale.exp().float()

    @property
    def logit_bias(self) -> Tensor | None:
        """What is added to them then, the same for all classes; None: nothing."""
        bias = getattr(self.model, "logit_bias", None)
        return None if bias is None else bias.float()

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, H, H) images -> (B, E) features, not normalised."""
        if self._has_openais_tower:
            return self.visual(images.type(self.visual.conv1.weight.dtype))
        if self.precision not in HALVES:
            return self.visual(images)
        # Its layer norms do not know of half precision; autocast keeps them in single.
        with torch.autocast(self.device.type, HALVES[self.precision]):
            return self.visual(images)

    def autocast(self) -> contextlib.AbstractContextManager:
        """Autocast under precision amp, nothing otherwise."""
        return torch.autocast(self.device.type, enabled=self.precision == "amp")


def load_backbone(
    name: str, device: str | torch.device = "cpu", precision: str = "fp32", root: str | PathLike = DEFAULT_ROOT
) -> Backbone:
    """Load a frozen CLIP of any source and architecture.

    Args:
        name: of one of SOURCES: an OpenAI name ("RN50", "ViT-B/16", ...), a file in OpenAI's format, ...
        device: where the model is put.
        precision: "fp32"; "fp16" or "bf16" (matrices and convolutions in that type, layer norms in single precision, as
            OpenAI's); "amp" (weights in single precision, for use under autocast). Half precision and amp need a
            GPU: on a CPU they become fp32, with one line that says so.
        root: folder for downloads.

    Raises:
        UserError: unknown name or precision, a file that is missing or no CLIP, a failed download, a CLIP that cannot
            be prompted, weights that are not finite.
    """
    backbone = read_backbone(name, device, precision, root)
    if backbone.device.type == "cpu":
        # Convolutions on a CPU are up to twice as fast in this layout; the numbers are the same.
        backbone.visual.to(memory_format=torch.channels_last)
    backbone.model.to(backbone.device)
    cause = "The file is damaged, or was saved from a training that broke: get it again"
    if backbone.single_sha256:
        cause += f"; or its weights are too large for {precision}: set PREC to fp32"
    require_finite(backbone.model.state_dict(), f"Backbone {name} ({backbone.where})", f"{cause}.")
    _ = backbone.text  # or the error that says why its tokenizer does not fit
    return backbone


def read_backbone(name: str, device: str | torch.device, precision: str, root: str | PathLike) -> Backbone:
    """What `load_backbone` gives, but for the model, which stays in main memory: for its fingerprints."""
    check_precision(precision)
    check_backbone(name)
    loaded = source_of(name).load(name, root)
    model, facts, device = loaded.model, loaded.facts, torch.device(device)
    precision, single_sha256 = effective_precision(precision, device), None
    if precision in HALVES:
        single_sha256 = weights_fingerprint(model, facts.distinguishing)
        _convert(model, HALVES[precision])
    model.eval().requires_grad_(False)
    return Backbone(model, str(name), precision, device, single_sha256, facts, loaded.where, loaded.files, loaded.notes)


def load_clip(
    name: str, device: str | torch.device = "cpu", precision: str = "fp32", root: str | PathLike = DEFAULT_ROOT
) -> Any:
    """The model alone of `load_backbone`: of OpenAI's names and files a `clip.model.CLIP`."""
    return load_backbone(name, device, precision, root).model


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


def backbone_label(name: str) -> str:
    """The name by which folders and tables call a backbone: "ViT-B/16" -> "ViT-B16", "x/tiny.pt" -> "tiny"."""
    return source_of(name).label(name)


def check_backbone(name: str) -> None:
    """Raise UserError where there is no such backbone, as far as that can be told without reading weights."""
    source_of(name).check(name)


def has_vit(name: str) -> bool:
    """Whether a backbone's image tower is a ViT that prompts can be put into.

    Raises:
        UserError: the backbone cannot be used.
    """
    return source_of(name).has_vit(name)


def weights_fingerprint(module: nn.Module, more: str = "") -> str:
    """SHA-256 (hex) of a module's parameters and buffers, names, shapes, types and values, and of `more`."""
    digest = hashlib.sha256(more.encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _convert(model, dtype):
    """Matrices and convolutions to a half-precision type, as OpenAI's convert_weights does for fp16."""
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear, nn.MultiheadAttention)):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
    for owner, name in ((getattr(model, "text", model), "text_projection"), (model.visual, "proj")):
        if isinstance(getattr(owner, name, None), nn.Parameter):
            getattr(owner, name).data = getattr(owner, name).data.to(dtype)
