"""Folders in Hugging Face's layout, made of a CLIP in OpenAI's: the slow, obvious way round of what is read."""

import json

import torch
from clip.clip import _tokenizer as tokenizer
from safetensors.torch import save_file

IN_LAYERS = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def hugging_face_state(model):
    """The weights of a `clip.model.CLIP` whose image tower is a ViT, by the names of a CLIPModel."""
    state = {
        "logit_scale": model.logit_scale,
        "text_model.embeddings.token_embedding.weight": model.token_embedding.weight,
        "text_model.embeddings.position_embedding.weight": model.positional_embedding,
        "vision_model.embeddings.class_embedding": model.visual.class_embedding,
        "vision_model.embeddings.patch_embedding.weight": model.visual.conv1.weight,
        "vision_model.embeddings.position_embedding.weight": model.visual.positional_embedding,
        "text_projection.weight": model.text_projection.t(),
        "visual_projection.weight": model.visual.proj.t(),
        **layers("text_model", model.transformer),
        **layers("vision_model", model.visual.transformer),
    }
    for name, norm in {
        "text_model.final_layer_norm": model.ln_final,
        "vision_model.pre_layrnorm": model.visual.ln_pre,
        "vision_model.post_layernorm": model.visual.ln_post,
    }.items():
        state |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    return {key: value.detach().clone().contiguous() for key, value in state.items()}


def layers(part, transformer):
    state = {}
    for i, block in enumerate(transformer.resblocks):
        here = f"{part}.encoder.layers.{i}"
        for kind in ("weight", "bias"):
            joined = getattr(block.attn, f"in_proj_{kind}")
            for name, rows in zip("qkv", joined.chunk(3), strict=True):
                state[f"{here}.self_attn.{name}_proj.{kind}"] = rows
            for ours, theirs in IN_LAYERS.items():
                state[f"{here}.{theirs}.{kind}"] = block.get_parameter(f"{ours}.{kind}")
    return state


def hugging_face_config(model, **text):
    """config.json of a `clip.model.CLIP`, with other entries of its text tower's section."""
    visual = model.visual
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": model.text_projection.shape[1],
        "text_config": {
            **tower(model.transformer),
            "vocab_size": model.vocab_size,
            "max_position_embeddings": model.context_length,
            "eos_token_id": 49407,
            **text,
        },
        "vision_config": {
            **tower(visual.transformer),
            "image_size": visual.input_resolution,
            "patch_size": visual.conv1.kernel_size[0],
        },
    }


def tower(transformer):
    block = transformer.resblocks[0]
    return {
        "hidden_size": transformer.width,
        "intermediate_size": block.mlp.c_fc.out_features,
        "num_hidden_layers": len(transformer.resblocks),
        "num_attention_heads": block.attn.num_heads,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": block.ln_1.eps,
    }


def preprocessor(size, **entries):
    """preprocessor_config.json as OpenAI's models have it, with some entries changed."""
    return {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": {"shortest_edge": size},
        **entries,
    }


def save_tokenizer(folder, encoder=None, merges=None):
    """vocab.json and merges.txt of CLIP's byte pair encoding; by default with its own vocabulary."""
    write_json(folder / "vocab.json", encoder or tokenizer.encoder)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in (tokenizer.bpe_ranks if merges is None else merges))]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def small_vocabulary(n_merges=300):
    """The bytes and the first merges of CLIP's vocabulary, as (ids by token, merges)."""
    merges = list(tokenizer.bpe_ranks)[:n_merges]
    tokens = [*tokenizer.encoder][:512] + ["".join(pair) for pair in merges] + ["<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, merges


def save_hugging_face(model, folder, dtype=torch.float32, shards=1, with_tokenizer=True):
    """Save a CLIP as `CLIPModel.save_pretrained` and `CLIPProcessor.save_pretrained` do; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.to(dtype) for key, value in hugging_face_state(model).items()}
    save_weights(state, folder, shards)
    write_json(folder / "config.json", hugging_face_config(model))
    write_json(folder / "preprocessor_config.json", preprocessor(model.visual.input_resolution))
    if with_tokenizer:
        save_tokenizer(folder)
    return folder


def save_weights(state, folder, shards=1):
    """model.safetensors, or that many files and their index."""
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        return
    places = {key: f"model-{1 + i % shards:05}-of-{shards:05}.safetensors" for i, key in enumerate(state)}
    for name in set(places.values()):
        save_file({key: state[key] for key in state if places[key] == name}, folder / name)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})


def write_json(path, content):
    path.write_text(json.dumps(content), encoding="utf-8")


def put_in_cache(folder, cache, repository, commit="0" * 39 + "1", revision="main"):
    """Move the files of a folder to where huggingface_hub's cache has those of a repository; returns the snapshot."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    snapshot = storage / "snapshots" / commit
    for place in (storage / "blobs", storage / "refs", snapshot):
        place.mkdir(parents=True, exist_ok=True)
    (storage / "refs" / revision).write_text(commit)
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = storage / "blobs" / f"{number:040x}"
        path.rename(blob)
        (snapshot / path.name).symlink_to(f"../../blobs/{blob.name}")
    return snapshot
