"""A Dassl-compatible core: what CoOp-style trainers import as ``dassl``, written for today's PyTorch.

It stands alone. An installed Dassl.pytorch can take its place, and the other way round.
Nothing is imported here, so that ``import dassl.config`` stays free of torch.
"""

__version__ = "0.6.3+compat"
