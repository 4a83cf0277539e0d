"""Convolutions with half the multiplications: Winograd's F(4, 3) along one axis, on the CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. Six slices of the
input make six sums of slices; each is convolved with a kernel of its own, of one dimension less;
sums of these six products are four slices of the output, for which three taps each take twelve.

In effect polynomials are interpolated, at 0, infinity and four points between. The customary four,
1, -1, 2 and -2, multiply rounding errors 1.4 times as much as those taken here.

Shapes: B batch, C inputs, O outputs, K disparities, H and W of a map, S slices of A rows, t tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["Products", "six_kernels", "winograd_conv2d", "winograd_conv3d", "winograd_products"]

_NEAR, _FAR = math.sqrt(1 / 2), math.sqrt(2)
"""The points are these and their negatives."""

_TILE = 4
"""Slices of the output from one interpolation, of 6 of the input."""

_SLAB_BYTES = 2**23
"""Of the sums that are convolved at a time, so that they stay in the processor's cache."""

_Convolve = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Sums (t, A, W, C), kernel and bias to products (t, A', W, O)."""


class Products(NamedTuple):
    """What the six sums are convolved with."""

    kernels: Tensor
    """(6, O, C, a, 3): a is 3 of a 3D convolution and 1 of a 2D one."""
    biases: Tensor
    """(6, O): together they add the bias to every output."""


def six_kernels(weight: Tensor, dim: int) -> Tensor:
    """The three taps along a dimension to what the six sums along it are multiplied by."""
    first, middle, last = weight.unbind(dim)
    kernels = [first]
    for point, scale in ((_NEAR, -1.5), (_FAR, 6.0)):
        even, odd = first + point**2 * last, point * middle
        kernels += [(even + odd) / scale, (even - odd) / scale]
    return torch.stack([*kernels, last], dim)


@full_precision
def winograd_products(weight: Tensor, bias: Tensor) -> Products:
    """The kernels of the six products, computed in float32 at least.

    Args:
        weight: (O, C, 3, 3, 3), or (O, C, 3, 3) of a 2D convolution.
        bias: (O,).
    """
    stacked = six_kernels(widen(weight), 2).movedim(2, 0).contiguous().to(weight.dtype)
    # Through the two products at _NEAR, all outputs but the outermost get the bias as it is.
    shares = bias.new_tensor([-1, 1 + _NEAR, 1 - _NEAR, 0, 0, 0.5])
    return Products(stacked.unsqueeze(3) if weight.dim() == 4 else stacked, shares[:, None] * bias)


@full_precision
def winograd_conv3d(volume: Tensor, products: Products, *, padded: bool = True) -> Tensor:
    """A 3x3x3 convolution, padded in rows and columns, by tiles of disparities.

    Args:
        volume: (B, C, K, H, W).
        products: of its weight and bias.
        padded: in disparities, too.

    Returns:
        (B, O, K, H, W), or without that padding (B, O, K - 2, H, W); channels-last.
    """
    outputs = products.kernels.shape[1]
    volumes = volume.permute(0, 2, 3, 4, 1)  # (B, K, H, W, C)
    batch, depth, *map_size = volumes.shape[:4]
    out = volume.new_empty(batch, depth if padded else depth - 2, *map_size, outputs)
    for slices, target in zip(volumes, out, strict=True):
        for first, last in _bands(slices):
            top, bottom = max(first - 1, 0), last + 1  # one row more on either side
            convolve = partial(_convolve_maps, rows=slice(first - top, last - top))
            _convolve_slices(slices[:, top:bottom], products, target[:, first:last], convolve)
    return out.permute(0, 4, 1, 2, 3)


def _convolve_maps(sums: Tensor, kernel: Tensor, bias: Tensor, rows: slice) -> Tensor:
    maps = sums.permute(0, 3, 1, 2)  # (t, C, A, W)
    return F.conv2d(maps, kernel, bias, padding=1).permute(0, 2, 3, 1)[:, rows]


def _bands(slices: Tensor) -> list[tuple[int, int]]:
    """First rows of (S, H, W, C), and behind the last, of bands whose sums fit a slab by tiles."""
    height = slices.shape[1]
    row_bytes = slices[0, 0].numel() * slices.element_size()
    count = math.ceil(6 * row_bytes * height / _SLAB_BYTES)
    rows = math.ceil(height / min(count, height))
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]


