"""Convolutions with batch normalisation, as PSMNet pairs them, and their initialisation."""

from __future__ import annotations

import math

import torch
from torch import nn

from ea_psmnet.attention import VolumeAttention

__all__ = ["conv2d_bn", "conv3d_bn", "deconv3d_bn", "initialise", "to_channels_last"]


def conv2d_bn(
    inputs: int, outputs: int, kernel: int = 3, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    """(B, inputs, H, W) to (B, outputs, H / stride, W / stride); padded to keep the size."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


def conv3d_bn(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    """(B, inputs, D, H, W) to (B, outputs, ...), each side divided by the stride."""
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm3d(outputs)
    )


def deconv3d_bn(inputs: int, outputs: int) -> nn.Sequential:
    """(B, inputs, D, H, W) to (B, outputs, 2D, 2H, 2W)."""
    return nn.Sequential(
        nn.ConvTranspose3d(inputs, outputs, 3, 2, padding=1, output_padding=1, bias=False),
        nn.BatchNorm3d(outputs),
    )


def initialise(module: nn.Module) -> None:
    """He initialisation over the fan out, as PSMNet's code does.

    Transposed convolutions keep torch's default, as there; attention modules keep their own.
    """
    for child in module.children():
        if isinstance(child, nn.Conv2d | nn.Conv3d):
            fan_out = math.prod(child.kernel_size) * child.out_channels
            nn.init.normal_(child.weight, std=math.sqrt(2 / fan_out))
        elif not isinstance(child, VolumeAttention):
            initialise(child)


def to_channels_last(module: nn.Module) -> None:
    """Store convolution weights channels-last, 2D and 3D alike; activations then follow."""
    layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in layouts:
            parameter.data = parameter.data.contiguous(memory_format=layouts[parameter.dim()])
