"""Upsampling to image resolution, softmax over disparity and expectation (soft-argmin).

Kendall et al., "End-to-End Learning of Geometry and Context for Deep Stereo Regression",
ICCV 2017, equation 1, with PSMNet's sign: the network's output is a score, so no minus.

Shapes: B batch, K disparities at 1/4 resolution, D = 4K, h and w at 1/4, H = 4h, W = 4w.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["soft_argmin", "soft_argmin_reference"]

_SCALE = 4
_SLAB_BYTES = 2**20


@full_precision
def soft_argmin_reference(
    score: Tensor, size: tuple[int, int, int], *, align_corners: bool = False
) -> Tensor:
    """The published head: trilinear upsampling, softmax, expectation.

    Args:
        score: (B, K, h, w), higher is likelier.
        size: (D, H, W) of the upsampled score.
        align_corners: as in `torch.nn.functional.interpolate`.

    Returns:
        Disparity (B, H, W) in pixels, at least float32.
    """
    score = widen(score)
    upsampled = F.interpolate(
        score.unsqueeze(1), size=size, mode="trilinear", align_corners=align_corners
    ).squeeze(1)  # (B, D, H, W)
    disparities = torch.arange(size[0], dtype=score.dtype, device=score.device)
    return torch.einsum("bdhw,d->bhw", upsampled.softmax(dim=1), disparities)


def _interpolants(score: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unnormalised probabilities from K scores (B, K, ...), all relative to their maximum.

    Upsampling by 4 places the four values between c_j and c_j+1 at eighths 1, 3, 5 and 7, so with
    E_j = exp((c_j - max) / 8) their exponentials are E_j^7 E_j+1, E_j^5 E_j+1^3, and so on.

    Returns:
        The product E_j E_j+1 and the squares of both factors, each (B, K - 1, ...), and E^8 of the
        first and the last score, each (B, ...), which replicate into the two outermost values.
    """
    # Clamped so that a peak far above both its neighbours, 8 * limit, keeps a mass above zero.
    limit = 0.9 * -math.log(torch.finfo(score.dtype).tiny)
    e = ((score - score.amax(dim=1, keepdim=True)) / 8).clamp_(min=-limit).exp_()
    squares = e * e
    product = e[:, :-1] * e[:, 1:]
    return product, squares[:, :-1], squares[:, 1:], squares[:, 0] ** 4, squares[:, -1] ** 4


def _expectation(score: Tensor) -> tuple[Tensor, Tensor]:
    """Disparity and normaliser, each (B, ...), of spatially upsampled scores (B, K, ...)."""
    product, a, b, first, last = _interpolants(score)
    intervals = score.shape[1] - 1
    mass = product * (a + b) * (a * a + b * b)  # the four values of an interval together
    offset = product * b * (a * a + 2 * a * b + 3 * b * b)  # times their offsets 0, 1, 2, 3
    starts = torch.arange(intervals, dtype=score.dtype, device=score.device) * _SCALE + 2
    depth = _SCALE * score.shape[1]
    total = mass.sum(dim=1) + 2 * (first + last)
    moment = torch.einsum("bk...,k->b...", mass, starts) + offset.sum(dim=1)
    moment = moment + first + (2 * depth - 3) * last
    return moment / total, total


def _expectation_backward(score: Tensor, grad: Tensor) -> Tensor:
    """Gradient (B, K, ...) of `_expectation`'s disparity for an incoming gradient (B, ...)."""
    disparity, total = _expectation(score)
    product, a, b, first, last = _interpolants(score)
    depth = _SCALE * score.shape[1]
    weight = grad / total
    starts = torch.arange(score.shape[1] - 1, dtype=score.dtype, device=score.device) * _SCALE + 2
    shape = (1, -1) + (1,) * (score.dim() - 2)
    # Each of the four values pulls its two neighbours by its share times its distance to the mean.
    gap = starts.view(shape) - disparity.unsqueeze(1)
    scale = product * (weight / 8).unsqueeze(1)
    q0, q1, q2, q3 = a * a * a * gap, a * a * b * (gap + 1), a * b * b * (gap + 2), b**3 * (gap + 3)
    result = torch.zeros_like(score)
    result[:, :-1] = scale * (7 * q0 + 5 * q1 + 3 * q2 + q3)
    result[:, 1:] += scale * (q0 + 3 * q1 + 5 * q2 + 7 * q3)
    result[:, 0] += weight * first * (1 - 2 * disparity)
    result[:, -1] += weight * last * (2 * depth - 3 - 2 * disparity)
    return result


def _upsample(score: Tensor) -> Tensor:
    """(B, K, h, w) to (B, K, 4h, 4w)."""
    return F.interpolate(score, scale_factor=_SCALE, mode="bilinear", align_corners=False)


def _row_slabs(upsampled: Tensor) -> list[slice]:
    """Slices of rows, each small enough that its temporaries stay in the processor's cache."""
    batch, depth, height, width = upsampled.shape
    row_bytes = batch * depth * width * upsampled.element_size()
    rows = height if upsampled.is_cuda else max(1, _SLAB_BYTES // row_bytes)
    return [slice(start, start + rows) for start in range(0, height, rows)]


class _SoftArgmin(torch.autograd.Function):
    """Keeps only the scores at 1/4 resolution for the backward."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        ctx.save_for_backward(score)
        upsampled = _upsample(score)
        return torch.cat(
            [_expectation(upsampled[:, :, rows])[0] for rows in _row_slabs(upsampled)], dim=1
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (score,), (grad,) = ctx.saved_tensors, grads
        upsampled = _upsample(score)
        for rows in _row_slabs(upsampled):
            upsampled[:, :, rows] = _expectation_backward(upsampled[:, :, rows], grad[:, rows])
        size = upsampled.shape[-2:]
        return torch.ops.aten.upsample_bilinear2d_backward(
            upsampled, size, score.shape, False, None, None
        )


@full_precision
def soft_argmin(
    score: Tensor, size: tuple[int, int, int], *, align_corners: bool = False
) -> Tensor:
    """`soft_argmin_reference` without the (B, D, H, W) volume.

    Works with D/4 exponentials a pixel instead of D, in slabs of rows, and recomputes them in the
    backward. A score more than 600 (in float64 5,000) below its pixel's best counts as that far
    below. Falls back to the reference for other scales than 4 and for `align_corners=True`.
    """
    exact = tuple(size) == tuple(_SCALE * n for n in score.shape[1:]) and score.shape[1] > 1
    if align_corners or not exact:
        return soft_argmin_reference(score, size, align_corners=align_corners)
    return _SoftArgmin.apply(widen(score))
