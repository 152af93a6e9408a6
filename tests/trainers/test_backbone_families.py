"""CLIPs of all families against their own code, from small ones with random weights."""

import json
from copy import deepcopy
from typing import NamedTuple

import pytest
import torch
from hf_folders import put_in_cache
from reference import plain_image_features

from common.errors import UserError
from trainers.base.image_features import ImageFeatures
from trainers.modules.clip_backbone import PRECISIONS, backbone_label, has_vit, load_backbone
from trainers.modules.clip_model import Kind, build_clip, computes
from trainers.modules.open_clip_source import why_not_prompted
from trainers.modules.prompt_encoder import PaddedPromptEncoder, PromptEncoder, build_prompt_encoder
from trainers.modules.prompted_vit import PromptedViT
from trainers.modules.text_tower import TextTower

open_clip = pytest.importorskip("open_clip", reason="needs open_clip_torch, for OpenCLIP's own code")

NAMES = ["dog", "giraffe", "hockey_puck", "black and white guitar", "elephant"]
IMAGES = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXTS = {"width": 64, "heads": 2, "layers": 3}
CONVNEXT = {"timm_model_name": "convnext_atto", "timm_model_pretrained": False, "timm_pool": "", "image_size": 64}


def family(vision=(), text=(), **config):
    """An architecture in open_clip's words."""
    return {"embed_dim": 32, "vision_cfg": {**IMAGES, **dict(vision)}, "text_cfg": {**TEXTS, **dict(text)}, **config}


