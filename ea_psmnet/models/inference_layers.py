"""Layers that only the arrangement for inference has."""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from ea_psmnet.models.aggregation import Classifier, Residual
from ea_psmnet.models.features import ResidualBlock
from ea_psmnet.models.layers import VolumeConv3d
from ea_psmnet.ops.factored_volume import (
    PairVolume,
    VolumeKernels,
    convolve_factored,
    volume_kernels,
)
from ea_psmnet.ops.narrow_conv3d import is_narrow, narrow_conv3d
from ea_psmnet.ops.rounding import round_kernel
from ea_psmnet.ops.slabs import Convolve, convolve_in_place, residual_in_place, score_in_slabs
from ea_psmnet.ops.winograd import (
    Products,
    winograd_conv2d,
    winograd_conv3d,
    winograd_products,
)
from ea_psmnet.ops.winograd_compiled import compiled_conv2d, compiled_conv3d, compiled_kernels

__all__ = [
    "AddingBlock",
    "Cast",
    "CompiledConv2d",
    "CompiledConv3d",
    "DirectConv3d",
    "FactoredConv",
    "FullPrecision",
    "SlabClassifier",
    "SlabConv",
    "SlabResidual",
    "WinogradConv2d",
    "WinogradConv3d",
]


class FullPrecision(nn.Sequential):
    """Layers out of autocast's reach.

    On the CPU for one image at a time, which takes less memory.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to whatever the last layer makes of it."""
        images = x.split(1) if x.device.type == "cpu" else (x,)
        with torch.autocast(x.device.type, enabled=False):
            return torch.cat([nn.Sequential.forward(self, image) for image in images])


class Cast(nn.Module):
    """To another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return x.to(self.dtype)


class _Replacing(nn.Module):
    """A module that takes another's place."""

    @classmethod
    def like(cls, module: nn.Module) -> Self:
        """One that shares another's settings, parameters and parts."""
        made = cls.__new__(cls)
        made.__dict__.update(module.__dict__)
        return made


class DirectConv3d(_Replacing, nn.Conv3d):
    """By oneDNN on the CPU whatever the size.

    For a single small float32 volume torch picks a convolution of its own, several times slower.
    """

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...)."""
        return self._convolve(volume, cast(tuple[int, ...], self.padding))

    def between(self, volume: Tensor) -> Tensor:
        """(B, inputs, D + 2, H, W) to (B, outputs, D, H, W): rows and columns alone are padded."""
        return self._convolve(volume, (0, 1, 1))

    def _convolve(self, volume: Tensor, padding: tuple[int, ...]) -> Tensor:
        taps, steps = set(self.kernel_size), set(self.stride)
        if (taps, steps) == ({3}, {1}) and is_narrow(volume, self.weight):
            return narrow_conv3d(volume, self.weight, self.bias, padded=padding[0] == 1)
        kernel, rest = (self.weight, self.bias), (self.dilation, self.groups)
        if not (volume.device.type == "cpu" and volume.dtype == torch.float32 and _has_onednn()):
            return F.conv3d(volume, *kernel, self.stride, padding, *rest)
        return torch.ops.aten.mkldnn_convolution(volume, *kernel, padding, self.stride, *rest)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)


class _Winograd(_Replacing):
    """A convolution that takes half the multiplications, for the CPU."""

    kernels: Tensor
    biases: Tensor

    @classmethod
    def like(cls, module: nn.Module) -> Self:
        """With the products' kernels made from the other's weight, which has a bias."""
        made = super().like(module)
        assert isinstance(module, _ConvNd)
        assert module.bias is not None
        made._buffers = dict(module._buffers)
        for name, tensor in winograd_products(module.weight, module.bias)._asdict().items():
            made.register_buffer(name, tensor, persistent=False)
        return made

    def round_products(self, dtype: torch.dtype) -> None:
        """From here on in another type."""
        rounded = round_kernel(self.kernels.flatten(0, 1), dtype)
        self.kernels, self.biases = rounded.view_as(self.kernels), self.biases.to(dtype)

    def _products(self) -> Products:
        return Products(self.kernels, self.biases)


class WinogradConv3d(_Winograd, DirectConv3d):
    """A 3x3x3 convolution of stride 1."""

    def _convolve(self, volume: Tensor, padding: tuple[int, ...]) -> Tensor:
        given = volume.to(self.kernels.dtype)
        return winograd_conv3d(given, self._products(), padded=padding[0] > 0)


class WinogradConv2d(_Winograd, nn.Conv2d):
    """A 3x3 convolution of stride 1."""

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        rows = self.dilation[0]
        return winograd_conv2d(images.to(self.kernels.dtype), self._products(), dilation=rows)


class _Compiled(nn.Module):
    """A convolution in compiled code, on the CPU; see `compiled_kernels` about narrow ones."""

    kernels: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, *, narrow: bool) -> None:
        super().__init__()
        assert conv.bias is not None
        self.dtype = torch.float32
        self.positive = False
        kernels = compiled_kernels(conv.weight, narrow=narrow)
        self.register_buffer("kernels", kernels, persistent=False)
        self.register_buffer("bias", conv.bias.detach().float(), persistent=False)


class CompiledConv3d(_Compiled):
    """A 3x3x3 convolution of stride 1."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, D, H, W)."""
        return self._convolve(volume, padded=True)

    def between(self, volume: Tensor) -> Tensor:
        """(B, inputs, D + 2, H, W) to (B, outputs, D, H, W): rows and columns alone are padded."""
        return self._convolve(volume, padded=False)

    def _convolve(self, volume: Tensor, *, padded: bool) -> Tensor:
        given = volume.to(self.dtype)
        return compiled_conv3d(
            given, self.kernels, self.bias, padded=padded, positive=self.positive
        )


