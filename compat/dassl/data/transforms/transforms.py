"""The transforms a configuration describes: torchvision's where it has them."""

from torchvision import transforms as T
from torchvision.transforms import InterpolationMode

from dassl.utils.registry import check_availability

from .custom import Cutout, GaussianNoise, InstanceNorm, RandomTranslation

INTERPOLATION_MODES = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "nearest": InterpolationMode.NEAREST,
}

AVAI_CHOICES = (
    "random_flip",
    "random_resized_crop",
    "normalize",
    "instance_norm",
    "random_crop",
    "random_translation",
    "center_crop",
    "cutout",
    "randaugment",
    "gaussian_noise",
    "colorjitter",
    "randomgrayscale",
    "gaussian_blur",
)


def build_transform(cfg, is_train=True, choices=None):
    """Build the transform from PIL image to tensor that INPUT describes.

    Training: a resize to INPUT.SIZE comes first, unless ``random_crop`` or ``random_resized_crop`` is chosen;
    then the chosen augmentations, in a fixed order whatever the order of the choices. Testing: the smaller
    edge is resized to max(INPUT.SIZE), then the center INPUT.SIZE is cropped; of the choices only
    ``normalize`` and ``instance_norm`` apply.

    Args:
        cfg: the configuration.
        is_train (bool): training or testing.
        choices (list of str): names out of AVAI_CHOICES; None: INPUT.TRANSFORMS.

    Returns:
        a callable from a PIL image to a float tensor (3, H, W); None with INPUT.NO_TRANSFORM.

    Raises:
        UserError: unknown transform or interpolation.
    """
    if cfg.INPUT.NO_TRANSFORM:
        print("Note: no transform is applied!")
        return None
    choices = tuple(cfg.INPUT.TRANSFORMS if choices is None else choices)
    for choice in choices:
        check_availability(choice, AVAI_CHOICES, "transform (INPUT.TRANSFORMS)")
    steps = (_train_steps if is_train else _test_steps)(cfg, choices)
    if cfg.VERBOSE:
        print(f"Building transform_{'train' if is_train else 'test'}")
        for step in steps:
            print(f"+ {step}")
    return T.Compose(steps)


def build_plain_transform(cfg):
    """Build the transform without augmentation: resize to INPUT.SIZE, to tensor, normalised if chosen."""
    return T.Compose(
        [
            T.Resize(cfg.INPUT.SIZE, _interpolation(cfg)),
            T.ToTensor(),
            *_normalization(cfg, cfg.INPUT.TRANSFORMS),
        ]
    )


def _interpolation(cfg):
    check_availability(cfg.INPUT.INTERPOLATION, INTERPOLATION_MODES, "interpolation (INPUT.INTERPOLATION)")
    return INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]


def _normalization(cfg, choices):
    steps = []
    if "normalize" in choices:
        steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
    return steps


def _train_steps(cfg, choices):
    node, size, mode = cfg.INPUT, tuple(cfg.INPUT.SIZE), _interpolation(cfg)
    steps = []
    if "random_crop" not in choices and "random_resized_crop" not in choices:
        steps.append(T.Resize(size, mode))
    # One row a choice, in the order in which they are applied to the PIL image ...
    on_image = {
        "random_translation": lambda: RandomTranslation(size, interpolation=mode),
        "random_crop": lambda: T.RandomCrop(size, padding=node.CROP_PADDING),
        "random_resized_crop": lambda: T.RandomResizedCrop(size, scale=node.RRCROP_SCALE, interpolation=mode),
        "center_crop": lambda: T.CenterCrop(size),
        "random_flip": T.RandomHorizontalFlip,
        "randaugment": lambda: T.RandAugment(node.RANDAUGMENT_N, node.RANDAUGMENT_M),
        "colorjitter": lambda: T.ColorJitter(
            node.COLORJITTER_B, node.COLORJITTER_C, node.COLORJITTER_S, node.COLORJITTER_H
        ),
        "randomgrayscale": lambda: T.RandomGrayscale(node.RGS_P),
        "gaussian_blur": lambda: T.RandomApply([T.GaussianBlur(node.GB_K)], node.GB_P),
    }
    # ... and to the tensor.
    on_tensor = {
        "cutout": lambda: Cutout(node.CUTOUT_N, node.CUTOUT_LEN),
        "normalize": lambda: T.Normalize(node.PIXEL_MEAN, node.PIXEL_STD),
        "gaussian_noise": lambda: GaussianNoise(node.GN_MEAN, node.GN_STD),
        "instance_norm": InstanceNorm,
    }
    steps += [build() for choice, build in on_image.items() if choice in choices]
    steps.append(T.ToTensor())
    steps += [build() for choice, build in on_tensor.items() if choice in choices]
    return steps


def _test_steps(cfg, choices):
    size = tuple(cfg.INPUT.SIZE)
    steps = [T.Resize(max(size), _interpolation(cfg)), T.CenterCrop(size), T.ToTensor()]
    steps += _normalization(cfg, choices)
    if "instance_norm" in choices:
        steps.append(InstanceNorm())
    return steps