# Those whose text tower is causal, and those whose is not.
CAUSAL = {
    "quickgelu": family(quick_gelu=True),
    "openais": family(text={"heads": 1}, quick_gelu=True),
    "plain": family(text={"heads": 1}),
    "gelu": family({"head_width": 16, "mlp_ratio": 2.5}, {"context_length": 30, "mlp_ratio": 3.0}),
    "resnet": family({"layers": [1, 1, 1, 1], "width": 8, "patch_size": None}),
    "other-eps": family({"norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 1e-4}, "act_kwargs": {}}),
    "patches-do-not-cover": family({"image_size": 35}, {"heads": 1}),
    "bias-of-nothing": family(init_logit_bias=0),
    "scale-in-a-row": family(nonscalar_logit_scale=True),
    "layer-scale": family({"ls_init_value": 0.3}, {"ls_init_value": 0.3}),
    "average": family({"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}),
    "convnext": {**family(), "vision_cfg": {**CONVNEXT, "timm_proj": "mlp"}},
    "text-apart": {**family(text={"no_causal_mask": False}, custom_text=True), "vision_cfg": CONVNEXT},
    "projection-bias": family(text={"proj_bias": True}, custom_text=True),
    "named-eos": family(text={"pool_type": "eos", "eos_id": 49407}, custom_text=True),
    "reads-first": family(text={"pool_type": "first"}, custom_text=True),
}
NOT_CAUSAL = {
    "mobile": family(text={"no_causal_mask": True}, custom_text=True),
    "sigmoid": family(
        text={
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
            "act_kwargs": {"approximate": "tanh"},
            "context_length": 24,
        },
        custom_text=True,
        init_logit_bias=-10,
    ),
    "no-projection": family(
        text={"no_causal_mask": True, "pool_type": "last", "proj_type": "none", "width": 32}, custom_text=True
    ),
}
NOT_PROMPTED = {
    "another-transformer": family(text={"hf_model_name": "roberta-base"}),
    "oblong": family({"image_size": [32, 64]}),
    "norm-in-mlp": family(text={"scale_fc": True, "qk_norm": False}),
    "of-tomorrow": family(text={"pool_type": "median"}),
    "captions": family(text={"embed_cls": True}, custom_text=True, multimodal_cfg={"width": 64}),
}
ALL = {**CAUSAL, **NOT_CAUSAL}


@pytest.fixture(scope="session", autouse=True)
def architectures(tmp_path_factory):
    """The families above as architectures that open_clip knows."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, config in {**ALL, **NOT_PROMPTED}.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


@pytest.fixture(scope="session")
def models(architectures, tmp_path_factory):
    """models(family) -> (OpenCLIP's own model, a file of its weights)."""
    made, folder = {}, tmp_path_factory.mktemp("weights")

    def of(name):
        if name not in made:
            torch.manual_seed(0)
            model = open_clip.create_model(name).eval().requires_grad_(False)
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases and norms start at 0 and 1, where mistakes could hide
                    parameter.add_(0.05 * torch.randn_like(parameter))
            torch.save(model.state_dict(), folder / f"{name}.pt")
            made[name] = model, folder / f"{name}.pt"
        return made[name]

    return of


def own_text_features(model, tokenizer, names, ctx, position="end", deep=()):
    """Text features (C, E) by OpenCLIP's own code over all positions, a context (n, D) or (C, n, D) put in by hooks."""
    text, n = getattr(model, "text", model), ctx.shape[-2]
    names = [name.replace("_", " ") for name in names]
    ids = torch.cat([tokenizer([" ".join(["x"] * n) + f" {name}."], text.context_length) for name in names])
    lengths = [len(words_of(tokenizer, name)) for name in names]
    start = 0 if len(words_of(tokenizer, "x")) == 1 and ids[0, 0] == words_of(tokenizer, "x")[0] else 1
    ctx = ctx.expand(len(names), -1, -1)
    before = {"end": n, "middle": n // 2, "front": 0}[position]

    def put_in(module, inputs, embedded):
        rows = []
        for row, own, length in zip(embedded, ctx, lengths, strict=True):
            words = row[start + n :]
            rows.append(torch.cat([row[:start], own[:before], words[:length], own[before:], words[length:]]))
        return torch.stack(rows)

    def replace(vectors):
        def before_layer(module, inputs):
            x = inputs[0]
            return torch.cat([x[:, :start], vectors.expand(len(x), -1, -1), x[:, start + n :]], dim=1), *inputs[1:]

        return before_layer

    hooks = [text.token_embedding.register_forward_hook(put_in)]
    for block, vectors in zip(text.transformer.resblocks[1:], deep, strict=False):
        hooks.append(block.register_forward_pre_hook(replace(vectors)))
    try:
        return model.encode_text(ids, normalize=True)
    finally:
        for hook in hooks:
            hook.remove()


def words_of(tokenizer, text):
    if hasattr(tokenizer, "encode"):
        return tokenizer.encode(text)
    return tokenizer.tokenizer(tokenizer.clean_fn(text), add_special_tokens=False).input_ids


def assert_equal(ours, own, *inputs):
    """Values within 1e-5, and gradients of a random combination of them, by their size."""
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((own * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_features_and_gradients_are_those_of_its_own_code(models, name):
    own, path = models(name)
    backbone = load_backbone(f"open_clip:{name}@{path}")
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    torch.testing.assert_close(backbone.encode_image(images), own.encode_image(images), atol=1e-5, rtol=0)
    encoder = build_prompt_encoder(backbone.text, NAMES, n_ctx=4)
    assert type(encoder) is (PromptEncoder if name in CAUSAL and name != "reads-first" else PaddedPromptEncoder)
    ctx = (10 * encoder.initial_context()).requires_grad_()
    features = encoder(ctx)
    assert features.shape == (len(NAMES), backbone.feature_size)
    assert_equal(features, own_text_features(own, open_clip.get_tokenizer(name), NAMES, ctx), ctx)
    assert backbone.image_size == ALL[name]["vision_cfg"]["image_size"]
    assert backbone.logit_scale == own.logit_scale.exp()
    assert (backbone.logit_bias is None) == (own.logit_bias is None)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("name", ["gelu", "layer-scale", "mobile", "sigmoid", "reads-first"])
def test_contexts_of_classes_of_images_and_of_layers(models, name, position):
    own, path = models(name)
    tower, tokenizer = load_backbone(f"open_clip:{name}@{path}").text, open_clip.get_tokenizer(name)
    settings = {"n_ctx": 3, "class_token_position": position}
    torch.manual_seed(1)
    encoder = build_prompt_encoder(tower, NAMES, class_specific=True, **settings)
    ctx = (10 * encoder.initial_context()).requires_grad_()
    assert_equal(encoder(ctx), own_text_features(own, tokenizer, NAMES, ctx, position), ctx)
    encoder = build_prompt_encoder(tower, NAMES, **settings)
    ctx = torch.randn(3, 3, tower.width, requires_grad=True)
    assert_equal(encoder(ctx), torch.stack([own_text_features(own, tokenizer, NAMES, c, position) for c in ctx]), ctx)
    if position == "end":
        ctx, deep = ctx.detach()[0].requires_grad_(), encoder.initial_deep(3).mul(10).requires_grad_()
        assert_equal(encoder(ctx, deep), own_text_features(own, tokenizer, NAMES, ctx, deep=deep), ctx, deep)


@pytest.mark.parametrize("name", ["mobile", "sigmoid"])
def test_all_positions_within_the_memory(models, name):
    _, path = models(name)
    tower = load_backbone(f"open_clip:{name}@{path}").text
    names = [f"{name} {i}" for i in range(9) for name in NAMES]
    whole = build_prompt_encoder(tower, names, n_ctx=3)
    with pytest.raises(UserError, match=r"too small for one prompt. Set TEST.MEMORY_MB \d"):
        build_prompt_encoder(tower, names, n_ctx=3, memory_mb=0)
    small = build_prompt_encoder(tower, names, n_ctx=3, memory_mb=2)
    ctx = torch.randn(2, 3, tower.width, requires_grad=True)
    assert_equal(small(ctx), whole(ctx), ctx)
    with torch.no_grad():
        torch.testing.assert_close(small(ctx), whole(ctx), atol=1e-5, rtol=0)


def test_words_of_a_context_that_are_not_learned(models):
    own, path = models("mobile")
    tower = load_backbone(f"open_clip:mobile@{path}").text
    encoder = build_prompt_encoder(tower, NAMES, ctx_init="a photo of a", n_learned=2)
    ctx = encoder.initial_context()
    assert ctx.shape == (2, tower.width)
    whole = torch.cat([ctx, tower.token_embedding.weight[tower.tokenizer.encode("of a")]])
    expected = own_text_features(own, open_clip.get_tokenizer("mobile"), NAMES, whole)
    torch.testing.assert_close(encoder(ctx), expected, atol=1e-5, rtol=0)


def test_a_tower_that_looks_at_all_positions_is_not_cut(models):
    tower = load_backbone(f"open_clip:mobile@{models('mobile')[1]}").text
    with pytest.raises(ValueError, match="looks at all positions"):
        PromptEncoder(tower, NAMES)


def is_plain(name):
    """Whether the image tower of a family is a ViT of OpenAI's layout."""
    return ALL[name]["vision_cfg"].keys() <= {*IMAGES, "head_width", "mlp_ratio", "norm_kwargs"} and name != "resnet"


class Plain(NamedTuple):
    """What `plain_image_features` asks of a model."""

    visual: torch.nn.Module
    dtype: torch.dtype = torch.float32


@pytest.mark.parametrize("name", [*filter(is_plain, ALL)])
def test_prompts_in_the_image_tower(models, name):
    _, path = models(name)
    backbone = load_backbone(f"open_clip:{name}@{path}")
    assert backbone.is_vit and has_vit(backbone.name)
    tower = PromptedViT(backbone.visual)
    images = torch.randn(2, 3, 32, 32)
    tokens, deep = tower.initial_tokens(3).requires_grad_(), tower.initial_deep(2, 3).requires_grad_()
    assert_equal(
        tower(images, tokens, deep), plain_image_features(Plain(backbone.visual), images, tokens, deep), tokens, deep
    )


@pytest.mark.parametrize("name", [name for name in ALL if not is_plain(name)])
def test_image_towers_that_cannot_be_prompted(models, name):
    _, path = models(name)
    backbone = load_backbone(f"open_clip:{name}@{path}")
    assert not backbone.is_vit and not has_vit(backbone.name)
    with pytest.raises(UserError, match="a ViT of OpenAI's layout"):
        PromptedViT(backbone.visual)


# ---- tokenizers of other families ----

# Vocabulary of special tokens, what stands around a text, how the tower reads it.
SIGLIP = {"<unk>": 2, "</s>": 1, "_": 0}, "$A </s>", {"pad_token": "</s>"}
BERT = {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "<unk>": 3}, "[CLS] $A [SEP]", {"pad_token": "[PAD]", "sep_token": "[SEP]"}
XLM = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}, "<s> $A </s>", {"pad_token": "<pad>"}
MT5 = {"<pad>": 0, "</s>": 1, "<unk>": 2}, "$A </s>", {"pad_token": "<pad>"}
GEMMA = None  # which `gemma` makes
TOKENIZERS = {
    "siglip": (SIGLIP, {"pool_type": "last", "no_causal_mask": True, "proj_bias": True}, {"clean": "canonicalize"}),
    "bert": (BERT, {"pool_type": "last", "no_causal_mask": True}, {"strip_sep_token": True}),
    "worldwide": (XLM, {"pool_type": "eos", "eos_id": 2}, {}),
    "siglip2": (GEMMA, {"pool_type": "last", "no_causal_mask": True, "context_length": 50}, {"clean": "canonicalize"}),
    "worldwide-t5": (MT5, {"pool_type": "eos", "eos_id": 1}, {"clean": "canonicalize"}),
}


def gemma(folder):
    """Save a tokenizer that, as Gemma's, marks spaces in front of words, and puts none in front of the first one."""
    from tokenizers import processors
    from transformers import GemmaTokenizer

    signs = ["\u2581", ".", *"abcdefghijklmnopqrstuvwxyz"]
    merges = [("d", "o"), ("do", "g"), ("\u2581", "dog"), ("\u2581", "a"), ("\u2581", "x"), ("g", "u")]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", *signs, *map("".join, merges), "the"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = GemmaTokenizer(vocabulary, merges, add_bos_token=False, add_eos_token=True, padding_side="right")
    around = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer.backend_tokenizer.post_processor = around
    tokenizer.save_pretrained(folder)
    return vocabulary


@pytest.fixture
def with_tokenizer(tmp_path):
    """with_tokenizer(kind) -> an architecture with a tokenizer of its own, in Hugging Face's layout, of 24 words."""
    pytest.importorskip("transformers", reason="needs transformers, by which open_clip reads these tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    def make(kind, **more):
        made_of, text, settings = TOKENIZERS[kind]
        if made_of is GEMMA:
            return architecture(kind, gemma(tmp_path / "tokenizer"), text, settings, more)
        special, around, tokens = made_of
        words = ["x", ".", "a", "photo", "of", "and", "black", "dog", "elephant", "giraffe", "guitar", "hockey", "puck"]
        words += ["white", "the"]
        vocabulary = {**special, **{word: len(special) + i for i, word in enumerate(words)}}
        tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=[*special.items()])
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **tokens)
        fast.save_pretrained(tmp_path / "tokenizer")
        return architecture(kind, vocabulary, text, settings, more)

    def architecture(kind, vocabulary, text, settings, more):
        config = family(
            text={
                "hf_tokenizer_name": str(tmp_path / "tokenizer"),
                "tokenizer_kwargs": settings,
                "vocab_size": len(vocabulary),
                "context_length": 20,
                **text,
                **more,
            },
            custom_text=True,
        )
        (tmp_path / f"own-{kind}.json").write_text(json.dumps(config))
        open_clip.add_model_config(tmp_path / f"own-{kind}.json")
        torch.manual_seed(0)
        model = open_clip.create_model(f"own-{kind}").eval().requires_grad_(False)
        torch.save(model.state_dict(), tmp_path / "own.pt")
        return model, f"open_clip:own-{kind}@{tmp_path / 'own.pt'}"

    return make


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_prompts_by_the_tokenizer_of_the_family(with_tokenizer, kind):
    own, name = with_tokenizer(kind)
    backbone, tokenizer = load_backbone(name), open_clip.get_tokenizer(f"own-{kind}")
    encoder = build_prompt_encoder(backbone.text, NAMES, n_ctx=4)
    assert type(encoder) is (PromptEncoder if kind == "worldwide" else PaddedPromptEncoder)
    ctx = (10 * encoder.initial_context()).requires_grad_()
    assert_equal(encoder(ctx), own_text_features(own, tokenizer, NAMES, ctx), ctx)
    words = build_prompt_encoder(backbone.text, NAMES, ctx_init="a photo of a")
    texts = [f"a photo of a {name.replace('_', ' ')}." for name in NAMES]
    expected = own.encode_text(tokenizer(texts), normalize=True)
    torch.testing.assert_close(words(words.initial_context()), expected, atol=1e-5, rtol=0)
    assert backbone.text.tokenizer.words()[-1] == "the"


def test_a_tokenizer_with_more_words_than_the_embedding_has_rows(with_tokenizer):
    _, name = with_tokenizer("worldwide", vocab_size=10)
    refused(name, "The tokenizer has 19 tokens, but the text tower has embeddings of 10")


def test_a_tower_that_reads_at_another_token_than_the_tokenizers_end(with_tokenizer):
    _, name = with_tokenizer("worldwide", eos_id=5)
    refused(name, "reads the feature of a text at its token 5, and the tokenizer ends texts with 2")


def test_a_tower_that_reads_the_highest_token_where_that_is_a_word(with_tokenizer):
    _, name = with_tokenizer("worldwide", pool_type="argmax")
    refused(name, "reads the feature of a text at its token 18, and the tokenizer ends texts with 2")


def test_a_tokenizer_that_pads_at_the_left(with_tokenizer, tmp_path):
    _, name = with_tokenizer("siglip")
    config = json.loads((tmp_path / "tokenizer/tokenizer_config.json").read_text())
    (tmp_path / "tokenizer/tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))
    told = rf"The tokenizer of backbone {name}, {tmp_path}/tokenizer, makes 1, 1, 1, .* of 'dog', whose words are "
    refused(name, told + r"\[\d+\]: accepted is what begins with")


def test_a_tokenizer_that_may_not_be_downloaded(with_tokenizer, tmp_path, monkeypatch):
    from huggingface_hub import constants

    _, name = with_tokenizer("siglip")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(name, "could not be had: .* and HF_HUB_OFFLINE forbids to download it. Unset HF_HUB_OFFLINE")


def test_a_tokenizer_that_is_nowhere(with_tokenizer, tmp_path):
    _, name = with_tokenizer("siglip")
    for file in (tmp_path / "tokenizer").iterdir():
        file.unlink()
    refused(name, "The tokenizer of backbone open_clip:own-siglip@.* could not be had: .* check the network")


# ---- fingerprints ----


def test_the_same_clip_is_the_same_backbone_from_either_source(models, tmp_path):
    model, path = models("openais")
    ours = load_backbone(f"open_clip:openais@{path}")
    weights = {key: value for key, value in model.state_dict().items() if key != "attn_mask"}
    torch.save(weights, tmp_path / "openai.pt")
    theirs = load_backbone(str(tmp_path / "openai.pt"))
    assert ours.facts.family == "OpenCLIP" and ours.sha256 == theirs.sha256
    assert ours.image_sha256 == theirs.image_sha256


def test_another_number_of_heads_is_another_backbone(models, tmp_path):
    model, path = models("quickgelu")
    ours = load_backbone(f"open_clip:quickgelu@{path}")
    torch.save(model.state_dict(), tmp_path / "openai.pt")
    theirs = load_backbone(str(tmp_path / "openai.pt"))  # whose format does not say how many there are
    assert "heads=2" in ours.facts.computes and ours.sha256 != theirs.sha256
    assert computes(dict(model.state_dict()), text=Kind(heads=1)) == ""


def test_other_images_or_tokens_are_another_backbone(models, monkeypatch, with_tokenizer, tmp_path):
    _, path = models("quickgelu")
    tags = [{}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}, {"interpolation": "bilinear"}]
    tags += [{"resize_mode": "squash"}]
    known = {f"tag{i}": {"file": str(path), "quick_gelu": True, **tag} for i, tag in enumerate(tags)}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "quickgelu", known)
    backbones = [load_backbone(f"open_clip:quickgelu@{tag}") for tag in known]
    assert len({backbone.sha256 for backbone in backbones}) == len(tags)
    assert len({backbone.image_sha256 for backbone in backbones}) == 1  # features go by images as they are made

    _, name = with_tokenizer("siglip")
    first, again = load_backbone(name).sha256, load_backbone(name).sha256
    content = (tmp_path / "tokenizer/tokenizer.json").read_text()
    (tmp_path / "tokenizer/tokenizer.json").write_text(
        content.replace('"dog"', '"cat"').replace('"elephant"', '"dog"').replace('"cat"', '"elephant"')
    )
    assert first == again != load_backbone(name).sha256


def test_other_towers_of_the_same_weights_are_other_backbones(models):
    model, _ = models("quickgelu")
    weights = dict(model.state_dict())
    quick, exact, tanh = (build_clip(weights, Kind(kind), Kind(kind)) for kind in ("quick_gelu", "gelu", "gelu_tanh"))
    images = torch.randn(1, 3, 32, 32)
    features = [clip.encode_image(images) for clip in (quick, exact, tanh)]
    assert not torch.allclose(features[0], features[1], atol=1e-4)
    assert torch.allclose(features[1], features[2], atol=1e-2) and not torch.equal(features[1], features[2])
    assert len({computes(weights, Kind(kind), Kind(kind)) for kind in ("quick_gelu", "gelu", "gelu_tanh")}) == 3


def test_a_key_without_effect_makes_no_other_backbone(models, monkeypatch):
    _, path = models("mobile")
    first, name = load_backbone(f"open_clip:mobile@{path}"), f"open_clip:mobile@{path}"
    configs = open_clip.factory._MODEL_CONFIGS
    plain = configs["mobile"]

    def with_entries(vision=(), text=(), **config):
        changed = {**plain, **config, "vision_cfg": {**plain["vision_cfg"], **dict(vision)}}
        monkeypatch.setitem(configs, "mobile", {**changed, "text_cfg": {**plain["text_cfg"], **dict(text)}})
        return load_backbone(name).sha256

    assert (
        with_entries({"patch_dropout": 0.5, "pool_type": "tok"}, {"proj_type": "linear", "eos_id": 2}) == first.sha256
    )
    assert with_entries(text={"qk_norm": False, "block_type": None}, quick_gelu=False) == first.sha256
    assert with_entries(init_logit_scale=1.0) == first.sha256
    assert with_entries(quick_gelu=True) != first.sha256 != with_entries(text={"heads": 4})


def test_labels():
    assert backbone_label("open_clip:ViT-B-32@laion2b_s34b_b79k") == "ViT-B-32@laion2b_s34b_b79k"
    assert backbone_label("open_clip:ViT-B/32@some/folder/weights.safetensors") == "ViT-B-32@weights"


# ---- what open_clip says of weights ----


@pytest.mark.parametrize(("tag", "activation"), [({"quick_gelu": True}, "quick_gelu"), ({}, "gelu")])
def test_a_tag_says_how_its_weights_compute_and_see(models, monkeypatch, tag, activation):
    _, path = models("quickgelu")
    said = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.2, 0.2), "interpolation": "bilinear", "resize_mode": "squash"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "quickgelu", {"here": {"file": str(path), **said, **tag}})
    backbone = load_backbone("open_clip:quickgelu@here")
    assert backbone.facts.pixel_mean == (0.5, 0.4, 0.3) and backbone.facts.pixel_std == (0.2, 0.2, 0.2)
    assert backbone.facts.interpolation == "bilinear" and backbone.facts.resize_mode == "squash"
    assert f"activation='{activation}'" in backbone.facts.computes
    # Of a file, what all tags of its architecture have.
    of_file = load_backbone(f"open_clip:quickgelu@{path}")
    assert of_file.facts.pixel_mean == (0.5, 0.4, 0.3)
    assert (of_file.sha256 == backbone.sha256) == (activation == "quick_gelu")  # that of the architecture
    monkeypatch.undo()
    otherwise = load_backbone(f"open_clip:quickgelu@{path}")
    assert otherwise.facts.pixel_mean != (0.5, 0.4, 0.3)
    assert otherwise.sha256 != of_file.sha256 and otherwise.image_sha256 == of_file.image_sha256


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".safetensors"])
def test_formats_of_files(models, tmp_path, suffix):
    from safetensors.torch import save_file

    model, path = models("convnext")
    file, state = tmp_path / f"weights{suffix}", {f"module.{key}": value for key, value in model.state_dict().items()}
    if suffix == ".safetensors":
        save_file(state, file)
    else:
        torch.save({"state_dict": state, "epoch": 3}, file)
    assert load_backbone(f"open_clip:convnext@{file}").sha256 == load_backbone(f"open_clip:convnext@{path}").sha256


def with_tags(monkeypatch, name, **tags):
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, name, {tag: {"file": "x", **said} for tag, said in tags.items()}
    )


