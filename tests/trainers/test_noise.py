import torch

from trainers.modules.cgan import image_noise


def test_noise_depends_on_seed_index_and_draw_alone():
    whole = image_noise(1, range(50), 100)
    parts = torch.cat([image_noise(1, [i], 100) for i in range(50)])
    assert torch.equal(whole, parts)
    assert torch.equal(image_noise(1, [7, 3], 100), whole[[7, 3]])
    torch.manual_seed(99)
    assert torch.equal(image_noise(1, range(50), 100), whole)
    for other in (
        image_noise(2, range(50), 100),
        image_noise(1, range(50), 100, draw=1),
        image_noise(-1, range(50), 100),
    ):
        assert not torch.isclose(other, whole).any(dim=1).all()


def test_noise_is_standard_normal_and_independent():
    noise = image_noise(3, range(2000), 100)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    assert torch.corrcoef(noise[:50]).fill_diagonal_(0).abs().max() < 0.45


def test_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    image_noise(1, range(5), 10)
    assert torch.equal(torch.rand(1), expected)
