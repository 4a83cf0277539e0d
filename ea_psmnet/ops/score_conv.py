"""The classifiers' last convolution, to a single channel.

Convolution kernels compute 16 output channels or more at a time, so that one alone wastes most of
the work. Here the nine taps of kd and ky are nine output channels of a convolution along rows, and
their shifted sum is the score.

Shapes: B batch, C channels, K disparities, h and w of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["add_taps", "score_conv", "score_conv_reference", "score_taps"]


def score_conv_reference(volume: Tensor, weight: Tensor) -> Tensor:
    """Convolve to one channel.

    Args:
        volume: (B, C, K, h, w).
        weight: (1, C, 3, 3, 3).

    Returns:
        (B, 1, K, h, w).
    """
    return F.conv3d(volume, weight, padding=1)


def score_conv(volume: Tensor, weight: Tensor) -> Tensor:
    """`score_conv_reference` with a ninth of the work, its last sum in float32 at least."""
    return _ShiftedSum.apply(score_taps(volume, weight)).unsqueeze(1)


def score_taps(volume: Tensor, weight: Tensor) -> Tensor:
    """The nine taps (B, 9, k, h, w) of a volume (B, C, k, h, w), by a kernel (1, C, 3, 3, 3)."""
    taps = weight[0].permute(1, 2, 0, 3).flatten(0, 1)  # (9, C, kx)
    return F.conv3d(volume, taps[:, :, None, None], padding=(0, 0, 1))


def add_taps(total: Tensor, taps: Tensor, start: int) -> None:
    """Add the taps (B, 9, k, h, w) of disparities from `start` on to a score (B, K, h, w)."""
    for part, tap in _shifted(total, taps, start):
        part += tap


def _shifted(total: Tensor, taps: Tensor, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Parts of the sum (B, K, h, w) and the parts of the taps (B, 9, k, h, w) that add up there."""
    kept = (slice(1, None), slice(None), slice(None, -1))  # where a tap of -1, 0 or 1 sees the map
    depth, count = total.shape[1], taps.shape[2]
    for tap, (kd, ky) in enumerate(product(range(3), range(3))):
        first = start + 1 - kd
        there = slice(max(first, 0), min(first + count, depth))
        here = slice(there.start - first, there.stop - first)
        yield total[:, there, kept[ky]], taps[:, tap, here, kept[2 - ky]]


class _ShiftedSum(torch.autograd.Function):
    """Adds nine taps, each seen from its place; the backward hands each its shifted gradient."""

    @staticmethod
    def forward(ctx: Any, taps: Tensor) -> Tensor:
        ctx.dtype = taps.dtype
        wide = torch.promote_types(taps.dtype, torch.float32)
        total = taps.new_zeros(taps[:, 0].shape, dtype=wide)
        add_taps(total, taps, 0)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (grad,) = grads
        taps = grad.new_zeros(*grad.shape, 9, dtype=ctx.dtype).movedim(-1, 1)
        for part, tap in _shifted(grad, taps):
            tap.copy_(part)
        return taps
