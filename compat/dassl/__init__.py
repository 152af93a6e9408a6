"""A Dassl-compatible core: what CoOp-style trainers import as ``dassl``, written for today's PyTorch.

It stands alone. An installed Dassl.pytorch can take its place, and the other way round.
Nothing heavy is imported here, so that ``import dassl.config`` stays free of torch.
"""

from .left_out import install

__version__ = "0.6.3+compat"
__author__ = "the authors of the SPG plugin, after the interface of Kaiyang Zhou's Dassl.pytorch"
__homepage__ = "https://github.com/KaiyangZhou/Dassl.pytorch"  # of the original

install()
