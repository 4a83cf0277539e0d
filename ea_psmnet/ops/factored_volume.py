"""The first 3D convolution over PSMNet's concatenation volume, without that volume.

The volume's left half is the left features wherever x >= d, its right half the right features
shifted by d, and both are zero elsewhere. So a 3x3x3 convolution of it is, at disparity d and
column x, with s = x - d:

- a 2D convolution of the left features with the disparity taps summed. Near the mask's border, for
  s from -2 to 1, the taps that see x + kx - 1 < d + kd - 1 are taken back;
- a 2D convolution of the right features, 3 rows by 5 columns (kx - kd runs from -2 to 2), read at
  column s. In the last column, x = W - 1, the taps beyond the image are taken back.

Disparity 0 lacks the tap kd = 0 and disparity K - 1 the tap kd = 2: three sets of kernels.

Shapes: B batch, C channels a side, O outputs, K disparities, H and W of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.cost_volume import concat_volume_reference
from ea_psmnet.ops.precision import full_precision

__all__ = [
    "PairVolume",
    "VolumeKernels",
    "convolve_factored",
    "volume_conv",
    "volume_conv_reference",
    "volume_kernels",
]

_ENDS = 3  # sets of kernels: disparity 0, those between, disparity K - 1
_NEAR = 4  # distances s from the mask's border, -2 to 1, where taps are taken back
_REACH = 2  # kx - kd at most


class PairVolume(NamedTuple):
    """A concatenation volume (B, 2C, K, H, W) by its factors."""

    left: Tensor
    """(B, C, H, W) features of the left image."""
    right: Tensor
    """(B, C, H, W) features of the right image."""
    disparities: int
    """K, in feature pixels."""


class VolumeKernels(NamedTuple):
    """A 3x3x3 kernel over both images' features as 2D kernels of either."""

    left: Tensor
    """(3 * 5 * O, C, 3, 3): for each set of taps, what four distances take back, then all."""
    right: Tensor
    """(3 * 2 * O, C, 3, 5): for each set of taps, all, then what the last column takes back."""


def volume_conv_reference(volume: PairVolume, weight: Tensor) -> Tensor:
    """Convolve the concatenation volume with a padded 3x3x3 kernel.

    Args:
        volume: the factors.
        weight: (O, 2C, 3, 3, 3).

    Returns:
        (B, O, K, H, W).
    """
    return F.conv3d(concat_volume_reference(*volume), weight, padding=1)


def volume_conv(volume: PairVolume, weight: Tensor) -> Tensor:
    """`volume_conv_reference` from two 2D convolutions: 2K times less work, half the memory.

    The result is channels-last; the backward sums over disparities in float32 at least. Falls back
    to the reference for fewer than two disparities.
    """
    if volume.disparities < 2:
        return volume_conv_reference(volume, weight)
    return convolve_factored(volume, volume_kernels(weight))


@full_precision
def volume_kernels(weight: Tensor) -> VolumeKernels:
    """Sum a kernel (O, 2C, 3, 3, 3) into its 2D factors, exactly."""
    left, right = weight.chunk(2, dim=1)  # (O, C, kd, ky, kx)
    taps = torch.arange(3, device=weight.device)
    kd, kx = taps[:, None], taps
    ends = torch.stack([taps > 0, taps >= 0, taps < 2])  # (set, kd)
    distances = torch.arange(-_REACH, _NEAR - _REACH, device=weight.device)[:, None, None]
    hidden = kd - kx > distances  # (s, kd, kx)
    sides = torch.stack([*(-hidden.to(weight.dtype)), torch.ones_like(left[0, 0, :, 0])])
    reach = torch.arange(-_REACH, _REACH + 1, device=weight.device)
    shift = kx[..., None] - kd[..., None] == reach  # (kd, kx, j)
    columns = torch.stack([torch.ones_like(kx), -(kx == 2).long()])  # (2, kx)
    ends, shift, columns = (m.to(weight.dtype) for m in (ends, shift, columns))
    return VolumeKernels(
        torch.einsum("ocdyx,td,sdx->tsocyx", left, ends, sides).flatten(0, 2),
        torch.einsum("ocdyx,td,ex,dxj->teocyj", right, ends, columns, shift).flatten(0, 2),
    )


def convolve_factored(
    volume: PairVolume, kernels: VolumeKernels, bias: Tensor | None = None
) -> Tensor:
    """`volume_conv` with kernels made before; for inference, plus a bias (O,)."""
    # No name for what a convolution makes, so that it is gone before the volume is made.
    left = _split(F.conv2d(volume.left, kernels.left, padding=1), _NEAR + 1)
    padded = F.pad(volume.right, (2 * _REACH, _REACH, 0, 0))
    right = _split(F.conv2d(padded, kernels.right, padding=(1, 0)), 2)  # columns s = -2 to W - 1
    return _Assemble.apply(left, right, volume.disparities, bias)


def _split(maps: Tensor, kinds: int) -> Tensor:
    """(B, 3 * kinds * O, H, W) to (3, kinds, B, O, H, W), each map channels-last by itself."""
    maps = maps.unflatten(1, (_ENDS, kinds, -1))  # (B, 3, kinds, O, H, W)
    return maps.permute(1, 2, 0, 4, 5, 3).contiguous().permute(0, 1, 2, 5, 3, 4)


def _contributions(volume: Tensor, left: Tensor, right: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of a volume (B, O, K, H, W) and the parts of the maps that add up there."""
    disparities, width = volume.shape[2], volume.shape[4]
    for d in range(min(disparities, width + _REACH)):
        end = 0 if d == 0 else 2 if d == disparities - 1 else 1
        first = max(d - _REACH, 0)
        visible = volume[:, :, d, :, first:]
        yield visible, left[end, _NEAR, ..., first:]
        yield visible, right[end, 0, ..., first - d + _REACH : width - d + _REACH]
        yield volume[:, :, d, :, -1], right[end, 1, ..., width - 1 - d + _REACH]
        for near in range(_NEAR):
            x = d + near - _REACH
            if 0 <= x < width:
                yield volume[:, :, d, :, x], left[end, near, ..., x]


class _Assemble(torch.autograd.Function):
    """Adds up the maps; a linear map, whose backward adds the other way."""

    @staticmethod
    def forward(
        ctx: Any, left: Tensor, right: Tensor, disparities: int, bias: Tensor | None
    ) -> Tensor:
        ctx.shapes = left.shape, right.shape
        _, _, batch, channels, height, width = left.shape
        volume = left.new_zeros(batch, disparities, height, width, channels)
        if bias is not None:
            volume += bias
        volume = volume.permute(0, 4, 1, 2, 3)  # (B, O, K, H, W)
        for part, maps in _contributions(volume, left, right):
            part += maps
        return volume

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        accumulate = torch.promote_types(grad.dtype, torch.float32)
        sums = [
            grad.new_zeros([*shape[:3], *shape[4:], shape[3]], dtype=accumulate).movedim(-1, 3)
            for shape in ctx.shapes
        ]
        for part, maps in _contributions(grad, *sums):
            maps += part
        left, right = (total.to(grad.dtype) for total in sums)
        return left, right, None, None
