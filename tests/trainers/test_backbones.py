"""CLIPs of each library against the library's own model, with random weights of small size."""

import json
from typing import NamedTuple

import open_clip
import pytest
import torch
from reference import plain_image_features

from common.errors import UserError
from trainers.base.image_features import ImageFeatures
from trainers.modules.clip.backbone import has_vit, load_backbone
from trainers.modules.prompt_encoder import PromptEncoder, build_prompt_encoder
from trainers.modules.prompted_vit import PromptedViT

NAMES = ["dog", "giraffe", "hockey_puck", "black and white guitar", "elephant"]
IMAGES = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 8}
TEXTS = {"width": 64, "heads": 2, "layers": 3}
CONVNEXT = {"timm_model_name": "convnext_atto", "timm_pool": "", "image_size": 64, "timm_proj": "mlp"}
SIGLIP = {
    "no_causal_mask": True,
    "proj_bias": True,
    "pool_type": "last",
    "norm_kwargs": {"eps": 1e-6},
    "act_kwargs": {"approximate": "tanh"},
    "context_length": 24,
}


def family(vision=(), text=(), **config):
    """An architecture as a config of open_clip."""
    return {"embed_dim": 32, "vision_cfg": {**IMAGES, **dict(vision)}, "text_cfg": {**TEXTS, **dict(text)}, **config}


