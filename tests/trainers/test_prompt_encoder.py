"""The prompt encoder against the text tower over all 77 positions, and its errors."""

import random

import clip
import pytest
import torch
from clip.clip import _tokenizer as tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from reference import plain_text_features, tiny_clip, unit

from common.errors import UserError
from trainers.modules.prompt_encoder import PromptEncoder

WORDS = ["dog", "house", "guitar", "alarm", "clock", "flip-flops", "t-shirt", "7up", "St._Basil's_Cathedral", "24"]
WORDS += ["o'clock", "R2-D2", "rock'n'roll", "water-slide!!", "(sketch)", "hockey_puck"]
LAYERS = 4


def random_names(count, seed):
    rng = random.Random(seed)
    return ["_".join(rng.choices(WORDS, k=rng.choice([1, 1, 1, 2, 2, 3, 5, 8]))) for _ in range(count)]


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip(width=128, layers=LAYERS)


def compare(features, expected, inputs):
    """Compare features, and the gradients of a random combination of them."""
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    ours, theirs = (list(torch.autograd.grad((found * weights).sum(), inputs)) for found in (features, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


# Up to 128 tokens make one masked row; more than 2,048 tokens, or a small memory make several chunks.
@settings(max_examples=15)
@given(
    n_cls=st.integers(1, 40),
    n_ctx=st.integers(1, 16),
    position=st.sampled_from(["end", "middle", "front"]),
    class_specific=st.booleans(),
    memory_mb=st.sampled_from([8, 2048]),
)
@example(n_cls=1, n_ctx=1, position="end", class_specific=False, memory_mb=2048)
@example(n_cls=120, n_ctx=16, position="end", class_specific=False, memory_mb=2048)
@example(n_cls=120, n_ctx=16, position="middle", class_specific=True, memory_mb=8)
def test_values_and_gradients_equal_the_plain_tower(clip_model, n_cls, n_ctx, position, class_specific, memory_mb):
    names = random_names(n_cls, seed=n_cls)
    place = {"class_token_position": position, "class_specific": class_specific}
    encoder = PromptEncoder(clip_model, names, n_ctx, **place, memory_mb=memory_mb)
    torch.manual_seed(1)
    ctx = (30 * encoder.initial_context()).requires_grad_()
    assert ctx.shape == ((n_cls, n_ctx, 128) if class_specific else (n_ctx, 128))
    compare(encoder(ctx), plain_text_features(clip_model, names, ctx, position), [ctx])


@settings(max_examples=12)
@given(
    n_cls=st.integers(1, 40),
    n_contexts=st.sampled_from([None, 1, 3]),
    depth=st.integers(1, LAYERS),
    n_learned=st.integers(1, 4),
    n_fixed=st.integers(0, 3),
    memory_mb=st.sampled_from([8, 2048]),
)
@example(n_cls=150, n_contexts=1, depth=3, n_learned=4, n_fixed=3, memory_mb=2048)
def test_batches_of_contexts_and_deep_contexts_equal_the_plain_tower(
    clip_model, n_cls, n_contexts, depth, n_learned, n_fixed, memory_mb
):
    words = ["a", "very", "good", "photo", "of", "a", "big"][: n_learned + n_fixed]
    names, fixed = random_names(n_cls, seed=n_cls), " ".join(words[n_learned:])
    encoder = PromptEncoder(clip_model, names, ctx_init=" ".join(words), n_learned=n_learned, memory_mb=memory_mb)
    assert encoder.n_ctx == n_learned
    torch.manual_seed(depth)
    ctx = torch.randn(*([n_contexts] if n_contexts else []), n_learned, 128, requires_grad=True)
    deep = [(30 * vectors).requires_grad_() for vectors in encoder.initial_deep(depth)]
    contexts = ctx if n_contexts else ctx[None]
    words = [f"{fixed} {name}" for name in names]
    expected = torch.stack([plain_text_features(clip_model, words, one, deep=deep) for one in contexts])
    compare(encoder(ctx, deep), expected if n_contexts else expected[0], [ctx, *deep])


@pytest.mark.parametrize("position", ["middle", "front"])
def test_each_context_of_a_batch_has_its_own_features(clip_model, position):
    names, contexts = random_names(9, seed=5), torch.randn(5, 4, 128, requires_grad=True)
    encoder = PromptEncoder(clip_model, names, 4, class_token_position=position)
    expected = torch.stack([plain_text_features(clip_model, names, ctx, position) for ctx in contexts])
    compare(encoder(contexts), expected, [contexts])


# ---- initial contexts ----


def test_initial_context_has_the_embeddings_of_its_words(clip_model):
    encoder = PromptEncoder(clip_model, ["dog"], n_ctx=16, ctx_init="a_photo of a")
    assert encoder.n_ctx == 4
    expected = clip_model.token_embedding(torch.tensor(tokenizer.encode("a photo of a")))
    torch.testing.assert_close(encoder.initial_context(), expected)
    drawn = PromptEncoder(clip_model, ["dog"], n_ctx=16).initial_context()
    assert drawn.shape == (16, 128)
    assert 0.015 < drawn.std() < 0.025
    each = PromptEncoder(clip_model, ["dog", "cat"], n_ctx=3, class_specific=True).initial_context()
    assert not torch.equal(each[0], each[1])


@pytest.mark.parametrize("n_learned", [None, 2])
def test_initial_context_words_give_zero_shot_clip(clip_model, n_learned):
    names = ["dog", "alarm clock"]
    encoder = PromptEncoder(clip_model, names, ctx_init="a photo of a", n_learned=n_learned)
    expected = unit(clip_model.encode_text(clip.tokenize([f"a photo of a {name}." for name in names])))
    torch.testing.assert_close(encoder(encoder.initial_context()), expected, atol=1e-5, rtol=0)


# ---- errors ----


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
