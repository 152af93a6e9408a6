"""Dropout, initial weights and noise of SPG's networks; tests/contracts/test_numbers.py checks their outputs."""

import torch

from trainers.modules.cgan import Discriminator, Generator, image_noise


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


def test_generator_weights_start_kaiming_uniform():
    weight = Generator(512, 4, 512).model[11].weight
    bound = (6 / 1024) ** 0.5
    assert 0.95 * bound < weight.abs().max() <= bound * (1 + 1e-6)


def test_image_noise_is_standard_normal_and_depends_on_seed_index_and_draw_alone():
    noise = image_noise(1, range(500), 100)
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
    assert torch.corrcoef(noise[:50]).fill_diagonal_(0).abs().max() < 0.45
    state = torch.get_rng_state()
    assert torch.equal(image_noise(1, [7, 3], 100), noise[[7, 3]])
    assert torch.equal(torch.get_rng_state(), state)
    for other in (image_noise(2, range(500), 100), image_noise(1, range(500), 100, draw=1)):
        assert not torch.isclose(other, noise).any(dim=1).all()
    assert image_noise(-1, [0], 100).isfinite().all()