def test_a_file_computes_as_all_that_is_published_of_its_architecture(models, monkeypatch):
    own, path = models("plain")
    with_tags(monkeypatch, "plain", a={"quick_gelu": True}, b={})
    name = f"open_clip:plain@{path}"
    assert "activation='gelu'" in load_backbone(name).facts.computes
    with_tags(monkeypatch, "plain", a={"quick_gelu": True}, b={"quick_gelu": True})
    backbone = load_backbone(name)
    assert backbone.facts.computes == ""
    assert backbone.notes == (
        f"Note: backbone {name} is computed with QuickGELU, as all published weights of plain are (a, b).",
    )


def test_openais_archive_is_not_computed_with_gelu(models, tmp_path):
    from test_clip_backbone import scripted_archive

    model, _ = models("plain")
    scripted_archive(model.state_dict(), tmp_path / "clip.pt")
    refused(f"open_clip:plain@{tmp_path / 'clip.pt'}", rf"computed with GELU\. Name the file alone: {tmp_path}/clip.pt")
    scripted_archive(models("openais")[0].state_dict(), tmp_path / "quick.pt")
    assert load_backbone(f"open_clip:openais@{tmp_path / 'quick.pt'}").facts.computes == ""


def test_a_file_of_an_architecture_whose_tags_differ_says_what_is_taken(models, monkeypatch):
    _, path = models("openais")
    with_tags(monkeypatch, "openais", a={"mean": (0.5, 0.5, 0.5), "std": (0.4, 0.4, 0.4)}, b={"std": (0.4, 0.4, 0.4)})
    (note,) = load_backbone(f"open_clip:openais@{path}").notes
    assert "published weights of openais differ in how images are made (mean), and a file does not say it" in note
    assert "are taken mean (0.48145466," in note


