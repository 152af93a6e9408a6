"""A core compatible with Dassl.pytorch, for today's PyTorch. ``import dassl.config`` does not import torch."""

from .left_out import install

__version__ = "0.6.3+compat"
__author__ = "the authors of the SPG plugin, after the interface of Kaiyang Zhou's Dassl.pytorch"
__homepage__ = "https://github.com/KaiyangZhou/Dassl.pytorch"  # of the original

install()
