"""Cost volumes: concatenation, convolved by its factors, and group-wise correlation.

Shapes: B batch, C channels a side, G groups, O outputs, K disparities at feature resolution, H and
W of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native.group_correlation import (
    compiled_correlation,
    compiled_correlation_backward,
    is_compiled_for,
)
from ea_psmnet.ops.precision import full_precision, lean_backward, widen


def concat_volume_reference(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Left features beside the right features shifted by each disparity; zero where x < d.

    PSMNet's volume (Chang and Chen, CVPR 2018, section 3.3), filled by a loop over disparities as
    published; the network convolves it by its factors instead (`volume_conv`).

    Args:
        left: (B, C, H, W) features of the left image.
        right: (B, C, H, W) features of the right image.
        disparities: K, in feature pixels.

    Returns:
        (B, 2C, K, H, W).
    """
    batch, channels, height, width = left.shape
    volume = left.new_zeros(batch, 2 * channels, disparities, height, width)
    for d in range(min(disparities, width)):
        volume[:, :channels, d, :, d:] = left[..., d:]
        volume[:, channels:, d, :, d:] = right[..., : width - d]
    return volume


def concat_volume_stacked(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """`concat_volume_reference` for exported graphs: slices are stacked, none is written into."""
    columns = torch.arange(left.shape[-1], device=left.device)
    seen = ((columns >= d).to(left.dtype) for d in range(disparities))
    shifted = _shifts(right, disparities)
    planes = [torch.cat([left * s, r], dim=1) for s, r in zip(seen, shifted, strict=True)]
    return torch.stack(planes, dim=2)


def _shifts(right: Tensor, count: int) -> Iterator[Tensor]:
    """A map (..., W) shifted to the right by 0 to count - 1 columns, zero where nothing is left."""
    ahead = F.pad(right, (count - 1, 0))  # the width may be less than the shift
    return (ahead[..., count - 1 - d : ahead.shape[-1] - d] for d in range(count))


# Convolution of the concatenation volume by its factors -------------------------------------------
#
# The first 3D convolution of the network reads the concatenation volume, whose left half is the
# left features wherever x >= d and whose right half is the right features shifted by d; both are
# zero elsewhere. So a 3x3x3 convolution of it is, at disparity d and column x, with s = x - d:
#
# - a 2D convolution of the left features with the disparity taps summed. Near the mask's border,
#   for s from -2 to 1, the taps that see x + kx - 1 < d + kd - 1 are subtracted again;
# - a 2D convolution of the right features, 3 rows by 5 columns (kx - kd runs from -2 to 2), read at
#   column s. In the last column, x = W - 1, the taps beyond the image are subtracted again.
#
# Disparity 0 lacks the tap kd = 0 and disparity K - 1 the tap kd = 2: three sets of kernels.

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
    """(3 * 5 * O, C, 3, 3): for each set of taps, those four distances take back, then all."""
    right: Tensor
    """(3 * 2 * O, C, 3, 5): for each set of taps, all, then those the last column takes back."""


def volume_conv_reference(volume: PairVolume, weight: Tensor) -> Tensor:
    """Convolve the concatenation volume with a padded kernel (O, 2C, 3, 3, 3): (B, O, K, H, W)."""
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
    # Results of convolutions have no names, so that they are freed before the volume is allocated.
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


# Group-wise correlation ---------------------------------------------------------------------------


@full_precision
def group_correlation_reference(
    left: Tensor, right: Tensor, levels: int, groups: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Cosine similarity of each group of channels between the left pixel x and the right x - k.

    Group-wise correlation (Guo et al., "Group-wise Correlation Stereo Network", CVPR 2019, section
    3.2). Normalising within a group makes the volume invariant to the contrast of either image.

    Args:
        left: (B, C, H, W) features of the left image.
        right: (B, C, H, W) features of the right image.
        levels: K, the disparities compared, in feature pixels.
        groups: G, a divisor of C; group g holds channels g C / G to (g + 1) C / G - 1.
        dtype: Type of the volume; default: that of `left`.

    Returns:
        (B, G, K, H, W); zero where x < k.
    """
    a, b = (_unit(features, groups).permute(0, 4, 3, 1, 2) for features in (left, right))
    volume = torch.stack([(a * other).sum(dim=2) for other in _shifts(b, levels)], dim=2)
    return volume.to(left.dtype if dtype is None else dtype)  # a, b: (B, G, c, H, W)


@full_precision
def group_correlation(
    left: Tensor, right: Tensor, levels: int, groups: int, *, dtype: torch.dtype | None = None
) -> Tensor:
    """`group_correlation_reference` with its own backward, which keeps only the features.

    In C on CPUs, otherwise one product a level. The volume is channels-last. Exported graphs have
    the reference.
    """
    if torch.compiler.is_exporting():
        return group_correlation_reference(left, right, levels, groups, dtype=dtype)
    a, b = _unit(left, groups), _unit(right, groups)
    return _Correlation.apply(a, b, levels, left.dtype if dtype is None else dtype)


def _unit(features: Tensor, groups: int) -> Tensor:
    """(B, C, H, W) to (B, H, W, C / G, G), each group of a pixel of length one."""
    if features.shape[1] % groups:
        raise ValueError(f"{features.shape[1]} feature channels do not split into {groups} groups")
    grouped = widen(features).unflatten(1, (groups, -1))  # (B, G, c, H, W)
    return F.normalize(grouped, dim=2, eps=1e-6).permute(0, 3, 4, 2, 1).contiguous()


class _Correlation(torch.autograd.Function):
    """The sums over a group's channels, for all levels."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor, levels: int, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(left, right)
        if is_compiled_for(left, dtype):
            volume = compiled_correlation(left, right, levels, dtype)  # (B, K, H, W, G)
        else:
            batch, height, width, _, groups = left.shape
            volume = left.new_zeros(batch, levels, height, width, groups, dtype=dtype)
            for k in range(min(levels, width)):
                products = left[:, :, k:] * right[:, :, : width - k]  # (B, H, W - k, c, G)
                volume[:, k, :, k:] = products.sum(dim=3).to(dtype)
        return volume.permute(0, 4, 1, 2, 3)  # (B, G, K, H, W)

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors
        grad = grads[0].permute(0, 2, 3, 4, 1).contiguous()  # (B, K, H, W, G)
        if is_compiled_for(left, grad.dtype):
            return *compiled_correlation_backward(left, right, grad), None, None
        of_left, of_right = torch.zeros_like(left), torch.zeros_like(right)
        width = left.shape[2]
        for k in range(min(grad.shape[1], width)):
            weights = grad[:, k, :, k:].unsqueeze(3)  # (B, H, W - k, 1, G)
            of_left[:, :, k:] += weights * right[:, :, : width - k]
            of_right[:, :, : width - k] += weights * left[:, :, k:]
        return of_left, of_right, None, None
