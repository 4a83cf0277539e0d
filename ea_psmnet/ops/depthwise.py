"""Depth-wise 2D convolutions whose backward is in float32.

On CPUs oneDNN's bfloat16 backward of depth-wise convolutions takes four to eight times as long as
its float32 one (torch 2.15, AVX-512-BF16).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["depthwise_conv"]


def depthwise_conv(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
) -> Tensor:
    """`torch.nn.functional.conv2d` with one kernel a channel.

    Args:
        images: (B, C, H, W).
        weight: (C, 1, k, k).
        bias: (C,) or None.
        stride: Along both sides.
        padding: Zeros around the images.
    """
    device = images.device.type
    half = torch.is_autocast_enabled(device)
    if not (half and device == "cpu" and torch.is_grad_enabled() and bias is None):
        return F.conv2d(images, weight, bias, stride, padding, groups=len(weight))
    return _DepthwiseConv.apply(images, weight, stride, padding, torch.get_autocast_dtype(device))


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, images: Tensor, weight: Tensor, stride: int, padding: int, dtype: torch.dtype
    ) -> Tensor:
        images = images.to(dtype)
        ctx.save_for_backward(images, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(images, weight.to(dtype), None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        images, weight = ctx.saved_tensors
        of_images, of_weight, _ = torch.ops.aten.convolution_backward(
            grads[0].float(),
            images.float(),
            weight.float(),
            None,
            (ctx.stride, ctx.stride),
            (ctx.padding, ctx.padding),
            (1, 1),
            False,
            (0, 0),
            len(weight),
            (True, True, False),
        )
        return of_images.to(images.dtype), of_weight.to(weight.dtype), None, None, None
