"""Layers that only the arrangement for inference has."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ea_psmnet.models.layers import VolumeConv3d
from ea_psmnet.ops.factored_volume import (
    PairVolume,
    VolumeKernels,
    convolve_factored,
    volume_kernels,
)
from ea_psmnet.ops.winograd import (
    Products,
    winograd_conv2d,
    winograd_conv3d,
    winograd_products,
)

__all__ = [
    "Cast",
    "DirectConv3d",
    "FactoredConv",
    "FullPrecision",
    "WinogradConv2d",
    "WinogradConv3d",
]


class FullPrecision(nn.Sequential):
    """Layers out of autocast's reach."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to whatever the last layer makes of it."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


class Cast(nn.Module):
    """To another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x.to(self.dtype)


class _Replacing(_ConvNd):
    """A convolution that takes another's place."""

    @classmethod
    def like(cls, conv: _ConvNd) -> Self:
        """One that shares another's settings and parameters."""
        made = cls.__new__(cls)
        made.__dict__.update(conv.__dict__)
        return made


class DirectConv3d(_Replacing, nn.Conv3d):
    """By oneDNN on the CPU whatever the size.

    For a single small float32 volume torch picks a convolution of its own, several times slower.
    """

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...)."""
        if not (volume.device.type == "cpu" and volume.dtype == torch.float32 and _has_onednn()):
            return super().forward(volume)
        return torch.ops.aten.mkldnn_convolution(
            volume, self.weight, self.bias, self.padding, self.stride, self.dilation, self.groups
        )


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _Winograd(_Replacing):
    """A convolution that on the CPU takes half the multiplications."""

    kernels: Tensor
    biases: Tensor

    @classmethod
    def like(cls, conv: _ConvNd) -> Self:
        """With the products' kernels made from the other's weight, which has a bias."""
        made = super().like(conv)
        assert conv.bias is not None
        made._buffers = dict(conv._buffers)
        for name, tensor in winograd_products(conv.weight, conv.bias)._asdict().items():
            made.register_buffer(name, tensor, persistent=False)
        return made

    def _products(self) -> Products:
        return Products(self.kernels, self.biases)


class WinogradConv3d(_Winograd, DirectConv3d):
    """A 3x3x3 convolution of stride 1."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        if volume.device.type != "cpu":
            return super().forward(volume)
        return winograd_conv3d(volume.to(self.weight.dtype), self._products())


class WinogradConv2d(_Winograd, nn.Conv2d):
    """A 3x3 convolution of stride 1."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        if images.device.type != "cpu":
            return super().forward(images)
        rows = self.dilation[0]
        return winograd_conv2d(images.to(self.weight.dtype), self._products(), dilation=rows)


class FactoredConv(nn.Module):
    """A `VolumeConv3d` by 2D kernels made once."""

    def __init__(self, conv: VolumeConv3d) -> None:
        super().__init__()
        kernels = volume_kernels(conv.weight)
        self.left, self.right = (nn.Parameter(k, requires_grad=False) for k in kernels)
        self.bias = conv.bias

    def forward(self, volume: PairVolume) -> Tensor:
        """See `volume_conv`."""
        return convolve_factored(volume, VolumeKernels(self.left, self.right), self.bias)