# ---- bad input ----


def refused(name, match):
    with pytest.raises(UserError, match=match) as error:
        load_backbone(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("open_clip:ViT-B-32", "does not say both architecture and weights; accepted: open_clip:<architecture>@<pre"),
        ("open_clip:@x.pt", "does not say both"),
        ("open_clip:ViT-B-23@laion2b_s34b_b79k", r"has no architecture 'ViT-B-23'; close to it: ViT-B-32"),
        ("open_clip:qqq@x.pt", r"has no architecture 'qqq'\. There are \d+, such as ViT-B-32"),
        ("open_clip:ViT-L-14@laion2b_s34b_b79k", r"ViT-L-14 has no pretrained tag 'laion2b_s34b_b79k'; it has openai,"),
        ("open_clip:gelu@laion", "no pretrained tag 'laion'; none is published of it, so name a file"),
        ("open_clip:ViT-B-32@no/such.pt", r"there is no file no/such.pt\. Tags of ViT-B-32: openai, "),
        ("open_clip:roberta-ViT-B-32@laion2b_s12b_b32k", "its text tower is roberta-base, a model of the transformers"),
        ("open_clip:another-transformer@x.pt", "cannot be taken: its text tower is roberta-base"),
        ("open_clip:coca_ViT-B-32@laion2b_s13b_b90k", "cannot be taken: it is a CoCa, whose text tower"),
        ("open_clip:captions@x.pt", "it is a CoCa"),
        ("open_clip:norm-in-mlp@x.pt", r"blocks of another kind than CLIP's \(scale_fc True\)"),
        ("open_clip:of-tomorrow@x.pt", "pools by 'median', which is not one of argmax, eos, last, first"),
        ("open_clip:oblong@x.pt", "its images are no squares, but 32 x 64"),
    ],
)
def test_names_that_are_none(name, message):
    refused(name, message)


