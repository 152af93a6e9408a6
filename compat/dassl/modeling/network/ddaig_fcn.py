"""The networks of DDAIG (Zhou et al., AAAI 2020) that perturb an image so that its domain is not to be told.

Submodules are called as in Dassl.pytorch, whose checkpoints load.
"""

import functools
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F

from dassl.utils.torchtools import init_network_weights

from .build import NETWORK_REGISTRY

_PADDINGS = {"reflect": nn.ReflectionPad2d, "replicate": nn.ReplicationPad2d, "zero": None}


def get_norm_layer(norm_type: str = "instance") -> Callable[[int], nn.Module] | None:
    """Return what makes a normalisation layer for so many channels: batch (learnt), instance (not); none: None.

    Raises:
        NotImplementedError: another ``norm_type``.
    """
    if norm_type == "batch":
        return functools.partial(nn.BatchNorm2d, affine=True)
    if norm_type == "instance":
        return functools.partial(nn.InstanceNorm2d, affine=False, track_running_stats=False)
    if norm_type == "none":
        return None
    raise NotImplementedError(f"Unknown norm_type {norm_type!r}. Accepted: batch, instance, none.")


def _convolution(width_in, width_out, padding_type, stride=1, bias=False):
    """A 3 x 3 convolution that keeps the size of the image, as a list of layers."""
    if padding_type not in _PADDINGS:
        raise NotImplementedError(f"Unknown padding_type {padding_type!r}. Accepted: {', '.join(_PADDINGS)}.")
    pad = _PADDINGS[padding_type]
    zeros = 1 if pad is None else 0
    convolution = nn.Conv2d(width_in, width_out, kernel_size=3, stride=stride, padding=zeros, bias=bias)
    return [convolution] if pad is None else [pad(1), convolution]


