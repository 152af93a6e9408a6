"""The weights of a folder in Hugging Face's layout, by OpenAI's names.

The files are read as data: by json and the safetensors package; transformers is not needed, and no code of a checkpoint
is run.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import UserError, some
from trainers.modules.hf_config import ClipShape, TowerShape
from trainers.modules.hf_hub import CONFIG, INDEX, PICKLED, SAFE, shards_of, weights_file
from trainers.modules.tensor_files import read_tensors

GET_AGAIN = "Get it again."
AT_MOST = 3  # differences that a message names

# Names within a layer: Hugging Face's and OpenAI's. Queries, keys and values are one matrix with the latter.
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
JOINED = [f"self_attn.{which}_proj" for which in "qkv"]
# Names outside of the layers.
OTHERS = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.weight": "visual.conv1.weight",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.weight": "visual.ln_pre.weight",
    "vision_model.pre_layrnorm.bias": "visual.ln_pre.bias",
    "vision_model.post_layernorm.weight": "visual.ln_post.weight",
    "vision_model.post_layernorm.bias": "visual.ln_post.bias",
    "logit_scale": "logit_scale",
}
TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
# Numbers of positions, that old checkpoints hold beside the weights.
NOT_WEIGHTS = re.compile(r"(text|vision)_model\.embeddings\.position_ids")


def read_weights(folder: Path, what: str, shape: ClipShape) -> dict[str, Tensor]:
    """The weights of a folder by the names of `clip.model.CLIP`, in single precision.

    Args:
        folder: with weights in one file or in shards, as safetensors or as pickles of tensors.
        what: whose they are, to begin messages with.
        shape: that they should have.

    Raises:
        UserError: there are none, some are missing or damaged, or they do not fit `shape`.
    """
    path, files = weights_of(folder, what)
    tensors = {key: value for file in files for key, value in _read_file(file, what).items()}
    tensors = {key: value for key, value in tensors.items() if not NOT_WEIGHTS.fullmatch(key)}
    _check_shapes(tensors, shape, f"{what}: {path.name}")
    return _renamed({key: value.float() for key, value in tensors.items()}, shape)


def weights_of(folder: Path, what: str) -> tuple[Path, list[Path]]:
    """The file of weights or the index of their shards, and the files that hold them.

    Args:
        folder: that they lie in.
        what: whose they are, to begin messages with.

    Raises:
        UserError: there are none, the index is damaged, or a shard is missing.
    """
    path = weights_file(folder)
    if path is None:
        raise UserError(f"{what} has no weights: neither {SAFE} nor {PICKLED}, whole or in shards with {SAFE}{INDEX}.")
    if not path.name.endswith(INDEX):
        return path, [path]
    try:
        shards = shards_of(path)
    except ValueError as error:
        raise UserError(f"{what}: {path.name} is no index of shards ({error}). {GET_AGAIN}") from error
    missing = [name for name, shard in shards.items() if not shard.is_file()]
    if missing:
        raise UserError(
            f"{what} lacks {some(missing, AT_MOST)} of the {len(shards)} shards that {path.name} lists. Get the "
            "missing files from where the others are from; a download that broke off goes on when it is run again."
        )
    return path, list(shards.values())


def _read_file(path: Path, what: str) -> dict[str, Tensor]:
    mend = f"Accepted: {SAFE}, or {PICKLED} that holds tensors alone."
    content = read_tensors(path, f"{what}: its file", mend)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{what}: {path.name} holds something other than tensors by name. {mend}")
    return content


def _check_shapes(tensors: Mapping[str, Tensor], shape: ClipShape, where: str) -> None:
    """Raise UserError unless weights have the names and the shapes that config.json makes expect."""
    expected = _expected(shape)
    differences = [f"{key} is not there" for key in expected if key not in tensors]
    differences += [
        f"{key} is {_sizes(tensors[key].shape)}, not {_sizes(sizes)}"
        for key, sizes in expected.items()
        if key in tensors and tuple(tensors[key].shape) != sizes
    ]
    differences += [f"{key} is not of a CLIPModel" for key in tensors if key not in expected]
    if not differences:
        differences = [f"{key} is {value.dtype}" for key, value in tensors.items() if not value.is_floating_point()]
    if differences:
        raise UserError(
            f"{where} does not fit {CONFIG}: {'; '.join(differences[:AT_MOST])}"
            f"{f'; and {len(differences) - AT_MOST} more' if len(differences) > AT_MOST else ''}. "
            "They belong to different models: get both from the same place."
        )


def _sizes(shape):
    return "x".join(map(str, shape)) or "a number"


def _expected(shape: ClipShape) -> dict[str, tuple[int, ...]]:
    """Shapes of a CLIPModel's weights by their names."""
    text, vision, features = shape.text, shape.vision, shape.feature_size
    patches = (shape.image_size // shape.patch_size) ** 2
    of_embeddings: dict[str, tuple[int, ...]] = {
        "text_model.embeddings.token_embedding.weight": (shape.vocabulary, text.width),
        "text_model.embeddings.position_embedding.weight": (shape.positions, text.width),
        "vision_model.embeddings.class_embedding": (vision.width,),
        "vision_model.embeddings.patch_embedding.weight": (vision.width, 3, shape.patch_size, shape.patch_size),
        "vision_model.embeddings.position_embedding.weight": (patches + 1, vision.width),
        "text_projection.weight": (features, text.width),
        "visual_projection.weight": (features, vision.width),
        "logit_scale": (),
    }
    of_norms = {key: ((text if key.startswith("text") else vision).width,) for key in OTHERS if re.search("norm", key)}
    return of_embeddings | of_norms | _of_layers("text_model", text) | _of_layers("vision_model", vision)


def _of_layers(part: str, tower: TowerShape) -> dict[str, tuple[int, ...]]:
    width, inner = tower.width, tower.inner
    matrices = {
        **dict.fromkeys([*JOINED, "self_attn.out_proj"], (width, width)),
        "mlp.fc1": (inner, width),
        "mlp.fc2": (width, inner),
    }
    of_layer: dict[str, tuple[int, ...]] = {}
    for name, sizes in matrices.items():
        of_layer |= {f"{name}.weight": sizes, f"{name}.bias": sizes[:1]}
    for name in ("layer_norm1", "layer_norm2"):
        of_layer |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    layers = range(tower.layers)
    return {f"{part}.encoder.layers.{i}.{name}": sizes for i in layers for name, sizes in of_layer.items()}


def _renamed(tensors: Mapping[str, Tensor], shape: ClipShape) -> dict[str, Tensor]:
    """Hugging Face's names -> OpenAI's, with queries, keys and values joined, and both projections transposed."""
    weights = {ours: tensors[theirs] for theirs, ours in OTHERS.items()}
    weights |= {ours: tensors[theirs].t().contiguous() for theirs, ours in TRANSPOSED.items()}
    for part, ours, tower in (("text_model", "", shape.text), ("vision_model", "visual.", shape.vision)):
        for i in range(tower.layers):
            here, block = f"{part}.encoder.layers.{i}", f"{ours}transformer.resblocks.{i}"
            for kind in ("weight", "bias"):
                weights[f"{block}.attn.in_proj_{kind}"] = torch.cat([tensors[f"{here}.{q}.{kind}"] for q in JOINED])
                for name, new in LAYER.items():
                    weights[f"{block}.{new}.{kind}"] = tensors[f"{here}.{name}.{kind}"]
    return weights