@full_precision
def winograd_conv2d(images: Tensor, products: Products, *, dilation: int = 1) -> Tensor:
    """A 3x3 convolution, padded by its dilation, by tiles of rows.

    Args:
        images: (B, C, H, W).
        products: of its weight and bias.
        dilation: every so many rows are a map of their own.

    Returns:
        (B, O, H, W), channels-last.
    """
    outputs = products.kernels.shape[1]
    maps = images.permute(0, 2, 3, 1)  # (B, H, W, C)
    out = images.new_empty(*maps.shape[:3], outputs)

    convolve = partial(_convolve_rows, dilation=dilation)
    for rows, target in zip(maps.unsqueeze(2), out.unsqueeze(2), strict=True):
        for phase in range(min(dilation, rows.shape[0])):
            every = slice(phase, None, dilation)
            _convolve_slices(rows[every], products, target[every], convolve)
    return out.permute(0, 3, 1, 2)


def _convolve_rows(sums: Tensor, kernel: Tensor, bias: Tensor, dilation: int) -> Tensor:
    maps = sums.squeeze(1).unsqueeze(0).permute(0, 3, 1, 2)  # (1, C, t, W)
    maps = F.conv2d(maps, kernel, bias, padding=(0, dilation), dilation=(1, dilation))
    return maps.permute(2, 0, 3, 1)  # (t, 1, W, O)


def _convolve_slices(
    slices: Tensor, products: Products, target: Tensor, convolve: _Convolve
) -> None:
    """Convolve (S, A, W, C) into the target, slab by slab: padded (S, A', W, O) or S - 2 slices."""
    length, slice_bytes = target.shape[0], slices[0].numel() * slices.element_size()
    padding = (length + 2 - slices.shape[0]) // 2
    most = max(1, _SLAB_BYTES // (6 * slice_bytes))
    room = slices.new_empty(8, min(most, -(-length // _TILE)), *slices.shape[1:])
    for start in range(0, length, most * _TILE):
        wanted = target[start : start + most * _TILE]
        tiles = -(-wanted.shape[0] // _TILE)
        first = start - padding
        sums = _sums(_with_border(slices, first, first + tiles * _TILE + 2), room[:, :tiles])
        if wanted.shape[0] == tiles * _TILE:
            _combine(sums, products, wanted, convolve)
        else:
            whole = wanted.new_empty(tiles * _TILE, *wanted.shape[1:])
            _combine(sums, products, whole, convolve)
            wanted.copy_(whole[: wanted.shape[0]])


def _with_border(slices: Tensor, start: int, stop: int) -> Tensor:
    """Slices from start to stop, zero where there are none."""
    length = slices.shape[0]
    if start >= 0 and stop <= length:
        return slices[start:stop]
    padded = slices.new_zeros(stop - start, *slices.shape[1:])
    first, last = max(start, 0), min(stop, length)
    padded[first - start : last - start] = slices[first:last]
    return padded


def _sums(seen: Tensor, room: Tensor) -> Tensor:
    """(4t + 2, A, W, C) to the six sums (6, t, A, W, C), the first of the (8, t, A, W, C) given."""
    tiles = room.shape[1]
    d = [seen[i : i + _TILE * tiles - 3 : _TILE] for i in range(6)]
    *sums, even, odd = room
    torch.add(d[0], d[4], out=sums[0]).sub_(d[2], alpha=2.5)
    torch.add(d[1], d[5], out=sums[5]).sub_(d[3], alpha=2.5)
    for plus, point, other in ((1, _NEAR, _FAR), (3, _FAR, _NEAR)):
        torch.sub(d[4], d[2], alpha=other**2, out=even)
        torch.sub(d[3], d[1], alpha=other**2, out=odd)
        torch.add(even, odd, alpha=point, out=sums[plus])
        torch.sub(even, odd, alpha=point, out=sums[plus + 1])
    return room[:6]


def _combine(sums: Tensor, products: Products, target: Tensor, convolve: _Convolve) -> None:
    """Six sums (6, t, A, W, C) to the output (4t, A', W, O)."""
    made = [convolve(*of_sum) for of_sum in zip(sums, *products, strict=True)]
    out = [target[i::_TILE] for i in range(_TILE)]
    near_even, near_odd = made[1] + made[2], made[1].sub_(made[2])
    far_even, far_odd = made[3] + made[4], made[3].sub_(made[4])
    torch.add(near_even, far_even, out=out[0]).add_(made[0])
    torch.add(near_odd, far_odd, alpha=2, out=out[1]).mul_(_NEAR)
    torch.add(near_even, far_even, alpha=4, out=out[2]).mul_(_NEAR**2)
    torch.add(near_odd, far_odd, alpha=8, out=out[3]).mul_(_NEAR**3).add_(made[5])
