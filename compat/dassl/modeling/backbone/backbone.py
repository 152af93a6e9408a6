"""What a backbone offers."""

from torch import nn


class Backbone(nn.Module):
    """Base class of networks from images to features; a subclass sets ``_out_features`` and has a ``forward``."""

    @property
    def out_features(self) -> int | None:
        """Number of features; None where the subclass does not say."""
        return self.__dict__.get("_out_features")
