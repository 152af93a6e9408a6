"""CLIPs in Hugging Face's layout: their features are those of transformers; what cannot be used is told."""

import json

import pytest
import torch
from hf_folders import (
    hugging_face_state,
    preprocessor,
    save_hugging_face,
    save_tokenizer,
    save_weights,
    small_vocabulary,
    write_json,
)
from reference import tiny_clip

from common.errors import UserError
from trainers.modules.clip_backbone import check_backbone, load_backbone, weights_fingerprint
from trainers.modules.hf_config import OTHER_KINDS, read_shape
from trainers.modules.prompt_encoder import PromptEncoder

NAMES = ["dog", "guitar solo", "polar_bear."]


@pytest.fixture(scope="module")
def model():
    return tiny_clip(vision=2, width=128)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    return save_hugging_face(model, tmp_path_factory.mktemp("hf") / "tiny")


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of the saved folder to do things to, made of links."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in saved.iterdir():
        (copy / path.name).symlink_to(path)
    return copy


def changed(folder, name, change):
    """Replace a JSON file of a folder by what `change` makes of it, in place or as what it returns."""
    content = json.loads((folder / name).read_text())
    content = change(content) or content
    (folder / name).unlink()
    write_json(folder / name, content)


def replaced(folder, name, content):
    (folder / name).unlink()
    (folder / name).write_bytes(content)


def refusal(folder):
    with pytest.raises(UserError) as error:
        load_backbone(f"hf:{folder}")
    message = str(error.value)
    assert message.startswith(f"Backbone hf:{folder}")
    assert len(message.splitlines()) == 1
    return message


# ---- what is loaded ----


@pytest.mark.parametrize("form", ["one file", "shards", "fp16", "bf16", "pickle", "sharded pickles"])
def test_the_weights_are_those_that_were_saved(form, model, tmp_path):
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(form, torch.float32)
    folder = save_hugging_face(model, tmp_path / "x", dtype, shards=3 if form == "shards" else 1)
    if "pickle" in form:
        (folder / "model.safetensors").unlink()
        state = hugging_face_state(model)
        if form == "pickle":
            torch.save(state, folder / "pytorch_model.bin")
        else:
            places = {key: f"pytorch_model-{1 + i % 2:05}-of-00002.bin" for i, key in enumerate(state)}
            for name in set(places.values()):
                torch.save({key: state[key] for key in state if places[key] == name}, folder / name)
            write_json(folder / "pytorch_model.bin.index.json", {"weight_map": places})
    loaded = load_backbone(f"hf:{folder}")
    rounded = tiny_clip(vision=2, width=128).to(dtype).float()
    assert weights_fingerprint(loaded.model) == weights_fingerprint(rounded)
    assert loaded.image_size == 32
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model.encode_image(image), rounded.encode_image(image))


def test_it_is_the_same_backbone_as_openais_file(model, saved, tmp_path):
    torch.save(model.state_dict(), tmp_path / "tiny.pt")
    assert load_backbone(f"hf:{saved}").sha256 == load_backbone(str(tmp_path / "tiny.pt")).sha256


