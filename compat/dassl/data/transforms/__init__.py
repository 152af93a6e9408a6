"""Image transforms from the config."""

from .transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_plain_transform, build_transform
