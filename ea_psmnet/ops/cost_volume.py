"""The concatenation cost volume of PSMNet (Chang and Chen, CVPR 2018, section 3.3).

Shapes: B batch, C channels, K disparities at feature resolution, H and W of the features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["concat_volume", "concat_volume_reference"]


def concat_volume_reference(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Left features beside the right features shifted by each disparity; zero where x < d.

    Args:
        left: (B, C, H, W) features of the left image.
        right: (B, C, H, W) features of the right image.
        disparities: K, in feature pixels.

    Returns:
        (B, 2C, K, H, W).
    """
    slices = []
    for d in range(disparities):
        visible = max(left.shape[-1] - d, 0)
        pair = torch.cat([left[..., left.shape[-1] - visible :], right[..., :visible]], dim=1)
        slices.append(F.pad(pair, (left.shape[-1] - visible, 0)))  # (B, 2C, H, W)
    return torch.stack(slices, dim=2)  # (B, 2C, K, H, W)


class _ConcatVolume(torch.autograd.Function):
    """Fills one buffer in the features' memory layout; the backward sums it slice by slice."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, disparities: int) -> Tensor:
        batch, channels, height, width = left.shape
        ctx.channels = channels
        channels_last = left.is_contiguous(memory_format=torch.channels_last) and channels > 1
        volume = torch.empty(
            (batch, 2 * channels, disparities, height, width),
            dtype=left.dtype,
            device=left.device,
            memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format,
        ).zero_()
        for d in range(min(disparities, width)):
            volume[:, :channels, d, :, d:] = left[..., d:]
            volume[:, channels:, d, :, d:] = right[..., : width - d]
        return volume

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,) = grads  # (B, 2C, K, H, W)
        channels, (disparities, _, width) = ctx.channels, grad.shape[2:]
        accumulate = torch.promote_types(grad.dtype, torch.float32)
        grad_left = torch.zeros_like(grad[:, :channels, 0], dtype=accumulate)  # (B, C, H, W)
        grad_right = torch.zeros_like(grad_left)
        for d in range(min(disparities, width)):
            grad_left[..., d:] += grad[:, :channels, d, :, d:]
            grad_right[..., : width - d] += grad[:, channels:, d, :, d:]
        return grad_left.to(grad.dtype), grad_right.to(grad.dtype), None


def concat_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """`concat_volume_reference` in one buffer: no stack to copy, no padded slices to keep.

    Keeps channels-last features channels-last; the backward accumulates in float32 at least.
    """
    return _ConcatVolume.apply(left, right, disparities)
