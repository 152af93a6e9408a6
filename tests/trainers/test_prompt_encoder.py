import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plain_text_features, tiny_clip

from common.errors import UserError
from trainers.modules.clip.backbone import to_half
from trainers.modules.prompt_encoder import PromptEncoder

WORDS = [
    "dog",
    "cat",
    "house",
    "guitar",
    "person",
    "alarm",
    "clock",
    "flip-flops",
    "t-shirt",
    "7up",
    "St._Basil's_Cathedral",
    "hockey_puck",
    "24",
]
WORDS += ["o'clock", "R2-D2", "rock'n'roll", "water-slide!!", "(sketch)"]


def random_names(count, seed):
    rng = random.Random(seed)
    return ["_".join(rng.choices(WORDS, k=rng.choice([1, 1, 1, 2, 2, 3, 5, 8]))) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip()


def gradients(features, ctx, weights):
    return torch.autograd.grad((features * weights).sum(), ctx)[0]


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize(("n_cls", "n_ctx"), [(1, 1), (2, 4), (7, 16), (65, 5), (345, 4)])
def test_values_and_gradients_equal_the_plain_tower(clip_model, n_cls, n_ctx, position, class_specific):
    names = random_names(n_cls, seed=n_cls)
    encoder = PromptEncoder(clip_model, names, n_ctx, class_token_position=position, class_specific=class_specific)
    torch.manual_seed(1)
    ctx = (30 * encoder.initial_context()).requires_grad_()
    features = encoder(ctx)
    expected = plain_text_features(clip_model, names, ctx, position)
    assert features.shape == (n_cls, 32)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    torch.testing.assert_close(
        gradients(features, ctx, weights), gradients(expected, ctx, weights), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("position", ["end", "middle", "front"])
def test_each_context_of_a_batch_has_its_own_features(clip_model, position):
    names = random_names(9, seed=5)
    encoder = PromptEncoder(clip_model, names, 4, class_token_position=position)
    contexts = torch.randn(5, 4, encoder.ctx_dim, requires_grad=True)
    features = encoder(contexts)
    expected = torch.stack([plain_text_features(clip_model, names, ctx, position) for ctx in contexts])
    assert features.shape == (5, 9, 32)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    torch.testing.assert_close(
        gradients(features, contexts, weights), gradients(expected, contexts, weights), atol=1e-5, rtol=1e-4
    )


def megabytes_saved(encoder, ctx, deep=()):
    """Size of the tensors that a forward pass saves for the backward pass, without the frozen weights."""
    tensors = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            tensors[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(ctx, deep)
    return sum(tensors.values()) / 2**20


@pytest.mark.parametrize("class_specific", [False, True])
@pytest.mark.parametrize("position", ["end", "middle"])
def test_memory_limit_changes_no_numbers(clip_model, position, class_specific):
    torch.manual_seed(1)
    settings = {"n_ctx": 4, "class_token_position": position, "class_specific": class_specific}
    model, names = copy.deepcopy(clip_model).double(), random_names(40, seed=6)  # sums in another order are equal
    unlimited, chunked = (PromptEncoder(model, names, **settings, memory_mb=memory_mb) for memory_mb in (2048, 2))
    ctx, deep = (30 * unlimited.initial_context()).requires_grad_(), []
    if position == "end" and not class_specific:
        deep = [(30 * vectors).requires_grad_() for vectors in unlimited.initial_deep(3)]
    weights = torch.randn(40, 32)
    ours, theirs = (
        torch.autograd.grad((encoder(ctx, deep) * weights).sum(), [ctx, *deep]) for encoder in (chunked, unlimited)
    )
    torch.testing.assert_close(chunked(ctx, deep), unlimited(ctx, deep), atol=1e-10, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    assert megabytes_saved(chunked, ctx, deep) < megabytes_saved(unlimited, ctx, deep)
    if not class_specific:
        contexts = torch.randn(6, 4, unlimited.ctx_dim, dtype=torch.float64)
        torch.testing.assert_close(chunked(contexts), unlimited(contexts), atol=1e-10, rtol=0)


@pytest.mark.parametrize(("n_cls", "n_contexts", "depth"), [(345, 1, 1), (345, 1, 6), (40, 32, 1)])
def test_memory_of_training_stays_within_the_limit(n_cls, n_contexts, depth):
    clip_model, names, saved = tiny_clip(layers=6), random_names(n_cls, seed=7), []
    for memory_mb in (8, 4096):
        encoder = PromptEncoder(clip_model, names, 4, memory_mb=memory_mb)
        ctx = torch.randn(n_contexts, 4, encoder.ctx_dim, requires_grad=True)
        saved.append(megabytes_saved(encoder, ctx, encoder.initial_deep(depth).requires_grad_()))
    assert saved[0] < 8 and saved[1] > 16


def learning(encoder, depth):
    """Learned contexts: a shallow one, and deep ones of layers 2 to depth."""
    torch.manual_seed(depth)
    return [(30 * vectors).requires_grad_() for vectors in (encoder.initial_context(), *encoder.initial_deep(depth))]


def assert_equals_the_plain_tower(clip_model, names, encoder, depth, fixed_words=""):
    ctx, *deep = learning(encoder, depth)
    features = encoder(ctx, deep)
    expected = plain_text_features(clip_model, [f"{fixed_words} {name}" for name in names], ctx, deep=deep)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    ours, theirs = ([*torch.autograd.grad((found * weights).sum(), [ctx, *deep])] for found in (features, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def two_headed():
    return tiny_clip(width=128, layers=4)


@settings(max_examples=20)
@given(n_cls=st.integers(1, 40), depth=st.integers(1, 4), n_learned=st.integers(1, 4), n_fixed=st.integers(0, 3))
def test_deep_contexts_equal_the_plain_tower(two_headed, n_cls, depth, n_learned, n_fixed):
    words = ["a", "very", "good", "photo", "of", "a", "big"][: n_learned + n_fixed]
    names = random_names(n_cls, seed=n_cls)
    encoder = PromptEncoder(two_headed, names, ctx_init=" ".join(words), n_learned=n_learned)
    assert encoder.n_ctx == n_learned
    assert_equals_the_plain_tower(two_headed, names, encoder, depth, " ".join(words[n_learned:]))


@pytest.mark.parametrize(("n_cls", "n_contexts"), [(9, 5), (65, 2), (345, 1)])
def test_deep_contexts_are_shared_by_contexts_of_a_batch(two_headed, n_cls, n_contexts):
    names = random_names(n_cls, seed=5)
    encoder = PromptEncoder(two_headed, names, ctx_init="a photo of a", n_learned=3)
    contexts, deep = torch.randn(n_contexts, 3, 128), torch.randn(2, 3, 128, requires_grad=True)
    expected = torch.stack([plain_text_features(two_headed, [f"a {n}" for n in names], c, deep=deep) for c in contexts])
    features = encoder(contexts, deep)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    torch.testing.assert_close(
        gradients(features, deep, weights), gradients(expected, deep, weights), atol=1e-5, rtol=1e-4
    )


def test_initial_context_has_the_embeddings_of_its_words(clip_model):
    encoder = PromptEncoder(clip_model, ["dog"], n_ctx=16, ctx_init="a_photo of a")
    assert encoder.n_ctx == 4
    from clip.clip import _tokenizer as tokenizer

    expected = clip_model.token_embedding(torch.tensor(tokenizer.encode("a photo of a")))
    torch.testing.assert_close(encoder.initial_context(), expected)
    some = PromptEncoder(clip_model, ["dog"], n_ctx=16, ctx_init="a photo of a", n_learned=2)
    torch.testing.assert_close(some.initial_context(), expected[:2])
    drawn = PromptEncoder(clip_model, ["dog"], n_ctx=16).initial_context()
    assert drawn.shape == (16, 64)
    assert 0.015 < drawn.std() < 0.025
    each = PromptEncoder(clip_model, ["dog", "cat"], n_ctx=3, class_specific=True).initial_context()
    assert each.shape == (2, 3, 64)
    assert not torch.equal(each[0], each[1])
    assert PromptEncoder(clip_model, ["dog"], n_ctx=16).initial_deep(3).shape == (2, 16, 64)


def test_initial_context_words_give_zero_shot_clip(clip_model):
    import clip

    names = ["dog", "alarm clock"]
    encoder = PromptEncoder(clip_model, names, ctx_init="a photo of a")
    expected = clip_model.encode_text(clip.tokenize([f"a photo of a {name}." for name in names]))
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(encoder(encoder.initial_context()), expected, atol=1e-5, rtol=0)
    fewer = PromptEncoder(clip_model, names, ctx_init="a photo of a", n_learned=2)
    torch.testing.assert_close(fewer(fewer.initial_context()), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, "autocast"])
def test_other_precisions_stay_close(clip_model, precision):
    names, ctx = random_names(12, seed=8), torch.randn(4, 64, requires_grad=True)
    expected = PromptEncoder(clip_model, names, 4)(ctx)
    if precision == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = PromptEncoder(clip_model, names, 4)(ctx)
    else:
        half = tiny_clip()
        to_half(half, precision)
        features = PromptEncoder(half, names, 4)(ctx)
        assert features.dtype == precision
    assert torch.cosine_similarity(features.float(), expected, dim=-1).min() > 0.995
    weights = torch.randn_like(expected)
    ours, theirs = gradients(features.float(), ctx, weights), gradients(expected, ctx, weights)
    assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.97


@pytest.mark.parametrize(
    ("settings", "ctx", "deep", "message"),
    [
        ({}, (5, 64), (), r"\(5, 64\).*accepted: .*\(4, 64\)"),
        ({"class_specific": True}, (3, 4, 64), (), "accepted"),
        ({}, (4, 64), [(4, 64), (3, 64)], r"\(3, 64\).*accepted: .*\(4, 64\) in deeper layers"),
        ({"class_specific": True}, (2, 4, 64), [(4, 64)], "need class_token_position='end'"),
        ({"class_token_position": "middle"}, (4, 64), [(4, 64)], "need class_token_position='end'"),
    ],
)
def test_wrong_context_shapes_raise(clip_model, settings, ctx, deep, message):
    with pytest.raises(ValueError, match=message):
        PromptEncoder(clip_model, ["dog", "cat"], 4, **settings)(torch.zeros(ctx), [torch.zeros(s) for s in deep])


def test_prompt_encoder_depth_above_the_layers_raises(clip_model):
    encoder = PromptEncoder(clip_model, ["dog", "cat"], 4)
    message = "depth of 4 does not fit the text tower, which has 3 layers.*PROMPT_DEPTH to 1 .* to 3"
    with pytest.raises(UserError, match=message):
        encoder.initial_deep(4)
    with pytest.raises(UserError, match=message):
        encoder(torch.zeros(4, 64), torch.zeros(3, 4, 64))
    with pytest.raises(UserError, match="depth of 0"):
        encoder.initial_deep(0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classnames": ["dog " * 80]}, r"takes \d+ tokens .* but the text tower has 71 left of 77"),
        ({"classnames": ["dog", "_"]}, "'_' has no word in it"),
        ({"classnames": []}, "list of class names is empty"),
        ({"class_token_position": "start"}, "'start'. Set it to one of end, middle, front"),
        ({"n_ctx": 0}, "N_CTX is 0"),
        ({"ctx_init": "a photo of a", "n_learned": 5}, "N_CTX is 5. Set it to 1 to 4, the number of tokens"),
        ({"memory_mb": 0}, r"TEST.MEMORY_MB 0: too small for one prompt. Set it to \d+"),
    ],
)
def test_prompt_encoder_errors_name_the_fix(clip_model, settings, message):
    with pytest.raises(UserError, match=message):
        PromptEncoder(clip_model, **{"classnames": ["dog"], "n_ctx": 4, **settings})
