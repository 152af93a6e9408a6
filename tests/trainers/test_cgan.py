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
)


def test_generator_has_the_published_keys_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in Generator(1024, 4, 512).state_dict().items()}
    expected = {}
    for index, (wide, narrow) in {
        0: (128, 1124),
        2: (256, 128),
        5: (512, 256),
        8: (1024, 512),
        11: (2048, 1024),
    }.items():
        expected |= {f"model.{index}.weight": (wide, narrow), f"model.{index}.bias": (wide,)}
    for index, width in {3: 256, 6: 512, 9: 1024}.items():
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"model.{index}.{name}"] = (width,)
        expected[f"model.{index}.num_batches_tracked"] = ()
    assert shapes == expected


def test_discriminator_has_the_published_keys_and_shapes():
    shapes = {key: tuple(value.shape) for key, value in Discriminator(1024, 4, 512).state_dict().items()}
    expected = {}
    for index, (wide, narrow) in {0: (512, 3072), 2: (512, 512), 5: (512, 512), 8: (1, 512)}.items():
        expected |= {f"model.{index}.weight": (wide, narrow), f"model.{index}.bias": (wide,)}
    assert shapes == expected


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
    kept = dropped != 0
    assert abs(kept.double().mean().item() - 0.6) < 0.01
    torch.testing.assert_close(dropped[kept], x[kept] / 0.6)
    dropped.sum().backward()
    torch.testing.assert_close(x.grad, kept / 0.6)
    assert dropout.eval()(x) is x


@pytest.mark.parametrize("limit", [10.0, 5e-8])  # far below and far above the 1e-6 of clip_grad_norm_
def test_gradients_within_their_limits_are_left_alone(limit):
    network = Generator(16, 4, 32)
    norms = GradientNorms(limit, limit, limit, GENERATOR_SPECIAL)
    given = {}
    for name, parameter in network.named_parameters():
        gradient = torch.randn_like(parameter)
        parameter.grad = given[name] = 0.9 * limit * gradient / gradient.norm()
        given[name] = given[name].clone()
    network.model[0].weight.grad = None  # a frozen one
    clip_gradients(network, norms)
    for name, parameter in network.named_parameters():
        assert parameter.grad is None or torch.equal(parameter.grad, given[name]), name


def test_weights_start_kaiming_uniform():
    weight = Generator(512, 4, 512).model[11].weight
    bound = (6 / 1024) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound * (1 + 1e-6)


def test_each_gradient_is_clipped_on_its_own():
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