CUT = {  # causal and read at EOS
    "quickgelu": family(quick_gelu=True),
    "gelu": family({"head_width": 16, "mlp_ratio": 2.5}, {"context_length": 30, "mlp_ratio": 3.0}),
    "resnet": family({"layers": [1, 1, 1, 1], "width": 8, "patch_size": None}),
    "other-eps": family({"norm_kwargs": {"eps": 1e-3}}, {"norm_kwargs": {"eps": 1e-4}, "act_kwargs": {}}),
    "odd-image-size": family({"image_size": 35}, {"heads": 1}, nonscalar_logit_scale=True),
    "layer-scale": family({"ls_init_value": 0.3}, {"ls_init_value": 0.3}),
    "average-pool": family({"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}),
    "convnext": {**family(), "vision_cfg": CONVNEXT},
    "named-eos": family(text={"pool_type": "eos", "eos_id": 49407, "proj_bias": True}, custom_text=True),
}
NOT_CUT = {
    "reads-first": family(text={"pool_type": "first"}, custom_text=True),
    "not-causal": family(text={"no_causal_mask": True}, custom_text=True),
    "sigmoid": family(text=SIGLIP, custom_text=True, init_logit_bias=-10),
}
ALL = {**CUT, **NOT_CUT}
PROMPTED = ("quickgelu", "gelu", "other-eps", "odd-image-size", "named-eos", *NOT_CUT)


def shake(model):
    """Freeze a model, and move biases and norms away from 0 and 1, where mistakes could hide."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """models(family) -> (open_clip's own model, the name of a backbone with the same weights)."""
    folder, made = tmp_path_factory.mktemp("architectures"), {}
    for name, config in ALL.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)

    def of(name):
        if name not in made:
            torch.manual_seed(0)
            model = shake(open_clip.create_model(name))
            torch.save(model.state_dict(), folder / f"{name}.pt")
            made[name] = model, f"open_clip:{name}@{folder / name}.pt"
        return made[name]

    return of


def own_text_features(model, tokenizer, ctx, position="end", deep=()):
    """Text features (C, E) by a model's own code over all positions; hooks put in a context (n, D) or (C, n, D)."""
    text, n, names = getattr(model, "text", model), ctx.shape[-2], [name.replace("_", " ") for name in NAMES]
    ids = tokenizer([" ".join(["x"] * n) + f" {name}." for name in names], text.context_length)
    before = {"end": n, "middle": n // 2, "front": 0}[position]

    def put_in(module, inputs, embedded):
        rows = []
        for row, own, name in zip(embedded, ctx.expand(len(names), -1, -1), names, strict=True):
            name, rest = row[1 + n :].tensor_split([len(tokenizer.encode(name))])
            rows.append(torch.cat([row[:1], own[:before], name, own[before:], rest]))
        return torch.stack(rows)

    def put_in_layer(vectors):
        def hook(module, inputs):
            x = inputs[0]
            return torch.cat([x[:, :1], vectors.expand(len(x), -1, -1), x[:, 1 + n :]], dim=1), *inputs[1:]

        return hook

    hooks = [text.token_embedding.register_forward_hook(put_in)]
    for block, vectors in zip(text.transformer.resblocks[1:], deep, strict=False):
        hooks.append(block.register_forward_pre_hook(put_in_layer(vectors)))
    features = model.encode_text(ids, normalize=True)
    for hook in hooks:
        hook.remove()
    return features


def assert_equal(ours, own, *inputs):
    """Values within 1e-5, and gradients of a random combination of them."""
    torch.testing.assert_close(ours, own, atol=1e-5, rtol=0)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(3))
    gradients = [torch.autograd.grad((features * weights).sum(), inputs) for features in (ours, own)]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_features_and_gradients_equal_open_clips(models, name):
    own, path = models(name)
    backbone = load_backbone(path)
    assert backbone.image_size == ALL[name]["vision_cfg"]["image_size"]
    images = torch.randn(2, 3, backbone.image_size, backbone.image_size)
    torch.testing.assert_close(backbone.encode_image(images), own.encode_image(images), atol=1e-5, rtol=0)
    encoder = build_prompt_encoder(backbone.text, NAMES, n_ctx=4)
    assert (type(encoder) is PromptEncoder) == (name in CUT)
    ctx = (10 * encoder.initial_context()).requires_grad_()
    assert_equal(encoder(ctx), own_text_features(own, open_clip.get_tokenizer(name), ctx), ctx)
    assert backbone.logit_scale == own.logit_scale.exp()
    assert backbone.logit_bias == own.logit_bias


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("name", ["gelu", "sigmoid"])
def test_contexts_of_classes_images_and_layers_equal_open_clips(models, name, position):
    own, path = models(name)
    tower, tokenizer = load_backbone(path).text, open_clip.get_tokenizer(name)
    torch.manual_seed(1)
    encoder = build_prompt_encoder(tower, NAMES, class_specific=True, n_ctx=3, class_token_position=position)
    ctx = (10 * encoder.initial_context()).requires_grad_()
    assert_equal(encoder(ctx), own_text_features(own, tokenizer, ctx, position), ctx)
    encoder = build_prompt_encoder(tower, NAMES, n_ctx=3, class_token_position=position, memory_mb=2)
    ctx = torch.randn(3, 3, tower.width, requires_grad=True)
    assert_equal(encoder(ctx), torch.stack([own_text_features(own, tokenizer, c, position) for c in ctx]), ctx)
    if position == "end":
        ctx, deep = ctx.detach()[0].requires_grad_(), encoder.initial_deep(3).mul(10).requires_grad_()
        assert_equal(encoder(ctx, deep), own_text_features(own, tokenizer, ctx, deep=deep), ctx, deep)


class Plain(NamedTuple):
    """The attributes that `plain_image_features` reads."""

    visual: torch.nn.Module
    dtype: torch.dtype = torch.float32


@pytest.mark.parametrize("name", ALL)
def test_image_prompts_equal_the_plain_tower_or_raise(models, name):
    backbone = load_backbone(models(name)[1])
    assert backbone.is_vit == has_vit(backbone.name) == (name in PROMPTED)
    if name not in PROMPTED:
        with pytest.raises(UserError, match="OpenAI's layout"):
            PromptedViT(backbone.visual)
        return
    tower, images = PromptedViT(backbone.visual), torch.randn(2, 3, 32, 32)
    tokens, deep = tower.initial_tokens(3).requires_grad_(), tower.initial_deep(2, 3).requires_grad_()
    plain = plain_image_features(Plain(backbone.visual), images, tokens, deep)
    assert_equal(tower(images, tokens, deep), plain, tokens, deep)


@pytest.mark.parametrize(
    ("device", "precision"),
    [
        *(pytest.param("cpu", precision) for precision in ("fp16", "amp")),
        *(pytest.param("cuda", precision, marks=pytest.mark.gpu) for precision in ("fp32", "fp16", "bf16", "amp")),
    ],
)
@pytest.mark.parametrize("name", ["layer-scale", "convnext", "sigmoid"])
def test_precisions_stay_close_to_fp32(models, monkeypatch, name, device, precision):
    monkeypatch.setattr("trainers.modules.clip.backbone.effective_precision", lambda precision, device: precision)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    single, other = load_backbone(models(name)[1]), load_backbone(models(name)[1], device, precision)
    assert other.sha256 == single.sha256
    images, found = torch.randn(2, 3, single.image_size, single.image_size), []
    for backbone in (single, other):
        encoder = build_prompt_encoder(backbone.text, NAMES, ctx_init="a photo of a")
        ctx = encoder.initial_context().requires_grad_()
        with backbone.autocast():
            texts = encoder(ctx).float()
        texts.sum().backward()
        assert ctx.grad.isfinite().all() and ctx.grad.abs().max() > 0
        found.append((ImageFeatures(backbone).encode(images).cpu(), texts.cpu()))
    tolerance = 1e-4 if precision == "fp32" else 0.03
    torch.testing.assert_close(*found, atol=tolerance, rtol=0)


# ---- Hugging Face ----


@pytest.fixture
def saved(tmp_path):
    """saved(...) -> (a CLIPModel of transformers, its folder); "text" and "vision" change sections of the config."""
    transformers = pytest.importorskip("transformers", reason="needs transformers, which loads hf: backbones")

    def make(text=(), vision=(), **how):
        sizes = {"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.CLIPConfig(
            text_config={**sizes, "eos_token_id": 49407, **dict(text)},
            vision_config={**sizes, "image_size": 35, "patch_size": 8, **dict(vision)},
            projection_dim=32,
        )
        torch.manual_seed(0)
        model = shake(transformers.CLIPModel(config))
        model.save_pretrained(tmp_path / "model", **how)
        return model, tmp_path / "model"

    return make


@pytest.mark.parametrize("act", ["quick_gelu", "gelu_pytorch_tanh"])
def test_features_equal_transformers(saved, act):
    own, folder = saved({"hidden_act": act, "layer_norm_eps": 1e-4}, {"hidden_act": act}, max_shard_size="1MB")
    assert len([*folder.glob("model-*.safetensors")]) > 1
    backbone = load_backbone(f"hf:{folder}")
    assert backbone.image_size == 35 and backbone.is_vit and has_vit(backbone.name)
    images = torch.randn(2, 3, 35, 35)
    theirs = own.get_image_features(images).pooler_output
    torch.testing.assert_close(backbone.encode_image(images), theirs, atol=1e-5, rtol=0)
    encoder = build_prompt_encoder(backbone.text, NAMES, ctx_init="a photo of a")
    ids = open_clip.tokenize([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    theirs = torch.nn.functional.normalize(own.get_text_features(ids).pooler_output, dim=-1)
    torch.testing.assert_close(encoder(encoder.initial_context()), theirs, atol=1e-5, rtol=0)
    assert backbone.info.notes == (
        f"Note: hf:{folder} has no preprocessor_config.json. Images are made as for OpenAI's CLIPs.",
    )


def test_preprocessing_and_vocabulary_of_a_folder_are_used(saved):
    from transformers import CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", "!", *"adgo", *(f"{sign}</w>" for sign in "adgo.!"), "do", "dog</w>"]
    own, folder = saved({"vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0})
    vocabulary = {word: i for i, word in enumerate(words)}
    CLIPTokenizer(vocabulary, [("d", "o"), ("do", "g</w>")]).save_pretrained(folder)
    images = {"image_mean": [0.5] * 3, "resample": 2, "size": {"height": 35, "width": 35}, "do_center_crop": False}
    (folder / "preprocessor_config.json").write_text(json.dumps(images))
    backbone = load_backbone(f"hf:{folder}")
    info = backbone.info
    assert (info.pixel_mean, info.interpolation, info.resize_mode) == ((0.5,) * 3, "bilinear", "squash")
    tokenizer = backbone.text.tokenizer
    assert (tokenizer.before, tokenizer.after, tokenizer.encode("dog")) == ((0,), (1,), [words.index("dog</w>")])
    encoder = build_prompt_encoder(backbone.text, ["dog", "god"], ctx_init="a dog")
    ids = CLIPTokenizer.from_pretrained(folder)(["a dog dog.", "a dog god."], padding=True, return_tensors="pt")
    theirs = torch.nn.functional.normalize(own.get_text_features(**ids).pooler_output, dim=-1)
    torch.testing.assert_close(encoder(encoder.initial_context()), theirs, atol=1e-5, rtol=0)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="has no tokenizer"):
        load_backbone(f"hf:{folder}")


@pytest.mark.parametrize("kind", ["siglip", "worldwide"])
def test_tokenizer_of_transformers_in_an_open_clip_model(tmp_path, kind):
    pytest.importorskip("transformers", reason="needs transformers, by which open_clip reads these tokenizers")
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", ".", "a", "photo", "of", "black", "dog", "elephant", "giraffe", "guitar"]
    around = {"siglip": "$A </s>", "worldwide": "<s> $A </s>"}[kind]
    text = {"siglip": {**SIGLIP, "context_length": 20}, "worldwide": {"pool_type": "eos", "eos_id": 2}}[kind]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=[("<s>", 1), ("</s>", 2)])
    text = {**text, "vocab_size": 13, "hf_tokenizer_name": "a/b", "tokenizer_kwargs": {"clean": "canonicalize"}}
    config = {"model_cfg": family(text=text, custom_text=True), "preprocess_cfg": {"mean": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>").save_pretrained(tmp_path)
    own = shake(open_clip.CustomTextCLIP(**{key: value for key, value in config["model_cfg"].items() if key[0] != "c"}))
    torch.save(own.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    backbone = load_backbone(f"open_clip:local-dir:{tmp_path}")
    assert backbone.info.pixel_mean == (0.5,) * 3 and backbone.text.can_be_cut == (kind == "worldwide")
    encoder = build_prompt_encoder(backbone.text, ["dog", "black_guitar"], ctx_init="a photo of a")
    ids = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(["a photo of a dog.", "a photo of a black guitar."])
    theirs = own.encode_text(ids, normalize=True)
    torch.testing.assert_close(encoder(encoder.initial_context()), theirs, atol=1e-5, rtol=0)
    first = backbone.sha256
    assert load_backbone(backbone.name).sha256 == first
    content = (tmp_path / "tokenizer.json").read_text().replace('"dog"', '"cow"').replace('"giraffe"', '"dog"')
    (tmp_path / "tokenizer.json").write_text(content)
    assert load_backbone(backbone.name).sha256 != first


# ---- one CLIP, several sources ----


def test_one_clip_in_each_format_is_one_backbone(saved, tmp_path):
    _, folder = saved(
        {"num_attention_heads": 1}, {"num_attention_heads": 1, "image_size": 32, "intermediate_size": 256}
    )
    hf = load_backbone(f"hf:{folder}")
    torch.save(hf.model.state_dict(), tmp_path / "clip.pt")
    openai = load_backbone(str(tmp_path / "clip.pt"))
    config = family(text={"heads": 1, "layers": 2, "mlp_ratio": 100 / 64}, quick_gelu=True)
    (tmp_path / "one-clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "one-clip.json")
    other, images = load_backbone(f"open_clip:one-clip@{tmp_path / 'clip.pt'}"), torch.randn(2, 3, 32, 32)
    assert hf.sha256 == other.sha256 == openai.sha256
    assert torch.equal(hf.encode_image(images), openai.encode_image(images))
    assert torch.equal(other.encode_image(images), openai.encode_image(images))
    assert [one.info.family for one in (openai, hf, other)] == ["OpenAI", "Hugging Face", "OpenCLIP"]


def test_tag_sets_activation_and_preprocessing(models, monkeypatch):
    path = models("gelu")[1].partition("@")[2]
    facts = {"mean": (0.5, 0.4, 0.3), "std": (0.2,) * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    tags = {"quick": {"file": path, "quick_gelu": True, **facts}, "plain": {"file": path, **facts}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "gelu", tags)
    # A file gets the facts that all tags of its architecture share.
    quick, plain, file = (load_backbone(f"open_clip:gelu@{weights}") for weights in ("quick", "plain", path))
    for backbone in (quick, plain, file):
        assert (*backbone.info.preprocessing.values(),) == (*facts.values(), 0)
    assert quick.sha256 != plain.sha256 == file.sha256
