"""Transforms: each choice does what it says."""

import random

import numpy as np
import pytest
import torch
from dassl.data.transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_transform, randaugment
from dassl.data.transforms.autoaugment import CIFAR10Policy, ImageNetPolicy, SubPolicy, SVHNPolicy
from dassl.data.transforms.transforms import Cutout, GaussianNoise, InstanceNormalization, Random2DTranslation
from dassl.utils import UserError, set_random_seed
from PIL import Image

SIZE = (32, 32)


@pytest.fixture
def tfm_cfg(cfg):
    cfg.INPUT.SIZE = SIZE
    cfg.INPUT.TRANSFORMS = ()
    return cfg


def picture(height=50, width=70, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ramp(height=64, width=64):
    """Grey from left to right, 0 to 1."""
    row = np.linspace(0, 255, width).astype(np.uint8)
    return Image.fromarray(np.repeat(np.tile(row, (height, 1))[..., None], 3, axis=2))


def many(cfg, choices, image, n=100):
    tfm = build_transform(cfg, is_train=True, choices=choices)
    return torch.stack([tfm(image) for _ in range(n)])


@pytest.mark.parametrize("choice", [*AVAI_CHOICES, ""])
@pytest.mark.parametrize("is_train", [True, False])
def test_each_choice_gives_a_tensor_of_the_size(tfm_cfg, choice, is_train):
    choices = [choice] if choice else []
    tfm = build_transform(tfm_cfg, is_train=is_train, choices=choices)
    for image in (picture(), picture(40, 33)):
        img = tfm(image)
        assert img.shape == (3, *SIZE)
        assert img.dtype == torch.float32
        assert torch.isfinite(img).all()


def test_the_choices_named_by_the_interface_are_all_there():
    named = "random_flip random_resized_crop normalize random_crop center_crop colorjitter randomgrayscale"
    named += " gaussian_blur gaussian_noise cutout random_translation instance_norm randaugment randaugment2"
    named += " randaugment_fixmatch imagenet_policy cifar10_policy svhn_policy"
    assert set(named.split()) == set(AVAI_CHOICES)
    assert {"bilinear", "bicubic", "nearest"} <= set(INTERPOLATION_MODES)


def test_training_resizes_first_unless_it_crops(tfm_cfg):
    tfm_cfg.INPUT.SIZE = (24, 40)
    assert torch.equal(
        build_transform(tfm_cfg, choices=[])(ramp()),
        build_transform(tfm_cfg, choices=["center_crop"])(ramp()),
    )
    # A resize of the ramp keeps both ends; a crop of 40 out of 64 columns does not.
    img = build_transform(tfm_cfg, choices=[])(ramp())
    assert img.shape == (3, 24, 40)
    assert img.min() < 0.05
    assert img.max() > 0.95
    # With the default padding of 4 black pixels.
    cropped = many(tfm_cfg, ["random_crop"], ramp(), 20)[:, 0, 12]
    assert (cropped[:, -5] - cropped[:, 5]).max() < 0.55


def test_testing_resizes_the_smaller_edge_and_crops_the_center(tfm_cfg):
    tfm_cfg.INPUT.TRANSFORMS = ("random_flip", "colorjitter", "normalize")
    tfm = build_transform(tfm_cfg, is_train=False)
    image = ramp(64, 128)
    assert torch.equal(tfm(image), tfm(image))
    mean = torch.tensor(tfm_cfg.INPUT.PIXEL_MEAN).view(3, 1, 1)
    std = torch.tensor(tfm_cfg.INPUT.PIXEL_STD).view(3, 1, 1)
    raw = tfm(image) * std + mean
    # The middle half of the ramp.
    assert raw[0, 0, 0] == pytest.approx(0.25, abs=0.02)
    assert raw[0, 0, -1] == pytest.approx(0.75, abs=0.02)


def test_normalize_uses_mean_and_std(tfm_cfg):
    tfm_cfg.INPUT.PIXEL_MEAN, tfm_cfg.INPUT.PIXEL_STD = [0.5, 0.25, 0.0], [0.5, 0.25, 2.0]
    image = Image.new("RGB", (40, 40), (255, 255, 255))
    img = build_transform(tfm_cfg, choices=["normalize"])(image)
    assert torch.allclose(img[:, 0, 0], torch.tensor([1.0, 3.0, 0.5]))


def test_random_flip_flips_half(tfm_cfg):
    imgs = many(tfm_cfg, ["random_flip"], ramp(), 200)
    flipped = imgs[:, 0, 0, 0] > 0.5
    assert 0.35 < flipped.float().mean() < 0.65
    assert torch.allclose(imgs[flipped][0].flip(-1), imgs[~flipped][0])


def test_random_resized_crop_keeps_the_asked_area(tfm_cfg):
    tfm_cfg.INPUT.RRCROP_SCALE = (0.25, 0.25)
    imgs = many(tfm_cfg, ["random_resized_crop"], ramp(128, 128), 200)
    # Of a ramp from 0 to 1, the range of values left is the width of the crop: half, times sqrt(3/4) to
    # sqrt(4/3).
    width = (imgs.amax((1, 2, 3)) - imgs.amin((1, 2, 3))).float()
    assert width.min() > 0.40
    assert width.max() < 0.60
    starts = imgs.amin((1, 2, 3))
    assert starts.min() < 0.1
    assert starts.max() > 0.4


def test_interpolation_is_used(tfm_cfg):
    image = picture()
    seen = {}
    for mode in ("bilinear", "bicubic", "nearest"):
        tfm_cfg.INPUT.INTERPOLATION = mode
        seen[mode] = build_transform(tfm_cfg, choices=[])(image)
    assert not torch.equal(seen["bilinear"], seen["bicubic"])
    # nearest makes no new values
    assert set(seen["nearest"].mul(255).round().int().unique().tolist()) <= set(np.unique(image).tolist())


def test_colour_changes(tfm_cfg):
    image = picture()
    grey = many(tfm_cfg, ["randomgrayscale"], image, 200)
    is_grey = (grey[:, 0] == grey[:, 1]).flatten(1).all(1)
    assert 0.1 < is_grey.float().mean() < 0.3  # RGS_P 0.2
    jittered = many(tfm_cfg, ["colorjitter"], image, 20)
    assert jittered.std(0).mean() > 0.02
    assert many(tfm_cfg, ["randaugment"], image, 20).std(0).mean() > 0.02


def test_gaussian_blur_blurs_half(tfm_cfg):
    tfm_cfg.INPUT.GB_K = 5
    imgs = many(tfm_cfg, ["gaussian_blur"], picture(), 100)
    sharp = build_transform(tfm_cfg, choices=[])(picture())
    same = (imgs == sharp).flatten(1).all(1)
    assert 0.3 < same.float().mean() < 0.7
    assert imgs[~same].std(dim=(2, 3)).mean() < 0.95 * sharp.std(dim=(1, 2)).mean()


def test_gaussian_noise_is_added_to_half(tfm_cfg):
    tfm_cfg.INPUT.GN_MEAN, tfm_cfg.INPUT.GN_STD = 0.5, 0.2
    plain = build_transform(tfm_cfg, choices=[])(picture())
    noise = many(tfm_cfg, ["gaussian_noise"], picture(), 100) - plain
    noisy = noise.flatten(1).std(1) > 0
    assert 0.3 < noisy.float().mean() < 0.7
    assert noise[noisy].mean() == pytest.approx(0.5, abs=0.01)
    assert noise[noisy].std() == pytest.approx(0.2, abs=0.01)


def test_cutout_cuts_squares(tfm_cfg):
    tfm_cfg.INPUT.CUTOUT_LEN = 10
    white = Image.new("RGB", (40, 40), (255, 255, 255))
    holes = many(tfm_cfg, ["cutout"], white, 200) == 0
    area = holes[:, 0].flatten(1).sum(1)
    assert area.max() == 100
    assert area.min() >= 25  # a quarter stays inside in the worst corner
    assert (holes[:, 0] == holes[:, 2]).all()
    assert holes[:, 0].any(0).all()  # every place gets its turn
    tfm_cfg.INPUT.CUTOUT_N = 3
    assert (many(tfm_cfg, ["cutout"], white, 20) == 0)[:, 0].flatten(1).sum(1).max() > 100


def test_random_translation_moves_half(tfm_cfg):
    imgs = many(tfm_cfg, ["random_translation"], ramp(), 100)
    plain = build_transform(tfm_cfg, choices=[])(ramp())
    still = torch.isclose(imgs, plain, atol=1e-3).flatten(1).all(1)
    assert 0.3 < still.float().mean() < 0.7
    moved = imgs[~still]
    assert (moved[:, 0, 0, -1] - moved[:, 0, 0, 0]).mean() == pytest.approx(1 / 1.125, abs=0.04)


def test_instance_norm_centers_each_channel(tfm_cfg):
    img = build_transform(tfm_cfg, choices=["instance_norm"])(picture())
    assert img.mean(dim=(1, 2)).abs().max() < 1e-5
    assert torch.allclose(img.std(dim=(1, 2)), torch.ones(3), atol=1e-5)
    flat = build_transform(tfm_cfg, choices=["instance_norm"])(Image.new("RGB", (40, 40)))
    assert torch.isfinite(flat).all()


def test_randomness_follows_the_seed(tfm_cfg):
    choices = [c for c in AVAI_CHOICES if c != "random_crop"]
    tfm = build_transform(tfm_cfg, choices=choices)
    set_random_seed(5)
    first = tfm(picture())
    set_random_seed(5)
    assert torch.equal(tfm(picture()), first)


def test_no_transform_and_what_is_unknown(tfm_cfg):
    with pytest.raises(UserError, match=r"INPUT.TRANSFORMS.*'flip'.*Accepted: .*random_flip"):
        build_transform(tfm_cfg, choices=["flip"])
    tfm_cfg.INPUT.INTERPOLATION = "cubic"
    for is_train in (True, False):
        with pytest.raises(UserError, match=r"INPUT.INTERPOLATION.*'cubic'.*Did you mean bicubic"):
            build_transform(tfm_cfg, is_train=is_train)
    tfm_cfg.INPUT.NO_TRANSFORM = True
    assert build_transform(tfm_cfg) is None


# -- the classes themselves -------------------------------------------------------------------------


def test_places_are_drawn_as_in_dassl():
    """From python's generator where to crop, from NumPy's where to cut, from torch's what to add."""
    random.seed(0)
    moved = Random2DTranslation(32, 48)
    for _ in range(20):
        state = random.getstate()
        image = moved(picture(32, 48))
        after = random.getstate()
        random.setstate(state)
        if random.uniform(0, 1) > 0.5:
            assert np.array_equal(image, picture(32, 48))
        else:
            left, top = round(random.uniform(0, 6)), round(random.uniform(0, 4))
            larger = picture(32, 48).resize((54, 36), 2)
            assert np.array_equal(image, larger.crop((left, top, left + 48, top + 32)))
        assert random.getstate() == after

    np.random.seed(0)
    hole = Cutout(1, 5)(torch.ones(3, 32, 32)) == 0
    np.random.seed(0)
    y, x = np.random.randint(32), np.random.randint(32)
    assert hole.nonzero()[:, 1:].amin(0).tolist() == [max(y - 2, 0), max(x - 2, 0)]
    assert hole.nonzero()[:, 1:].amax(0).tolist() == [min(y + 1, 31), min(x + 1, 31)]

    image = torch.rand(3, 8, 8)
    torch.manual_seed(0)
    noisy = GaussianNoise(0.5, 0.2, p=1.0)(image)
    torch.manual_seed(0)
    assert torch.equal(noisy, image + (torch.randn(3, 8, 8) * 0.2 + 0.5))
    assert torch.equal(GaussianNoise(p=0.0)(image), image)
    assert InstanceNormalization()(image).std(dim=(1, 2)).tolist() == pytest.approx([1, 1, 1])


ONE = np.array([[[10, 100, 200]]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("operation", "strength", "pixel"),
    [
        (randaugment.Invert, 0, (245, 155, 55)),
        (randaugment.Solarize, 128, (10, 100, 55)),
        (randaugment.Solarize, 256, (10, 100, 200)),
        (randaugment.SolarizeAdd, 50, (60, 105, 5)),
        (randaugment.Posterize, 4, (0, 96, 192)),
        (randaugment.Brightness, 2.0, (20, 200, 255)),
        (randaugment.Brightness, 0.0, (0, 0, 0)),
        (randaugment.Color, 1.0, (10, 100, 200)),
        (randaugment.Identity, 7, (10, 100, 200)),
        (randaugment.Rotate, 0, (10, 100, 200)),
    ],
)
def test_operations_on_colours(operation, strength, pixel):
    assert operation(Image.fromarray(ONE), strength).getpixel((0, 0)) == pixel


def test_operations_on_places():
    image = ramp(20, 20)
    assert np.array_equal(np.asarray(randaugment.Flip(image, 0)), np.asarray(image)[:, ::-1])
    for operation, strength in ((randaugment.TranslateX, 0.25), (randaugment.TranslateXabs, 5)):
        moved = {np.asarray(operation(image, strength))[0, 10, 0] for _ in range(20)}
        assert moved == {np.asarray(image)[0, 5, 0], np.asarray(image)[0, 15, 0]}  # either way
    for operation, strength in ((randaugment.TranslateY, 0.25), (randaugment.TranslateYabs, 5)):
        assert np.asarray(operation(image, strength)).min(axis=(1, 2)).tolist().count(0) == 20
        moved = np.asarray(operation(image, strength))[:, -1, 0]
        assert (moved == 0).sum() == 5  # what came in from outside is black
    for operation in (randaugment.ShearX, randaugment.ShearY):
        assert np.array_equal(np.asarray(operation(image, 0.0)), np.asarray(image))
        assert not np.array_equal(np.asarray(operation(image, 0.3)), np.asarray(image))
    white = Image.new("RGB", (20, 20), (255, 255, 255))
    areas = {(np.asarray(randaugment.Cutout(white, 0.2)) != 255).any(-1).sum() for _ in range(50)}
    assert max(areas) == 25  # both ends of the square belong to it
    assert randaugment.Cutout(white, 0) is randaugment.CutoutAbs(white, -1) is white
    other = randaugment.SamplePairing([np.zeros((20, 20, 3), np.uint8)])(white, 0.4)
    assert other.getpixel((0, 0)) == (153, 153, 153)


def test_strengths_out_of_range_are_named():
    for operation, strength in ((randaugment.Rotate, 31), (randaugment.Color, 2.1), (randaugment.TranslateXabs, -1)):
        with pytest.raises(AssertionError, match="accepted: "):
            operation(picture(), strength)
    with pytest.raises(AssertionError, match="strength is 31"):
        randaugment.RandAugment(2, 31)


@pytest.mark.parametrize("listed", ["randaugment_list", "randaugment_list2", "fixmatch_list"])
def test_every_operation_takes_its_whole_range(listed):
    operations = getattr(randaugment, listed)()
    assert len(operations) == {"randaugment_list": 16, "randaugment_list2": 15, "fixmatch_list": 14}[listed]
    for operation, low, high in operations:
        for strength in (low, (low + high) / 2, high):
            assert operation(picture(), strength).size == picture().size


def strengths(augmentation, times=200):
    """Which strengths an augmentation gives to an operation from 1 to 3, call by call."""
    seen = []

    def note(image, strength):
        seen[-1].append(strength)
        return image

    augmentation.augment_list = [(note, 1.0, 3.0)]
    random.seed(0)
    for _ in range(times):
        seen.append([])
        augmentation("image")
    return seen


def test_how_strong_and_how_often():
    assert strengths(randaugment.RandAugment(3, 15)) == 200 * [[2.0, 2.0, 2.0]]
    assert strengths(randaugment.RandAugment(1, 0), 1) == [[1.0]]
    by_chance = strengths(randaugment.RandAugmentFixMatch(2))
    assert {len(call) for call in by_chance} == {2}
    flat = [strength for call in by_chance for strength in call]
    assert 1 <= min(flat) < 1.1
    assert 2.9 < max(flat) <= 3
    often = sum(map(len, strengths(randaugment.RandAugment2(2, p=0.6)))) / 400
    assert often == pytest.approx(0.6, abs=0.07)


def test_lighting_and_cutout_of_tensors():
    image = torch.rand(3, 6, 6)
    lighting = randaugment.Lighting(0.1, [0.2, 0.1, 0.3], np.eye(3).tolist())
    shift = lighting(image) - image
    assert shift.flatten(1).std(1).max() < 1e-6  # the same everywhere, another for each channel
    assert len(set(shift[:, 0, 0].tolist())) == 3
    assert randaugment.Lighting(0, [1, 1, 1], np.eye(3).tolist())(image) is image
    cut = image.clone()
    assert randaugment.CutoutDefault(4)(cut) is cut
    assert 4 <= (cut == 0).all(0).sum() <= 16


@pytest.mark.parametrize(
    ("policy", "first"),
    [
        (ImageNetPolicy, (0.4, "posterize", 4, 0.6, "rotate", 30.0)),
        (CIFAR10Policy, (0.1, "invert", 0, 0.2, "contrast", 0.6)),
        (SVHNPolicy, (0.9, "shearX", 4 / 30, 0.2, "invert", 0)),
    ],
)
def test_policies(policy, first):
    found = policy()
    assert len(found.policies) == 25
    pair = found.policies[0]
    seen = (pair.p1, pair.operation1, pair.magnitude1, pair.p2, pair.operation2, pair.magnitude2)
    assert seen[:2] + seen[3:5] == first[:2] + first[3:5]
    assert [seen[2], seen[5]] == pytest.approx([first[2], first[5]])
    for pair in found.policies:
        pair.p1 = pair.p2 = 1.0
        assert pair(picture()).size == picture().size


def test_sub_policies():
    image = Image.fromarray(ONE)
    assert SubPolicy(1.0, "invert", 3, 0.0, "solarize", 9)(image).getpixel((0, 0)) == (245, 155, 55)
    assert SubPolicy(0.0, "invert", 3, 1.0, "solarize", 9)(image).getpixel((0, 0)) == (245, 155, 55)
    assert SubPolicy(1.0, "color", 0, 1.0, "posterize", 0)(image).getpixel((0, 0)) == (10, 100, 200)
    moved = SubPolicy(1.0, "translateX", 9, 0.0, "invert", 0, fillcolor=(1, 2, 3))(ramp(20, 20))
    assert (np.asarray(moved) == (1, 2, 3)).all(-1).sum() == 20 * round(20 * 150 / 331)
    turned = SubPolicy(1.0, "rotate", 9, 0.0, "invert", 0)(Image.new("RGB", (20, 20)))
    assert turned.getpixel((0, 0)) == (128, 128, 128)
