"""OpenAI's CLIPs by name, and files in their format."""

import difflib
import pickle
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from clip import clip as openai_clip
from clip.model import CLIP, VisionTransformer
from torch import Tensor

from common.errors import UserError
from trainers.modules.backbone_source import Facts, Loaded, Source
from trainers.modules.clip_model import build_clip
from trainers.modules.clip_weights import MEND, clip_weights
from trainers.modules.hf_hub import HUB_ID, OPEN_CLIP_CONFIG
from trainers.modules.tensor_files import read_tensors
from trainers.modules.torchscript_weights import is_torchscript, torchscript_state_dict

# Widths of OpenCLIP's image towers whose heads are not as wide as OpenAI's, and what has them.
OPENCLIPS = {1280: "ViT-H", 1408: "ViT-g", 1664: "ViT-bigG"}
# What a checkpoint of OpenCLIP's training has in it.
OPENCLIPS_TRAINING = {"epoch", "name", "state_dict"}


class OpenAI(Source):
    """OpenAI's names, downloaded with a progress bar, their SHA-256 checked, and cached; or a file: a state_dict saved
    by torch.save (see `clip_weights`), or OpenAI's TorchScript archive.
    """

    prefix = ""
    accepts = "one of OpenAI's names or a file"

    def label(self, name: str) -> str:
        return name.replace("/", "") if name in openai_clip._MODELS else Path(name).stem

    def check(self, name: str) -> None:
        names = openai_clip._MODELS
        if name not in names and not Path(name).expanduser().is_file():
            raise UserError(
                f"Backbone {name!r} is neither a file nor one of OpenAI's names: {', '.join(names)}. {_others(name)}"
            )

        folder = Path(name).expanduser().parent
        if name not in names and (folder / OPEN_CLIP_CONFIG).is_file():
            raise UserError(
                f"Backbone {name}: {OPEN_CLIP_CONFIG} in its folder shows a model of OpenCLIP. Name "
                f"open_clip:local-dir:{folder}."
            )

    def load(self, name: str, root: str | PathLike) -> Loaded:
        path = clip_file(name, root)
        weights = read_clip_weights(path)
        if not is_torchscript(path):
            _refuse_openclips(weights, path)
        try:
            model = build_clip(weights)
        except (KeyError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError, IndexError) as error:
            # PyTorch names the entries, each kind in a line of its own under a title.
            lines = [line.strip() for line in str(error).splitlines()]
            reason = " ".join(lines[1:] if isinstance(error, RuntimeError) and len(lines) > 1 else lines)
            if isinstance(error, KeyError):
                reason = f"it has no {error.args[0]}"
            reason = reason[:400].removesuffix(".") or "its sizes do not go together"
            raise UserError(f"Backbone file {path} is no CLIP in OpenAI's format: {reason}. {MEND}") from error
        return Loaded(model, Facts(), str(path), (path,), () if is_torchscript(path) else (_computed_as(model, path),))

    def has_vit(self, name: str) -> bool:
        if name in openai_clip._MODELS:
            return name.startswith("ViT")
        self.check(name)
        return "visual.proj" in read_clip_weights(Path(name).expanduser())

    def is_here(self, name: str, root: str | PathLike) -> bool:
        url = openai_clip._MODELS.get(name)
        path = Path(root, url.rpartition("/")[2]) if url else Path(name)
        return path.expanduser().is_file()

    def resolved(self, name: str) -> str:
        return str(Path(name).resolve()) if Path(name).is_file() else name


def _others(name: str) -> str:
    """A sentence on what else a backbone may be, and on what an unknown name is most likely meant for."""
    from trainers.modules.backbone_sources import SOURCES  # of which this is one

    accepted = f"Accepted besides: {'; '.join(source.accepts for source in SOURCES if source.prefix)}."
    prefixes = [source.prefix for source in SOURCES if source.prefix]
    begins, colon, rest = name.partition(":")
    if f"{begins}:" in ("local-dir:", "hf-hub:"):
        return f"{accepted} Is open_clip:{name} meant?"
    near = difflib.get_close_matches(f"{begins.lower()}:", prefixes, n=1) if colon else []
    if near:
        return f"{accepted} Is {near[0]}{rest} meant?"
    if Path(name).expanduser().is_dir() or HUB_ID.fullmatch(name):
        return f"{accepted} Is hf:{name} meant?"
    return accepted


def _computed_as(model: CLIP, path: Path) -> str:
    """A line on what weights do not say of how they compute."""
    towers = [model.visual, model] if isinstance(model.visual, VisionTransformer) else [model]
    heads = " and ".join(str(tower.transformer.resblocks[0].attn.num_heads) for tower in towers)
    return (
        f"Note: {path} is computed as OpenAI's: QuickGELU, {heads} heads; weights of OpenCLIP go by "
        f"open_clip:<architecture>@{path}."
    )


def _refuse_openclips(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for sizes of an image tower that only OpenCLIP has, with other heads than OpenAI's would."""
    width = weights["visual.conv1.weight"].shape[0]
    if "visual.proj" in weights and (known := OPENCLIPS.get(width)):
        raise UserError(
            f"Backbone file {path} has an image tower of width {width}, which OpenAI has not published; OpenCLIP's "
            f"{known} have it, with heads and an activation that this format does not say. Name the architecture: "
            f"open_clip:<architecture>@{path}."
        )


def clip_file(name: str, root: str | PathLike) -> Path:
    """The file that holds a backbone, downloaded first if it is an OpenAI name that is not cached yet.

    Raises:
        UserError: the download failed.
    """
    names = openai_clip._MODELS
    if name not in names:
        return Path(name).expanduser()
    folder = Path(root).expanduser()
    try:
        return Path(openai_clip._download(names[name], str(folder)))
    except (OSError, RuntimeError, TypeError) as error:
        raise UserError(
            f"Could not download CLIP {name} from {names[name]} to {folder}: {error}. Check the "
            "network and run the command again, or give the path of a file you already have as the backbone."
        ) from error


def read_clip_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file in OpenAI's format, by their names, and no code of it is run.

    Raises:
        UserError: it is something else.
    """
    content = read_weights(path, MEND)
    if isinstance(content, Mapping) and content.keys() >= OPENCLIPS_TRAINING:
        raise UserError(
            f"Backbone file {path} is a checkpoint of OpenCLIP's training ({content['name']}), which does not say how "
            f"it computes. Name its architecture: open_clip:<architecture>@{path} (-quickgelu at the architecture's "
            "end if it was trained so)."
        )
    return clip_weights(content, path)


def read_weights(path: Path, mend: str) -> object:
    """What a file of weights holds: one of torch.save, or a TorchScript archive.

    Args:
        mend: a sentence on what is accepted.

    Raises:
        UserError: it is damaged, or something else.
    """
    if not is_torchscript(path):
        return read_tensors(path, "Backbone file", mend)
    try:
        return torchscript_state_dict(path)
    except pickle.UnpicklingError as error:
        raise UserError(f"Backbone file {path} is refused: {error}, and might run code. {mend}") from error
    except Exception as error:  # a damaged pickle can end in any kind of exception
        raise UserError(f"Backbone file {path} is a damaged TorchScript archive ({error!r}). {mend}") from error
