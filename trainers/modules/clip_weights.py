"""CLIP's weights among what a file holds: bare, wrapped by a training loop, or under other names, which is said."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from common.errors import UserError, some

# Under which training loops put weights beside optimiser and epoch, and what they put before their names.
WRAPPERS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "model.", "clip.")
# What OpenAI's archives carry beside the weights.
NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")
MEND = (
    "Accepted: a state_dict of clip.model.CLIP saved by torch.save or as safetensors, or OpenAI's TorchScript archive."
)
FROM_THE_HUB = "Models of the hub go by their id: --backbone hf:openai/clip-vit-base-patch16."
# An entry that every CLIP has, in OpenAI's layout at the top.
MARK = "token_embedding.weight"
# Entries that a CLIP is known by, of either image tower.
OF_EVERY_CLIP = (
    *(MARK, "positional_embedding", "ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"),
    "visual.conv1.weight",
)
OF_VIT = ("visual.positional_embedding", "visual.proj")
OF_RESNET = ("visual.layer1.0.conv1.weight", "visual.attnpool.positional_embedding")
AT_MOST = 3  # names that a message gives


def clip_weights(content: object, path: object) -> dict[str, Tensor]:
    """The weights of a CLIP by OpenAI's names.

    They may lie under one of WRAPPERS, and all their names may begin with some of PREFIXES.

    Args:
        content: what the file holds.
        path: of the file, for messages.

    Returns:
        the tensors, without what OpenAI's archives carry beside the weights.

    Raises:
        UserError: they lie elsewhere, are in Hugging Face's layout, are not whole, or something else is among them.
    """
    where = f"Backbone file {path}"
    content = unwrapped(content, where)
    entries = {str(key): value for key, value in content.items() if str(key).rpartition(".")[2] not in NOT_WEIGHTS}
    if any(key.rpartition("vision_model.")[2].startswith("embeddings.patch_embedding") for key in entries):
        raise UserError(f"{where} {_what_to_do_with_hugging_face(path)}")
    prefix = next((key.removesuffix(MARK) for key in entries if key.endswith(MARK)), "")
    others = [key for key in entries if not key.startswith(prefix)]
    if _without_prefixes(prefix) or others:
        beside = f" beside {len(others)} other entries ({some(others, AT_MOST)})" if others else ""
        raise UserError(
            f"{where} has CLIP's weights under names that begin with {prefix!r}{beside}. Save those alone, by their "
            f"names without it. {MEND}"
        )
    weights = {key.removeprefix(prefix): value for key, value in entries.items()}
    strange = [key for key, value in weights.items() if not isinstance(value, Tensor)]
    if strange:
        raise UserError(f"{where} holds entries that are no tensors: {some(strange, AT_MOST)}. {MEND}")
    tower = OF_VIT if any(key in weights for key in OF_VIT) else OF_RESNET
    missing = [key for key in (*OF_EVERY_CLIP, *tower) if key not in weights]
    if missing:
        there = f"of {len(weights):,} entries ({some(weights, AT_MOST)}) none is" if weights else "it has none of"
        raise UserError(f"{where} is no CLIP in OpenAI's format: {there} {some(missing, AT_MOST)}. {MEND}")
    return weights


def unwrapped(content: Any, where: str, mend: str = MEND) -> Mapping:
    """The innermost dict under WRAPPERS.

    Args:
        content: what a file holds.
        where: the file, to begin messages with.
        mend: a sentence on what is accepted.

    Raises:
        UserError: there is no dict; there are several; weights lie in one of another name.
    """
    if not isinstance(content, Mapping):
        raise UserError(f"{where} holds a {type(content).__name__}. {mend}")
    found = [key for key in WRAPPERS if isinstance(content.get(key), Mapping)]
    if len(found) > 1:
        raise UserError(f"{where} holds several sets of weights: {', '.join(found)}. Save one of them alone. {mend}")
    if found:
        return unwrapped(content[found[0]], where, mend)
    if not any(str(key).endswith(MARK) for key in content):
        inside = ["".join(f"[{key!r}]" for key in keys) for keys in _with_mark(content)]
        if inside:
            raise UserError(
                f"{where} has CLIP's weights inside, under {' and '.join(inside)}. Save those alone. {mend}"
            )
    return content


def _with_mark(content: Mapping, above: tuple = ()) -> Iterator[tuple]:
    """Keys to the dicts inside that hold weights of a CLIP."""
    for key, value in content.items():
        if isinstance(value, Mapping) and len(above) < AT_MOST:
            if any(str(name).endswith(MARK) for name in value):
                yield (*above, key)
            else:
                yield from _with_mark(value, (*above, key))


def _without_prefixes(text: str) -> str:
    """What is left of a beginning of names without PREFIXES."""
    for prefix in PREFIXES:
        if text.startswith(prefix):
            return _without_prefixes(text.removeprefix(prefix))
    return text


def _what_to_do_with_hugging_face(path: object) -> str:
    folder = Path(str(path)).parent
    how = (
        f"Name its folder, which has the rest of it: --backbone hf:{folder}."
        if (folder / "config.json").is_file()
        else "Put it as model.safetensors or pytorch_model.bin into a folder with the config.json, tokenizer and "
        f"preprocessor_config.json that belong to it, and name that: --backbone hf:<folder>. {FROM_THE_HUB}"
    )
    return f"is in Hugging Face's layout (text_model..., vision_model...), of which other files are a part. {how}"
