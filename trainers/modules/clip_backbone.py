"""A frozen CLIP, by OpenAI name or from a file."""

import hashlib
import pickle
import warnings
from pathlib import Path

import torch
from clip import clip as openai_clip
from clip.model import build_model
from torch import nn

from common.errors import UserError
from trainers.modules.tensor_files import read_tensors
from trainers.modules.torchscript_weights import is_torchscript, torchscript_state_dict

PRECISIONS = ("fp32", "fp16", "bf16", "amp")
DEFAULT_ROOT = "~/.cache/clip"
# What OpenAI's archives carry beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
MEND = "Accepted: a state_dict of clip.model.CLIP saved by torch.save, or OpenAI's TorchScript archive."


def load_clip(name_or_path, device="cpu", precision="fp32", root=DEFAULT_ROOT):
    """Load a frozen CLIP of any architecture.

    Args:
        name_or_path: an OpenAI name ("RN50", "ViT-B/16", ...; downloaded with a progress bar, its SHA-256 checked,
            cached under root), or a file: a state_dict saved by torch.save, or OpenAI's TorchScript archive.
        device: where the model is put.
        precision: "fp32"; "fp16" or "bf16" (matrices and convolutions in that type, layer norms in single precision, as
            OpenAI's); "amp" (weights in single precision, for use under autocast). Half precision and amp need a
            GPU: on a CPU they become fp32, with one line that says so.
        root: folder for downloads.

    Returns:
        clip.model.CLIP in eval mode, without gradients.

    Raises:
        UserError: unknown name or precision, a file that is missing or no CLIP, a failed download.
    """
    check_precision(precision)
    path = clip_file(name_or_path, root)
    state_dict = _read_state_dict(path)
    return _build(state_dict, path, torch.device(device), precision)


def check_precision(precision):
    """Raise UserError unless `precision` is one of PRECISIONS."""
    if precision not in PRECISIONS:
        raise UserError(f"Precision (PREC) is {precision!r}; accepted: {', '.join(PRECISIONS)}.")


def effective_precision(precision, device):
    """The precision that can be had on `device`: anything but fp32 becomes fp32 on a CPU, with a line that says so."""
    if precision != "fp32" and torch.device(device).type == "cpu":
        print(f"Precision {precision} needs a GPU; on this CPU the computation runs in fp32.")
        return "fp32"
    return precision


def backbone_label(name_or_path):
    """The name by which folders and tables call a backbone: "ViT-B/16" -> "ViT-B16", "x/tiny.pt" -> "tiny"."""
    if name_or_path in openai_clip._MODELS:
        return name_or_path.replace("/", "")
    return Path(name_or_path).stem


def clip_file(name_or_path, root=DEFAULT_ROOT):
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


def check_backbone(name_or_path):
    """Raise UserError unless a backbone is one of OpenAI's names or a file."""
    names = openai_clip._MODELS
    if name_or_path not in names and not Path(name_or_path).expanduser().is_file():
        raise UserError(f"Backbone {name_or_path!r} is neither a file nor one of OpenAI's names: {', '.join(names)}.")


def weights_fingerprint(module):
    """SHA-256 (hex) of a module's parameters and buffers: names, shapes, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def n_tower_weights(clip_model):
    """Number of weights of both towers, without the vocabulary's: what the time of a step goes by."""
    vocabulary = clip_model.token_embedding.weight
    return sum(weight.numel() for weight in clip_model.parameters()) - vocabulary.numel()


def clip_sha256(clip_model):
    """Fingerprint of a CLIP's weights in single precision, computed once for each model that `load_clip` made."""
    if not hasattr(clip_model, "sha256"):
        clip_model.sha256 = weights_fingerprint(clip_model)
    return clip_model.sha256


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
    if not isinstance(state_dict, dict):
        raise UserError(f"Backbone file {path} holds a {type(state_dict).__name__}. {MEND}")
    return {key: value for key, value in state_dict.items() if str(key).rpartition(".")[2] not in NOT_WEIGHTS}


def _build(state_dict, path, device, precision):
    try:
        model = _build_in_single_precision(state_dict)
    except (KeyError, AttributeError, RuntimeError, AssertionError, ZeroDivisionError, IndexError) as error:
        raise UserError(
            f"Backbone file {path} is no CLIP in OpenAI's format ({len(state_dict)} entries; {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'incomplete'}). {MEND}"
        ) from error
    precision = effective_precision(precision, device)
    if precision in ("fp16", "bf16"):
        # Before the conversion, so that a backbone is the same one in every precision.
        clip_sha256(model)
        _convert(model, torch.float16 if precision == "fp16" else torch.bfloat16)
    if device.type == "cpu":
        # Convolutions on a CPU are up to twice as fast in this layout; the numbers are the same.
        model.visual.to(memory_format=torch.channels_last)
    return model.to(device).eval().requires_grad_(False)


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