def test_positions_that_old_checkpoints_hold_are_passed_over(folder, model):
    state = hugging_face_state(model) | {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    (folder / "model.safetensors").unlink()
    save_weights(state, folder)
    load_backbone(f"hf:{folder}")


def test_sections_of_old_configs_win(folder):
    def change(config):
        config["text_config"], config["text_config_dict"] = {}, config["text_config"]

    changed(folder, "config.json", change)
    load_backbone(f"hf:{folder}")


# ---- agreement with transformers ----

FAMILIES = {
    "OpenAI's": {},
    "GELU": {"text": {"hidden_act": "gelu"}, "vision": {"hidden_act": "gelu"}},
    "an activation for each tower": {"text": {"hidden_act": "gelu_new"}, "vision": {"hidden_act": "quick_gelu"}},
    "texts pooled at their highest id": {"text": {"eos_token_id": 2}},
    "a projection of another size": {"projection_dim": 24},
    "other widths, heads and MLPs": {
        "text": {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 160},
        "vision": {"hidden_size": 48, "num_attention_heads": 3, "intermediate_size": 100},
    },
    "33 positions": {"text": {"max_position_embeddings": 33}},
    "an epsilon of its own": {"text": {"layer_norm_eps": 1e-2}, "vision": {"layer_norm_eps": 1e-2}},
    "an image that patches do not cover": {"vision": {"image_size": 35}},
    "a vocabulary of its own": {"text": {"vocab_size": 832, "eos_token_id": 813}, "tokenizer": small_vocabulary()},
}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers", reason="compares with transformers, which is not installed")


def saved_by_transformers(transformers, folder, family):
    """A CLIPModel of random weights, saved with what belongs to it."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={**sizes, "num_hidden_layers": 2, **family.get("text", {})},
        vision_config={**sizes, "image_size": 32, "patch_size": 8, **family.get("vision", {})},
        projection_dim=family.get("projection_dim", 32),
    )
    torch.manual_seed(0)
    model = transformers.CLIPModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at 0 and norms at 1, where mistakes could hide
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    write_json(folder / "preprocessor_config.json", preprocessor(config.vision_config.image_size))
    save_tokenizer(folder, *family.get("tokenizer", ()))
    return model


def made(output):
    """The features in what transformers returns, which was they alone before its version 5."""
    return getattr(output, "pooler_output", output)


def plain_features(model, tokens, ctx):
    """Text features (C, E) of a CLIPModel: prompts (C, T) with contexts (n, D) in the places behind the first."""
    embeddings = model.text_model.embeddings
    words, embedding = embeddings.token_embedding, embeddings.token_embedding.forward

    def with_context(ids):
        embedded = embedding(ids)
        return torch.cat([embedded[:, :1], ctx.expand(len(ids), -1, -1), embedded[:, 1 + len(ctx) :]], dim=1)

    words.forward = with_context
    try:
        features = made(model.get_text_features(tokens))
    finally:
        words.forward = embedding
    return features / features.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_and_gradients_are_those_of_transformers(kind, transformers, tmp_path):
    theirs = saved_by_transformers(transformers, tmp_path, FAMILIES[kind])
    backbone = load_backbone(f"hf:{tmp_path}")
    images = torch.randn(3, 3, backbone.image_size, backbone.image_size)
    expected = made(theirs.get_image_features(images))
    assert (backbone.model.encode_image(images) - expected).abs().max() < 1e-5

    encoder = PromptEncoder(backbone.text, NAMES, n_ctx=4)
    ctx = encoder.initial_context().requires_grad_()
    other = ctx.detach().clone().requires_grad_()
    tokens = transformers.CLIPTokenizerFast.from_pretrained(tmp_path)(
        [f"X X X X {name.replace('_', ' ')}." for name in NAMES], padding=True, return_tensors="pt"
    )["input_ids"]
    ours, plain = encoder(ctx), plain_features(theirs, tokens, other)
    assert (ours - plain).abs().max() < 1e-5
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (plain * weights).sum().backward()
    assert (ctx.grad - other.grad).abs().max() < 1e-5 * max(1, other.grad.abs().max())


@pytest.mark.parametrize("form", ["two files", "one file", "one file with pairs"])
def test_tokens_are_those_of_transformers(form, transformers, saved, tmp_path):
    vocabulary, merges = small_vocabulary()
    save_tokenizer(tmp_path, vocabulary, merges)
    theirs = transformers.CLIPTokenizerFast.from_pretrained(tmp_path)
    model = tiny_clip(vision=2)
    model.vocab_size, model.token_embedding = 832, torch.nn.Embedding(832, 64)
    folder = save_hugging_face(model, tmp_path / "x", with_tokenizer=False)
    changed(folder, "config.json", lambda config: config["text_config"].update(eos_token_id=813))
    if form == "two files":
        save_tokenizer(folder, vocabulary, merges)
    else:
        theirs.save_pretrained(folder)
        assert not (folder / "vocab.json").exists()
        if form == "one file with pairs":
            pairs = [list(pair) for pair in merges]
            changed(folder, "tokenizer.json", lambda content: content["model"].update(merges=pairs))
    for path in (*folder.glob("*.json"), *folder.glob("merges.txt")):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    tokenizer = load_backbone(f"hf:{folder}").facts.tokenizer
    assert tokenizer.size == 814
    for text in ("a photo of a dog.", "Café 3,5 au lait's", "  many   spaces ", "日本 🎸!?"):
        before, after = tokenizer.before, tokenizer.after
        assert [*before, *tokenizer.encode(text), *after] == theirs(text)["input_ids"]


# ---- how images are made ----


def test_images_are_made_as_the_folder_says(folder):
    said = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "resample": 2}
    changed(folder, "preprocessor_config.json", lambda config: config.update(said))
    backbone = load_backbone(f"hf:{folder}")
    assert (backbone.facts.pixel_mean, backbone.facts.pixel_std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert backbone.facts.interpolation == "bilinear"


def test_a_processor_of_newer_transformers_is_read(folder):
    content = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").unlink()
    write_json(folder / "processor_config.json", {"image_processor": {**content, "image_mean": [0, 0.5, 1]}})
    assert load_backbone(f"hf:{folder}").facts.pixel_mean == (0, 0.5, 1)


def test_images_that_are_not_normalised_stay_as_they_are(folder):
    changed(folder, "preprocessor_config.json", lambda config: config.update(do_normalize=False))
    backbone = load_backbone(f"hf:{folder}")
    assert (backbone.facts.pixel_mean, backbone.facts.pixel_std) == ((0, 0, 0), (1, 1, 1))


def test_a_folder_without_preprocessor_says_what_is_taken(folder, saved, capsys):
    (folder / "preprocessor_config.json").unlink()
    assert load_backbone(f"hf:{folder}").facts.pixel_mean == load_backbone(f"hf:{saved}").facts.pixel_mean
    note = f"Note: Backbone hf:{folder} has no preprocessor_config.json; images are made as OpenAI's CLIPs take them."
    assert capsys.readouterr().out.splitlines() == [note]


@pytest.mark.parametrize("crop", [{"do_center_crop": False}, {"crop_size": {"height": 32, "width": 32}}])
def test_images_that_are_squashed_to_a_square(crop, folder, capsys):
    said = {"size": {"height": 32, "width": 32}, **crop}
    changed(folder, "preprocessor_config.json", lambda config: config.update(said))
    assert load_backbone(f"hf:{folder}").facts.resize_mode == "squash"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "said", [{"size": {"shortest_edge": 256}}, {"do_center_crop": False}, {"do_resize": False}, {"crop_size": 16}]
)
def test_another_way_of_resizing_is_told(said, folder, capsys):
    changed(folder, "preprocessor_config.json", lambda config: config.update(said))
    load_backbone(f"hf:{folder}")
    out = capsys.readouterr().out
    assert "preprocessor_config.json says" in out
    assert "here images are resized to 32 pixels" in out
    assert all(f"{key} {value}" in out for key, value in said.items())


@pytest.mark.parametrize(
    "said, told",
    [
        (
            {"resample": 1},
            "resample in preprocessor_config.json is 1; accepted: 0 (nearest), 2 (bilinear), 3 (bicubic)",
        ),
        ({"image_mean": [0.5]}, "image_mean in preprocessor_config.json is [0.5]; accepted: three numbers"),
        ({"image_std": "no"}, "image_std in preprocessor_config.json is 'no'; accepted: three numbers"),
    ],
)
def test_a_preprocessor_that_is_not_known_is_refused(said, told, folder):
    changed(folder, "preprocessor_config.json", lambda config: config.update(said))
    assert told in refusal(folder)


@pytest.mark.parametrize("said", [{"rescale_factor": 1 / 127.5}, {"do_rescale": False}])
def test_pixels_between_other_bounds_are_refused(said, folder):
    changed(folder, "preprocessor_config.json", lambda config: config.update(said))
    assert "accepted: True and 1/255" in refusal(folder)


@pytest.mark.parametrize("part", ["text", "vision"])
@pytest.mark.parametrize("old", [None, {"hidden_size": 64, "num_hidden_layers": 2, "layer_norm_eps": 1e-3}])
def test_old_sections_are_taken_as_transformers_has_them(part, old, transformers, folder):
    section = {"intermediate_size": 100, "hidden_size": 128, "num_attention_heads": 2, "hidden_act": "gelu"}
    said = {f"{part}_config": section, f"{part}_config_dict": old and {**old, "num_attention_heads": 2}}
    changed(folder, "config.json", lambda config: config.update(said))
    theirs = getattr(transformers.CLIPConfig.from_pretrained(folder), f"{part}_config")
    ours = getattr(read_shape(folder, "It"), part)
    assert (ours.width, ours.inner) == (theirs.hidden_size, theirs.intermediate_size)
    assert (ours.layers, ours.kind.eps) == (theirs.num_hidden_layers, theirs.layer_norm_eps)
    assert ours.kind.activation == theirs.hidden_act


@pytest.mark.parametrize(
    ("part", "told"),
    [
        ({"normalizer": {"type": "NFC"}}, "tokenizer.json has a normalizer without Lowercase"),
        ({"normalizer": None}, "tokenizer.json has a normalizer without Lowercase"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "tokenizer.json has a pre_tokenizer without ByteLevel"),
    ],
)
def test_a_tokenizer_that_cuts_texts_otherwise_is_refused(part, told, transformers, folder):
    transformers.CLIPTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    load_backbone(f"hf:{folder}")
    changed(folder, "tokenizer.json", lambda content: content.update(part))
    assert told in refusal(folder)  # though vocab.json and merges.txt, which transformers does not read then, are there


def test_a_folder_is_looked_through_before_runs_are_planned(folder, model, tmp_path):
    check_backbone(f"hf:{folder}")
    changed(folder, "config.json", lambda config: config.update(model_type="siglip"))
    with pytest.raises(UserError, match="model_type in config.json is 'siglip'"):
        check_backbone(f"hf:{folder}")
    shards = save_hugging_face(model, tmp_path / "shards", shards=3)
    (shards / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(UserError, match="lacks model-00002-of-00003.safetensors"):
        check_backbone(f"hf:{shards}")
    (shards / "vocab.json").write_text("{}")
    with pytest.raises(UserError, match="its tokenizer cannot be built"):
        check_backbone(f"hf:{shards}")
    (shards / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        check_backbone(f"hf:{shards}")


# ---- what cannot be used ----


def test_names_that_are_none(folder, tmp_path):
    def told(name):
        with pytest.raises(UserError) as error:
            load_backbone(name)
        return str(error.value)

    assert f"name the folder of it and its config.json: hf:{folder}." in told(f"hf:{folder / 'model.safetensors'}")
    for name in (f"hf:{tmp_path / 'nowhere'}", "hf:", "hf:clip", "hf:a/b/c", "hf:../b"):
        assert "is neither a folder nor an id of the hub. Accepted: hf:<folder>, or hf:<organ" in told(name)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(name, folder):
    (folder / name).unlink()
    told = {"config.json": "has no config.json. Get the whole folder", "model.safetensors": "has no weights: neither"}
    assert told[name] in refusal(folder)


def test_a_shard_that_is_missing(model, tmp_path):
    folder = save_hugging_face(model, tmp_path, shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    message = refusal(folder)
    assert "lacks model-00002-of-00003.safetensors of the 3 shards that model.safetensors.index.json lists" in message


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"weight_map": 3}', b'{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none(content, model, tmp_path):
    folder = save_hugging_face(model, tmp_path, shards=2)
    replaced(folder, "model.safetensors.index.json", content)
    assert "model.safetensors.index.json is no index of shards" in refusal(folder)


def test_shards_are_those_of_the_folder(model, tmp_path):
    folder = save_hugging_face(model, tmp_path / "x", shards=2)
    outside = tmp_path / "outside.safetensors"
    (folder / "model-00002-of-00002.safetensors").rename(outside)
    index = (folder / "model.safetensors.index.json").read_text()
    replaced(
        folder,
        "model.safetensors.index.json",
        index.replace("model-00002-of-00002.safetensors", "../outside.safetensors").encode(),
    )
    assert "lacks ../outside.safetensors" in refusal(folder)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_is_named_safetensors(zipped, folder, model):
    (folder / "model.safetensors").unlink()
    torch.save(model.state_dict(), folder / "model.safetensors", _use_new_zipfile_serialization=zipped)
    message = refusal(folder)
    assert "model.safetensors is a pickle, as torch.save writes, that is named like safetensors" in message
    assert "end its name in .bin" in message


def test_a_pickle_that_would_run_code(folder, model):
    (folder / "model.safetensors").unlink()
    torch.save({"x": print}, folder / "pytorch_model.bin")
    assert "might run code when opened, so it is refused" in refusal(folder)


@pytest.mark.parametrize("content", [[1], {"a": 1}])
def test_a_pickle_of_something_else(content, folder):
    (folder / "model.safetensors").unlink()
    torch.save(content, folder / "pytorch_model.bin")
    assert "holds something other than tensors by name" in refusal(folder)


@pytest.mark.parametrize("share", [0, 0.00001, 0.5, 0.999])
def test_a_file_that_breaks_off(share, folder, saved):
    content = (saved / "model.safetensors").read_bytes()
    replaced(folder, "model.safetensors", content[: int(len(content) * share)])
    assert "model.safetensors is damaged, or was not downloaded to its end" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe"])
def test_a_config_that_is_damaged(content, folder):
    replaced(folder, "config.json", content)
    assert "config.json" in refusal(folder)


@pytest.mark.parametrize(
    "kind, why",
    [
        ("chinese_clip", "this one's is a BERT"),
        ("altclip", "XLM-RoBERTa"),
        ("siglip", "open_clip:ViT-B-16-SigLIP@webli"),
        ("clip_vision_model", "the image tower alone"),
        ("jina_clip", "no code of a checkpoint is run"),
        ("something_new", "its towers are not CLIP's"),
        (None, "its kind is not known"),
    ],
)
def test_another_kind_of_model(kind, why, folder):
    changed(folder, "config.json", lambda config: config.update(model_type=kind))
    message = refusal(folder)
    assert f"model_type in config.json is {kind!r}" in message
    assert why in message
    assert "Accepted: 'clip'" in message


@pytest.mark.parametrize(
    "section, key, value, told",
    [
        ("text_config", "hidden_act", "relu", "hidden_act is 'relu'; accepted: quick_gelu, gelu,"),
        ("text_config", "hidden_size", "big", "hidden_size is 'big'; accepted: a whole number"),
        ("text_config", "num_hidden_layers", 0, "num_hidden_layers is 0; accepted: a whole number above 0"),
        ("text_config", "num_attention_heads", 3, "hidden_size is 128, which 3 heads"),
        ("text_config", "layer_norm_eps", None, "layer_norm_eps is None; accepted: a number above 0"),
        ("text_config", "eos_token_id", [1, 2], "eos_token_id is [1, 2]; accepted: a whole number"),
        ("vision_config", "image_size", [32, 64], "image_size is [32, 64]; accepted"),
        ("vision_config", "num_channels", 1, "num_channels is 1; accepted: 3"),
    ],
)
def test_entries_that_no_clip_has(section, key, value, told, folder):
    changed(folder, "config.json", lambda config: config[section].update({key: value}))
    message = refusal(folder)
    assert told in message
    assert message.endswith("in config.json.")


def test_what_openclip_is_said_to_have_it_has():
    pytest.importorskip("open_clip", reason="needs open_clip_torch")
    named = [word for why in OTHER_KINDS.values() for word in why.split() if word.startswith("open_clip:")]
    assert named
    for name in named:
        check_backbone(name)


def test_weights_of_another_model(folder):
    changed(folder, "config.json", lambda config: config["text_config"].update(intermediate_size=100))
    message = refusal(folder)
    assert "text_model.encoder.layers.0.mlp.fc1.weight is 512x128, not 100x128;" in message
    assert "and 6 more. They belong to different models" in message
    changed(folder, "config.json", lambda config: config["text_config"].update(intermediate_size=512))
    changed(folder, "config.json", lambda config: config["vision_config"].update(num_hidden_layers=3))
    assert "vision_model.encoder.layers.2.self_attn.q_proj.weight is not there" in refusal(folder)
    changed(folder, "config.json", lambda config: config["vision_config"].update(num_hidden_layers=1))
    assert "is not of a CLIPModel" in refusal(folder)


def test_weights_that_are_no_numbers_of_a_network(folder, model):
    state = hugging_face_state(model)
    state["text_projection.weight"] = state["text_projection.weight"].to(torch.int8)
    (folder / "model.safetensors").unlink()
    save_weights(state, folder)
    assert "text_projection.weight is torch.int8" in refusal(folder)


def test_weights_that_are_not_finite(folder, model):
    state = hugging_face_state(model)
    state["text_projection.weight"][0, 0] = float("nan")
    (folder / "model.safetensors").unlink()
    save_weights(state, folder)
    assert "1 of the 4,096 numbers of text_projection are not finite" in refusal(folder)


def test_a_tokenizer_of_other_weights(folder, saved, tmp_path):
    vocabulary, merges = small_vocabulary()

    def told(change):
        for name in ("vocab.json", "merges.txt"):
            (folder / name).unlink(missing_ok=True)
        change()
        return refusal(folder)

    assert "vocab.json has <|endoftext|> at 813, and eos_token_id in config.json is 49,407" in told(
        lambda: save_tokenizer(folder, vocabulary, merges)
    )
    assert "ids up to 49,408, and the weights have embeddings for 49,408 tokens" in told(
        lambda: save_tokenizer(folder, {**json.loads((saved / "vocab.json").read_text()), "new": 49408})
    )
    assert "its tokenizer cannot be built: its vocabulary lacks '!</w>'" in told(
        lambda: save_tokenizer(folder, {key: i for key, i in vocabulary.items() if key != "!</w>"}, merges)
    )
    assert "its vocabulary lacks '<|endoftext|>'" in told(
        lambda: save_tokenizer(folder, {key: i for key, i in vocabulary.items() if i < 813}, merges)
    )
    assert "its merges are not pairs" in told(lambda: save_tokenizer(folder, vocabulary, [("a", "b", "c")]))
    unigram = {"model": {"type": "Unigram", "vocab": []}}
    assert "tokenizer.json is a Unigram model" in told(lambda: write_json(folder / "tokenizer.json", unigram))


def test_texts_that_would_be_read_at_another_place(folder, model):
    encoder = json.loads((folder / "vocab.json").read_text())
    encoder["<|endoftext|>"], encoder["!"] = 0, 49407
    (folder / "vocab.json").unlink()
    write_json(folder / "vocab.json", encoder)
    changed(folder, "config.json", lambda config: config["text_config"].update(eos_token_id=2))
    message = refusal(folder)
    assert "has <|endoftext|> at 0 and ids up to 49,407" in message
    assert "Set eos_token_id of text_config to 0" in message


def test_no_tokenizer_is_openais_where_the_vocabulary_is(folder, saved):
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()
    assert load_backbone(f"hf:{folder}").sha256 == load_backbone(f"hf:{saved}").sha256
    changed(folder, "config.json", lambda config: config["text_config"].update(vocab_size=100))
    assert "has no tokenizer, and a vocabulary of 100 is not OpenAI's, of 49,408" in refusal(folder)