def test_a_file_of_another_architecture(models, tmp_path):
    refused(
        f"open_clip:gelu@{models('quickgelu')[1]}",
        r"is of another architecture than gelu: positional_embedding is \(77, 64\), and that of gelu \(30, 64\)",
    )
    refused(f"open_clip:convnext@{models('gelu')[1]}", r"another architecture than convnext: .* it lacks \d+ of \d+ ")
    state = dict(models("quickgelu")[0].state_dict(), more=torch.zeros(1))
    torch.save(state, tmp_path / "more.pt")
    refused(f"open_clip:quickgelu@{tmp_path / 'more.pt'}", r"it has 1 others \(more\)")


def test_files_of_other_kinds(models, tmp_path):
    state = models("quickgelu")[0].state_dict()
    torch.save(state, tmp_path / "pickle.safetensors")
    refused(
        f"open_clip:quickgelu@{tmp_path / 'pickle.safetensors'}",
        r"is a pickle, as torch.save writes, that is named like safetensors",
    )
    (tmp_path / "broken.safetensors").write_bytes(b"nothing of the kind")
    refused(f"open_clip:quickgelu@{tmp_path / 'broken.safetensors'}", "is damaged")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    refused(f"open_clip:quickgelu@{tmp_path / 'list.pt'}", r"holds a list\. Accepted: a state_dict of OpenCLIP's model")
    (tmp_path / "weights.npz").write_bytes(b"")
    refused(f"open_clip:quickgelu@{tmp_path / 'weights.npz'}", "is of no format that is read")
    torch.save(dict(state, token_embedding=Evil()), tmp_path / "evil.pt")
    refused(f"open_clip:quickgelu@{tmp_path / 'evil.pt'}", "might run code when opened")
    wrong = dict(deepcopy(state))
    wrong["logit_scale"] = torch.tensor(float("nan"))
    torch.save(wrong, tmp_path / "nan.pt")
    refused(f"open_clip:quickgelu@{tmp_path / 'nan.pt'}", "1 of the 1 numbers of logit_scale are not finite")


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('code of the file has run')",)


