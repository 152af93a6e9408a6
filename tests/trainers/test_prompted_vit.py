"""The ViT with learned prompts against the plain tower, its initial prompts, and its errors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plain_image_features, tiny_clip

from common.errors import UserError
from trainers.modules.prompted_vit import PromptedViT


@pytest.fixture(scope="module")
def clip_model():
    return tiny_clip(vision=4, vit_width=128)


@settings(max_examples=20)
@given(batch=st.integers(1, 5), n_tokens=st.integers(1, 6), depth=st.integers(1, 4), stacked=st.booleans())
def test_values_and_gradients_equal_the_plain_tower(clip_model, batch, n_tokens, depth, stacked):
    tower = PromptedViT(clip_model.visual)
    torch.manual_seed(batch)
    images = torch.randn(batch, 3, 32, 32)
    prompts = (tower.initial_tokens(n_tokens), *tower.initial_deep(depth, n_tokens))
    tokens, *deep = ((30 * vectors).requires_grad_() for vectors in prompts)
    features = tower(images, tokens, torch.stack(deep) if stacked and deep else deep)
    expected = plain_image_features(clip_model, images, tokens, deep)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    weights = torch.randn_like(features)
    ours, theirs = ([*torch.autograd.grad((found * weights).sum(), [tokens, *deep])] for found in (features, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(tower(images, tokens, deep), features, atol=1e-6, rtol=0)


def test_prompted_vit_initial_prompts_have_standard_deviation_002(clip_model):
    tower = PromptedViT(clip_model.visual)
    assert tower.initial_deep(1, 8).shape == (0, 8, 128)
    for prompts, shape in ((tower.initial_tokens(8), (8, 128)), (tower.initial_deep(4, 8), (3, 8, 128))):
        assert prompts.shape == shape
        assert 0.015 < prompts.std() < 0.025


def test_prompted_vit_of_a_resnet_raises_with_a_method_that_accepts_it():
    with pytest.raises(UserError, match="is a ModifiedResNet.* need a ViT.* or use VP"):
        PromptedViT(tiny_clip().visual)
