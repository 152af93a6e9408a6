import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plain_image_features, tiny_clip

from common.errors import UserError
from trainers.modules.clip.backbone import to_half
from trainers.modules.prompted_vit import PromptedViT


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip(vision=4, vit_width=128)


def learning(tower, n_tokens, depth):
    """Learned prompts: shallow ones, and deep ones of layers 2 to depth."""
    prompts = (tower.initial_tokens(n_tokens), *tower.initial_deep(depth, n_tokens))
    return [(30 * vectors).requires_grad_() for vectors in prompts]


@settings(max_examples=20)
@given(batch=st.integers(1, 5), n_tokens=st.integers(1, 6), depth=st.integers(1, 4), stacked=st.booleans())
def test_values_and_gradients_equal_the_plain_tower(clip_model, batch, n_tokens, depth, stacked):
    tower = PromptedViT(clip_model.visual)
    torch.manual_seed(batch)
    images = torch.randn(batch, 3, 32, 32)
    tokens, *deep = learning(tower, n_tokens, depth)
    features = tower(images, tokens, torch.stack(deep) if stacked and deep else deep)
    expected = plain_image_features(clip_model, images, tokens, deep)
    assert features.shape == (batch, 32)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    ours, theirs = ([*torch.autograd.grad((found * weights).sum(), [tokens, *deep])] for found in (features, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(tower(images, tokens, deep), features, atol=1e-6, rtol=0)


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16, "autocast"])
def test_other_precisions_stay_close(clip_model, precision):
    tower = PromptedViT(clip_model.visual)
    torch.manual_seed(0)
    images, (tokens, *deep) = torch.randn(3, 3, 32, 32), learning(tower, 4, depth=3)
    expected = tower(images, tokens, deep)
    if precision == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = tower(images, tokens, deep)
    else:
        half = tiny_clip(vision=4, vit_width=128)
        to_half(half, precision)
        features = PromptedViT(half.visual)(images, tokens, deep)
        assert features.dtype == precision
    assert torch.cosine_similarity(features.float(), expected, dim=-1).min() > 0.995
    weights = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad((features.float() * weights).sum(), [tokens, *deep]),
        torch.autograd.grad((expected * weights).sum(), [tokens, *deep]),
        strict=True,
    ):
        assert torch.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.98


def test_prompted_vit_initial_prompts_have_standard_deviation_002(clip_model):
    tower = PromptedViT(clip_model.visual)
    assert (tower.width, tower.n_layers) == (128, 4)
    assert tower.initial_deep(1, 8).shape == (0, 8, 128)
    for prompts, shape in ((tower.initial_tokens(8), (8, 128)), (tower.initial_deep(4, 8), (3, 8, 128))):
        assert prompts.shape == shape
        assert 0.015 < prompts.std() < 0.025


def test_resnet_raises_with_a_method_that_accepts_it():
    with pytest.raises(UserError, match="is a ModifiedResNet.* need a ViT.* or use VP"):
        PromptedViT(tiny_clip().visual)


def test_prompted_vit_depth_above_the_layers_raises(clip_model):
    tower = PromptedViT(clip_model.visual)
    message = "depth of 5 does not fit the image tower, which has 4 layers.*PROMPT_DEPTH to 1 .* to 4"
    with pytest.raises(UserError, match=message):
        tower.initial_deep(5, 2)
    with pytest.raises(UserError, match=message):
        tower(torch.zeros(1, 3, 32, 32), torch.zeros(2, 128), torch.zeros(4, 2, 128))


@pytest.mark.parametrize(
    ("tokens", "deep"), [((2, 64), (1, 2, 64)), ((2, 128), (1, 3, 128)), ((1, 2, 128), (1, 2, 128))]
)
def test_prompted_vit_wrong_shapes_name_the_accepted_ones(clip_model, tokens, deep):
    with pytest.raises(ValueError, match=r"have shapes .*; accepted: \('n', 128\), the same in each layer"):
        PromptedViT(clip_model.visual)(torch.zeros(1, 3, 32, 32), torch.zeros(tokens), torch.zeros(deep))
