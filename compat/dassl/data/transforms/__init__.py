"""Image transforms from the configuration."""

from .transforms import AVAI_CHOICES, INTERPOLATION_MODES, build_plain_transform, build_transform

__all__ = ["AVAI_CHOICES", "INTERPOLATION_MODES", "build_plain_transform", "build_transform"]
