"""Convolutions with batch normalisation, as PSMNet pairs them, and their initialisation."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention import VolumeAttention
from ea_psmnet.models.normalisation import BatchNorm2d, BatchNorm3d
from ea_psmnet.ops.convolutions import score_conv, score_conv_reference
from ea_psmnet.ops.cost_volume import PairVolume, volume_conv
from ea_psmnet.ops.native.narrow_conv3d import narrow_conv3d
from ea_psmnet.ops.trained_conv import (
    learns_faster,
    trained_conv,
    trained_conv_transpose3d,
)


class _PointConv2d(nn.Conv2d):
    """A strided 1x1 convolution, computed as one of stride 1 of a subsampled image.

    oneDNN's backward of the strided convolution, channels-last, can write outside of its memory if
    channels are few: with torch 2.15, 8 to 16 channels at stride 2 crash the process.
    """

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        down, across = self.stride
        return F.conv2d(images[..., ::down, ::across], self.weight, self.bias)


class SameSizeConv2d(nn.Conv2d):
    """A 3x3 convolution of stride 1, padded by its dilation; in training by `trained_conv`."""

    def __init__(self, inputs: int, outputs: int, dilation: int = 1) -> None:
        super().__init__(inputs, outputs, 3, 1, dilation, dilation, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W)."""
        if self.bias is not None:
            return super().forward(images)
        return trained_conv(images, self.weight, dilation=self.dilation[0])


class VolumeConv3d(nn.Conv3d):
    """A 3x3x3 convolution of a cost volume in parts; concatenations may be given by their factors.

    Args:
        channels: Channels of each part; for a concatenation those of both images together.
        outputs: Channels of the result.
    """

    def __init__(self, channels: Sequence[int], outputs: int) -> None:
        super().__init__(sum(channels), outputs, 3, padding=1, bias=False)
        self.parts = tuple(channels)

    def forward(  # type: ignore[override]
        self, volume: Sequence[PairVolume | Tensor]
    ) -> Tensor:
        """The parts of a volume to (B, outputs, K, H, W)."""
        weights = self.weight.split(self.parts, dim=1)
        biases = [self.bias] + [None] * (len(weights) - 1)
        convolved = map(self._convolve, volume, weights, biases)
        return functools.reduce(torch.add, convolved)

    def _convolve(self, part: PairVolume | Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if isinstance(part, Tensor):
            return _convolve(part, weight, bias)
        volume = volume_conv(part, weight)
        return volume if bias is None else volume + bias.view(-1, 1, 1, 1)


class _Conv3d(nn.Conv3d):
    """A padded 3x3x3 convolution without a bias."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, 3, stride, padding=1, bias=False)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, outputs, ...), each side divided by the stride."""
        if self.stride[0] > 1:
            return trained_conv(volume, self.weight, stride=self.stride[0])
        return _convolve(volume, self.weight)


def _convolve(volume: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A padded 3x3x3 convolution of stride 1 in the fastest form there is."""
    if bias is None and learns_faster(volume, weight):
        return trained_conv(volume, weight)
    return narrow_conv3d(volume, weight, bias)


class _DoublingConv3d(nn.ConvTranspose3d):
    """A transposed 3x3x3 convolution without a bias that doubles all sides."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, 2, padding=1, output_padding=1, bias=False)

    def forward(self, volume: Tensor) -> Tensor:  # type: ignore[override]
        """(B, inputs, D, H, W) to (B, outputs, 2D, 2H, 2W)."""
        return trained_conv_transpose3d(volume, self.weight)


class ScoreConv3d(nn.Conv3d):
    """A 3x3x3 convolution to one channel, as nine taps or in the published form."""

    plain: bool = False

    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1, 3, padding=1, bias=False)

    def forward(self, volume: Tensor) -> Tensor:
        """(B, inputs, D, H, W) to (B, 1, D, H, W)."""
        return (score_conv_reference if self.plain else score_conv)(volume, self.weight)


def conv2d_bn(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """(B, inputs, H, W) to (B, outputs, H / stride, W / stride); padded to keep the size."""
    if (kernel, stride) == (3, 1):
        return nn.Sequential(SameSizeConv2d(inputs, outputs, dilation), BatchNorm2d(outputs))
    padding = dilation * (kernel // 2)
    convolution = _PointConv2d if kernel == 1 and stride > 1 else nn.Conv2d
    return nn.Sequential(
        convolution(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        BatchNorm2d(outputs),
    )


def conv3d_bn(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """(B, inputs, D, H, W) to (B, outputs, ...), each side divided by the stride."""
    return nn.Sequential(_Conv3d(inputs, outputs, stride), BatchNorm3d(outputs))


def deconv3d_bn(inputs: int, outputs: int) -> nn.Sequential:
    """(B, inputs, D, H, W) to (B, outputs, 2D, 2H, 2W)."""
    return nn.Sequential(_DoublingConv3d(inputs, outputs), BatchNorm3d(outputs))


def initialise(module: nn.Module) -> None:
    """Initialise convolutions as PSMNet's code does: He initialisation over the fan out.

    Transposed convolutions keep torch's default, as in that code; attention modules keep their own.
    """
    for child in module.children():
        if isinstance(child, nn.Conv2d | nn.Conv3d):
            fan_out = math.prod(child.kernel_size) * child.out_channels
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
        elif not isinstance(child, VolumeAttention):
            initialise(child)


def to_channels_last(module: nn.Module) -> None:
    """Store convolution weights channels-last, so that activations become channels-last, too."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