class CompiledConv2d(_Compiled):
    """A 3x3 convolution of stride 1."""

    def __init__(self, conv: nn.Conv2d, *, narrow: bool) -> None:
        super().__init__(conv, narrow=narrow)
        self.dilation = conv.dilation[0]

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        return self._convolve(images, None)

    def add_to(self, total: Tensor, images: Tensor) -> Tensor:
        """The total (B, outputs, H, W), overwritten, with the convolution of (B, inputs, H, W)."""
        return self._convolve(images, total)

    def _convolve(self, images: Tensor, total: Tensor | None) -> Tensor:
        return compiled_conv2d(
            images.to(self.dtype),
            self.kernels,
            self.bias,
            dilation=self.dilation,
            positive=self.positive,
            total=total,
        )


class AddingBlock(_Replacing, ResidualBlock):
    """A block whose second convolution adds to the shortcut: without one to the maps it is given.

    So they are overwritten. The features that are used again pass a shortcut convolution.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W), which may be overwritten, to (B, outputs, H / stride, W / stride)."""
        second = cast(CompiledConv2d, self.conv2[0])
        hidden = self.conv1(x)
        return second.add_to(self.shortcut(x), hidden)


class FactoredConv(nn.Module):
    """A `VolumeConv3d` of a concatenation alone, by 2D kernels made once."""

    def __init__(self, conv: VolumeConv3d) -> None:
        super().__init__()
        kernels = volume_kernels(conv.weight)
        self.left, self.right = (nn.Parameter(k, requires_grad=False) for k in kernels)
        self.bias = conv.bias

    def forward(self, volume: tuple[PairVolume]) -> Tensor:
        """See `volume_conv`."""
        return convolve_factored(volume[0], VolumeKernels(self.left, self.right), self.bias)


class SlabConv(_Replacing, nn.Sequential):
    """A convolution that overwrites the volume it is given, some disparities at a time.

    The volume keeps its number of channels.
    """

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to the same."""
        return convolve_in_place(volume, _convolution(self, "0").between)


class SlabResidual(_Replacing, Residual):
    """Adds to the volume it is given, some disparities at a time."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w), overwritten with the result."""
        second = _convolution(self, "2.0")
        return residual_in_place(volume, _activated(self), second.between)


class SlabClassifier(_Replacing, Classifier):
    """Scores, some disparities at a time."""

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, K, h, w) to (B, 1, K, h, w)."""
        return score_in_slabs(volume, _activated(self), cast(Tensor, self[2].weight))


def _activated(module: nn.Sequential) -> Convolve:
    """A module's first convolution and the activation behind it."""
    first, activation = _convolution(module, "0.0"), module[1]
    return lambda volume: activation(first.between(volume))


def _convolution(module: nn.Module, name: str) -> DirectConv3d | CompiledConv3d:
    return cast(DirectConv3d | CompiledConv3d, module.get_submodule(name))