def test_a_vocabulary_that_was_cut(models):
    config = deepcopy(ALL["quickgelu"])
    config["text_cfg"]["vocab_size"] = 1000
    model = open_clip.model.CLIP(**config)
    with pytest.raises(UserError, match="The tokenizer has 49,408 tokens, but the text tower has embeddings of 1,000"):
        TextTower.of(model)


def test_a_download_that_fails(monkeypatch):
    def fails(tag, **where):
        raise OSError("no network here")

    monkeypatch.setattr(open_clip, "download_pretrained", fails)
    refused("open_clip:ViT-B-32@laion2b_s34b_b79k", r"Could not download backbone open_clip:ViT-B-32@.*no network here")


def test_a_tag_out_of_the_hubs_cache(models, tmp_path, monkeypatch):
    from huggingface_hub import constants
    from safetensors.torch import save_file

    model, path = models("quickgelu")
    (tmp_path / "made").mkdir()
    save_file(model.state_dict(), tmp_path / "made/open_clip_model.safetensors")
    put_in_cache(tmp_path / "made", tmp_path / "cache", "org/small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    tags = {"small": {"hf_hub": "org/small/", "quick_gelu": True}, "other": {"hf_hub": "org/other/"}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "quickgelu", tags)
    assert load_backbone("open_clip:quickgelu@small").sha256 == load_backbone(f"open_clip:quickgelu@{path}").sha256
    told = (
        r"Could not download backbone open_clip:quickgelu@other from org/other/: .*\. It is not, or not whole, in the "
    )
    refused("open_clip:quickgelu@other", told + "cache .*, and HF_HUB_OFFLINE forbids .*, or name a file that you have")


@pytest.mark.parametrize(
    ("place", "file"),
    [
        ("org/small/", "open_clip_model.safetensors"),
        ("org/small/", "open_clip_pytorch_model.bin"),
        ("org/small/weights.pt", "weights.pt"),
        ("org/small/weights.bin", "weights.safetensors"),
    ],
)
def test_a_tag_that_the_cache_has_is_not_asked_for(models, tmp_path, monkeypatch, place, file):
    """Of whichever form, and though there may be newer ones; without a network asking takes half a minute."""
    from huggingface_hub import constants
    from safetensors.torch import save_file

    def asked(tag, **where):
        pytest.fail(f"the hub is asked for {tag}")

    model, path = models("quickgelu")
    (tmp_path / "made").mkdir()
    (save_file if file.endswith(".safetensors") else torch.save)(model.state_dict(), tmp_path / "made" / file)
    put_in_cache(tmp_path / "made", tmp_path / "cache", "org/small")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(open_clip, "download_pretrained", asked)
    tags = {"small": {"hf_hub": place, "quick_gelu": True}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "quickgelu", tags)
    assert load_backbone("open_clip:quickgelu@small").sha256 == load_backbone(f"open_clip:quickgelu@{path}").sha256


def test_which_of_open_clips_architectures_are_refused():
    known = [name for name in open_clip.list_models() if name not in {**ALL, **NOT_PROMPTED}]
    known = [name for name in known if not name.startswith(("own-", "tiny-", "small-", "all-"))]  # of other tests
    others = {name for name in known if why_not_prompted(open_clip.get_model_config(name))}
    assert {name.split("-")[0].split("_")[0] for name in others} == {"coca", "mt5", "nllb", "roberta", "xlm"}
    assert {"ViT-B-16-SigLIP", "EVA02-B-16", "MobileCLIP-S1", "ViT-H-14-worldwide", "PE-Core-B-16"} <= {*known} - others


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    refused("open_clip:ViT-B-32@laion2b_s34b_b79k", "open_clip_torch, which is not installed: pip install open_clip_to")


# ---- precisions ----


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *(pytest.param("cpu", precision) for precision in ("fp16", "bf16", "amp")),
        *(pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in PRECISIONS),
    ],
)
@pytest.mark.parametrize("name", ["gelu", "layer-scale", "convnext", "sigmoid"])
def test_precisions(models, monkeypatch, name, device, precision):
    monkeypatch.setattr("trainers.modules.clip_backbone.effective_precision", lambda precision, device: precision)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    where = f"open_clip:{name}@{models(name)[1]}"
    single, other = load_backbone(where), load_backbone(where, device, precision)
    halves = {"fp16": torch.float16, "bf16": torch.bfloat16}
    assert other.text.dtype == halves.get(precision, torch.float32)
    assert other.text.ln_final.weight.dtype == other.model.logit_scale.dtype == torch.float32
    assert other.sha256 == single.sha256
    images = torch.randn(2, 3, single.image_size, single.image_size)
    tolerance = 1e-5 if precision == "fp32" else 0.03
    features = [ImageFeatures(backbone).encode(images).cpu() for backbone in (single, other)]
    torch.testing.assert_close(features[0], features[1], atol=tolerance, rtol=0)
    texts = []
    for backbone in (single, other):
        encoder = build_prompt_encoder(backbone.text, NAMES, ctx_init="a photo of a")
        ctx = encoder.initial_context().requires_grad_()
        with backbone.autocast():
            texts.append(encoder(ctx).float().cpu())
        texts[-1].sum().backward()
        assert ctx.grad.isfinite().all() and ctx.grad.abs().max() > 0
    torch.testing.assert_close(*texts, atol=tolerance, rtol=0)