class ResnetBlock(nn.Module):
    """Two convolutions beside a shortcut.

    Args:
        dim (int): channels.
        padding_type (str): reflect, replicate or zero.
        norm_layer: makes a normalisation layer for so many channels.
        use_dropout (bool): dropout of 0.5 between the convolutions.
        use_bias (bool): convolutions with bias.
    """

    def __init__(
        self, dim: int, padding_type: str, norm_layer: Callable[[int], nn.Module], use_dropout: bool, use_bias: bool
    ) -> None:
        super().__init__()
        self.conv_block = self.build_conv_block(dim, padding_type, norm_layer, use_dropout, use_bias)

    def build_conv_block(
        self, dim: int, padding_type: str, norm_layer: Callable[[int], nn.Module], use_dropout: bool, use_bias: bool
    ) -> nn.Sequential:
        """Return the layers beside the shortcut."""
        layers = [*_convolution(dim, dim, padding_type, bias=use_bias), norm_layer(dim), nn.ReLU(True)]
        if use_dropout:
            layers.append(nn.Dropout(0.5))
        return nn.Sequential(*layers, *_convolution(dim, dim, padding_type, bias=use_bias), norm_layer(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (B, dim, H, W) to the same shape."""
        return x + self.conv_block(x)


class LocNet(nn.Module):
    """Says by which linear map a spatial transformer looks at an image.

    Args:
        input_nc (int): channels of the image.
        nc (int): channels within.
        n_blocks (int): residual blocks, each of which halves the image.
        use_dropout (bool): dropout within the blocks.
        padding_type (str): reflect, replicate or zero; of the blocks.
        image_size (int): height and width of the image.
    """

    def __init__(
        self,
        input_nc: int,
        nc: int = 32,
        n_blocks: int = 3,
        use_dropout: bool = False,
        padding_type: str = "zero",
        image_size: int = 32,
    ) -> None:
        super().__init__()
        layers = [*_convolution(input_nc, nc, "zero", stride=2), nn.BatchNorm2d(nc), nn.ReLU(True)]
        for _ in range(n_blocks):
            layers += [ResnetBlock(nc, padding_type, nn.BatchNorm2d, use_dropout, False), nn.MaxPool2d(2, stride=2)]
        self.backbone = nn.Sequential(*layers)
        self.fc_loc = nn.Linear(nc * int(image_size * 0.5 ** (n_blocks + 1)) ** 2, 2 * 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """From (B, C, H, W) to affine maps (B, 2, 3) with entries between -1 and 1 and without translation."""
        theta = torch.tanh(self.fc_loc(self.backbone(x).flatten(1))).view(-1, 2, 2)
        return F.pad(theta, (0, 1))


class FCN(nn.Module):
    """From an image to one with an additive perturbation between -1 and 1.

    Args:
        input_nc, output_nc (int): channels of the image and of the perturbation.
        nc (int): channels within.
        n_blocks (int): residual blocks.
        norm_layer: makes a normalisation layer for so many channels.
        use_dropout (bool): dropout within the blocks.
        padding_type (str): reflect, replicate or zero.
        gctx (bool): put the mean over the image beside each place.
        stn (bool): look at the image through a spatial transformer first.
        image_size (int): height and width of the image, for the transformer.
    """

    def __init__(
        self,
        input_nc: int,
        output_nc: int,
        nc: int = 32,
        n_blocks: int = 3,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
        use_dropout: bool = False,
        padding_type: str = "reflect",
        gctx: bool = True,
        stn: bool = False,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        layers = [*_convolution(input_nc, nc, padding_type), norm_layer(nc), nn.ReLU(True)]
        layers += [ResnetBlock(nc, padding_type, norm_layer, use_dropout, False) for _ in range(n_blocks)]
        self.backbone = nn.Sequential(*layers)
        self.gctx_fusion = None
        if gctx:
            fusion = nn.Conv2d(2 * nc, nc, kernel_size=1, bias=False)
            self.gctx_fusion = nn.Sequential(fusion, norm_layer(nc), nn.ReLU(True))
        self.regress = nn.Sequential(nn.Conv2d(nc, output_nc, kernel_size=1), nn.Tanh())
        self.locnet = LocNet(input_nc, nc=nc, n_blocks=n_blocks, image_size=image_size) if stn else None

    def init_loc_layer(self) -> None:
        """Have the transformer begin near the identity."""
        if self.locnet is not None:
            nn.init.zeros_(self.locnet.fc_loc.weight)
            self.locnet.fc_loc.bias.data = torch.tensor([1.0, 0.0, 0.0, 1.0])

    def stn(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the images (B, C, H, W) through the transformer, and its maps (B, 2, 3)."""
        theta = self.locnet(x)
        grid = F.affine_grid(theta, x.size(), align_corners=False)
        return F.grid_sample(x, grid, align_corners=False), theta

    def forward(
        self, x: torch.Tensor, lmda: float = 1.0, return_p: bool = False, return_stn_output: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Perturb images.

        Args:
            x: images (B, C, H, W).
            lmda (float): weight of the perturbation.
            return_p (bool): return the perturbation as well.
            return_stn_output (bool): return the perturbation and the images that it was added to as well.

        Returns:
            the perturbed images, of the shape of ``x``, or a tuple of two or three that begins with them.
        """
        image = x if self.locnet is None else self.stn(x)[0]
        features = self.backbone(image)
        if self.gctx_fusion is not None:
            mean = F.adaptive_avg_pool2d(features, 1).expand_as(features)
            features = self.gctx_fusion(torch.cat([features, mean], dim=1))
        perturbation = self.regress(features)
        perturbed = image + lmda * perturbation
        if return_stn_output:
            return perturbed, perturbation, image
        return (perturbed, perturbation) if return_p else perturbed


def _fcn(nc, **settings):
    network = FCN(3, 3, nc=nc, norm_layer=get_norm_layer("instance"), **settings)
    init_network_weights(network, init_type="normal", gain=0.02)
    network.init_loc_layer()
    return network


@NETWORK_REGISTRY.register()
def fcn_3x32_gctx(**kwargs: object) -> FCN:
    """3 blocks of 32 channels."""
    return _fcn(32)


@NETWORK_REGISTRY.register()
def fcn_3x64_gctx(**kwargs: object) -> FCN:
    """3 blocks of 64 channels."""
    return _fcn(64)


@NETWORK_REGISTRY.register()
def fcn_3x32_gctx_stn(image_size: int = 32, **kwargs: object) -> FCN:
    """3 blocks of 32 channels behind a spatial transformer, for images of ``image_size``."""
    return _fcn(32, stn=True, image_size=image_size)


@NETWORK_REGISTRY.register()
def fcn_3x64_gctx_stn(image_size: int = 224, **kwargs: object) -> FCN:
    """3 blocks of 64 channels behind a spatial transformer, for images of ``image_size``."""
    return _fcn(64, stn=True, image_size=image_size)
