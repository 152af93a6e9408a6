import copy

import pytest
import reference
import torch
from torch import nn

from trainers.modules.cgan import (
    DISCRIMINATOR_SPECIAL,
    GENERATOR_SPECIAL,
    Discriminator,
    Generator,
    GradientNorms,
    clip_gradients,
    image_noise,
)


def learned(**networks):
    return {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_generator_is_the_published_computation(training):
    torch.manual_seed(0)
    generator = Generator(6, 2, 8, latent_dim=5).train(training)
    features, noise = torch.randn(4, 6), torch.randn(4, 5)
    expected = reference.generate(learned(generator=copy.deepcopy(generator)), features, noise, 8, training)
    torch.testing.assert_close(generator(features, noise), expected)
    assert not torch.equal(generator(features), generator(features))  # draws noise


def test_discriminator_is_the_published_computation():
    torch.manual_seed(0)
    discriminator = Discriminator(6, 2, 8).eval()
    prompts, features = torch.randn(4, 2, 8), torch.randn(4, 6)
    expected = reference.judge(learned(discriminator=discriminator), prompts, features)
    torch.testing.assert_close(discriminator(prompts, features), expected)
    dropouts = [module.p for module in discriminator.modules() if isinstance(module, nn.Dropout)]
    assert dropouts == [0.4, 0.4]


def test_dropout_drops_and_scales_as_torch_does():
    torch.manual_seed(0)
    dropout = Discriminator(6, 2, 8).model[3]
    x = torch.linspace(1, 2, 100_000, requires_grad=True)
    dropped = dropout(x)
    nonzero = dropped != 0
    assert abs(nonzero.double().mean().item() - 0.6) < 0.01
    torch.testing.assert_close(dropped[nonzero], x[nonzero] / 0.6)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, nonzero / 0.6)
    assert dropout.eval()(x) is x


def test_weights_start_kaiming_uniform():
    weight = Generator(512, 4, 512).model[11].weight
    bound = (6 / 1024) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound * (1 + 1e-6)


def test_each_gradient_is_clipped_separately():
    norms = {
        "G": GradientNorms(5e-3, 5e-8, 1.0, GENERATOR_SPECIAL),
        "D": GradientNorms(5e-2, 5e-1, 5.0, DISCRIMINATOR_SPECIAL),
    }
    networks = {"G": Generator(16, 4, 32), "D": Discriminator(16, 4, 32)}
    for which, network in networks.items():
        for parameter in network.parameters():
            gradient = torch.randn_like(parameter)
            parameter.grad = 100 * gradient / gradient.norm()  # above every limit, also of a bias of one number
        clip_gradients(network, norms[which])
        for name, parameter in network.named_parameters():
            if which == "G":
                special = name in ("model.9.bias", "model.11.bias")
            else:
                special = name.startswith(("model.0.", "model.8."))
            kind = "special" if special else name.rpartition(".")[2]
            limit = getattr(norms[which], kind)
            assert parameter.grad.double().norm().item() == pytest.approx(limit, rel=1e-3)
            before = parameter.grad.clone()
        clip_gradients(network, norms[which])  # within the limit: left alone
        torch.testing.assert_close(parameter.grad, before)


def test_noise_depends_on_seed_index_and_draw_alone():
    noise = image_noise(1, range(50), 100)
    parts = torch.cat([image_noise(1, [i], 100) for i in range(50)])
    assert torch.equal(noise, parts)
    assert torch.equal(image_noise(1, [7, 3], 100), noise[[7, 3]])
    state = torch.get_rng_state()
    assert torch.equal(image_noise(1, range(50), 100), noise)
    assert torch.equal(torch.get_rng_state(), state)
    for other in (
        image_noise(2, range(50), 100),
        image_noise(1, range(50), 100, draw=1),
        image_noise(-1, range(50), 100),
    ):
        assert not torch.isclose(other, noise).any(dim=1).all()


def test_noise_is_standard_normal_and_independent():
    noise = image_noise(3, range(2000), 100)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert torch.corrcoef(noise[:50]).fill_diagonal_(0).abs().max() < 0.45
