"""Disparity from scores: soft-argmin and convex upsampling.

Soft-argmin is upsampling to image resolution, softmax over disparity and expectation (Kendall et
al., "End-to-End Learning of Geometry and Context for Deep Stereo Regression", ICCV 2017, equation
1), with PSMNet's sign: the network's output is a score, so there is no minus.

With a `reach`, the expectation covers only the levels around the likeliest one, after Chen et al.,
"On the Over-Smoothing Problem of CNN Based Disparity Estimation", ICCV 2019, section 3.3: at an
edge, where foreground and background are both likely, the result is one of them and not their mean.
The paper ends the window where the probability rises again; here its width is fixed. Convex
upsampling does the same with the cells around a pixel. For inference only.

Shapes: B batch, K disparities at 1/4 resolution, D = 4K, h and w at 1/4, H = 4h, W = 4w.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.native import needs_gradients
from ea_psmnet.ops.native.regression import (
    compiled_expectation,
    compiled_expectation_backward,
    compiled_upsampling,
    is_compiled_for,
)
from ea_psmnet.ops.precision import full_precision, lean_backward, widen

_SCALE = 4
_SLAB_BYTES = 2**20


@full_precision
def soft_argmin_reference(
    score: Tensor, size: tuple[int, int, int], *, align_corners: bool = False, reach: int = 0
) -> Tensor:
    """The published head: trilinear upsampling, softmax, expectation.

    Args:
        score: (B, K, h, w), higher is likelier.
        size: (D, H, W) of the upsampled score.
        align_corners: as in `torch.nn.functional.interpolate`.
        reach: Levels of the score, before they are upsampled, that count on either side of a
            pixel's highest; 0 for all, as published.

    Returns:
        Disparity (B, H, W) in pixels, at least float32.
    """
    score = widen(score)
    if reach:
        flat = F.interpolate(score, size[1:], mode="bilinear", align_corners=align_corners)
        score = near_peak(flat, reach)
    upsampled = F.interpolate(
        score.unsqueeze(1), size=size, mode="trilinear", align_corners=align_corners
    ).squeeze(1)  # (B, D, H, W)
    disparities = torch.arange(size[0], dtype=score.dtype, device=score.device)
    return torch.einsum("bdhw,d->bhw", upsampled.softmax(dim=1), disparities)


def near_peak(score: Tensor, reach: int) -> Tensor:
    """Scores (B, K, ...) with the lowest value more than `reach` levels away from the highest."""
    levels = torch.arange(score.shape[1], device=score.device)
    away = levels.view(-1, *[1] * (score.dim() - 2)) - score.argmax(dim=1, keepdim=True)
    return score.masked_fill(away.abs() > reach, torch.finfo(score.dtype).min)


def around_peak(score: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """The scores that `near_peak` keeps, and their levels: (B, 2 * reach + 1, ...) each.

    At the ends, the lowest value stands for the levels that are missing.
    """
    near = torch.arange(-reach, reach + 1, device=score.device).view(-1, *[1] * (score.dim() - 2))
    levels = score.max(dim=1, keepdim=True).indices + near  # on CPUs faster than argmax
    last = score.shape[1] - 1
    values = score.gather(1, levels.clamp(0, last))
    missing = (levels < 0) | (levels > last)
    return values.masked_fill(missing, torch.finfo(score.dtype).min), levels


def likeliest(score: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The highest of the scores (B, K, ...) of each pixel and their levels, (B, count, ...) each.

    `torch.topk` over levels, but for the order of equal scores. In evaluation one maximum is
    searched after the other, which on CPUs takes a third of the time for two of 48 levels.
    """
    repeats = count <= min(2, score.shape[1]) and not (
        torch.is_grad_enabled() or torch.compiler.is_exporting()
    )
    if not repeats:
        values, levels = score.topk(count, dim=1)
        return values, levels
    found: list[tuple[Tensor, Tensor]] = []
    for number in range(count):
        if number:
            score = score.scatter(1, found[-1][1], float("-inf"))
        values, levels = score.max(dim=1, keepdim=True)
        found.append((values, levels))
    return torch.cat([v for v, _ in found], dim=1), torch.cat([i for _, i in found], dim=1)


class _Interpolants(NamedTuple):
    """Factors of the unnormalised probabilities of upsampled scores.

    Upsampling by 4 places the four values between c_j and c_j+1 at eighths 1, 3, 5 and 7, so with
    E_j = exp((c_j - max) / 8) their exponentials are E_j^7 E_j+1, E_j^5 E_j+1^3, and so on: with
    p = E_j E_j+1, a = E_j^2 and b = E_j+1^2 they are p a^3, p a^2 b, p a b^2 and p b^3.
    """

    p: Tensor
    a: Tensor
    b: Tensor
    aa: Tensor
    bb: Tensor
    """All five have the shape (B, K - 1, ...)."""
    first: Tensor
    last: Tensor
    """E^8 of the outermost scores, (B, ...), which replicate into the two outermost values."""

    def mass(self) -> Tensor:
        """Sum of an interval's four values, divided by p."""
        return (self.a + self.b).mul_(self.aa + self.bb)

    def offset(self) -> Tensor:
        """Sum of the values weighted by their places 0 to 3 in the interval, divided by p."""
        weighted = torch.add(self.aa, self.bb, alpha=3).addcmul_(self.a, self.b, value=2)
        return weighted.mul_(self.b)


def _lowest(dtype: torch.dtype) -> float:
    """Lower bound of eighths relative to a pixel's highest, so that isolated peaks keep a mass."""
    return 0.9 * math.log(torch.finfo(dtype).tiny)


def _interpolants(eighths: Tensor) -> _Interpolants:
    """The factors for an eighth of the scores, (B, K, ...)."""
    below = eighths - eighths.amax(dim=1, keepdim=True)
    e = below.clamp_(min=_lowest(eighths.dtype)).exp_()
    e2 = e * e
    e4 = e2 * e2
    p = e[:, :-1] * e[:, 1:]
    first, last = e4[:, 0].square(), e4[:, -1].square()
    return _Interpolants(p, e2[:, :-1], e2[:, 1:], e4[:, :-1], e4[:, 1:], first, last)


def _starts(eighths: Tensor) -> Tensor:
    """The disparity of the first of each interval's four values, (K - 1,)."""
    intervals = torch.arange(eighths.shape[1] - 1, dtype=eighths.dtype, device=eighths.device)
    return _SCALE * intervals + 2


def _expectation(eighths: Tensor) -> tuple[Tensor, Tensor]:
    """Disparity and normaliser, each (B, ...), for an eighth of spatially upsampled scores."""
    parts = _interpolants(eighths)
    mass = parts.mass().mul_(parts.p)
    weights = torch.stack([torch.ones_like(starts := _starts(eighths)), starts])  # (2, K - 1)
    sums = (weights @ mass.flatten(2)).unflatten(2, mass.shape[2:])  # (B, 2, ...)
    total = sums[:, 0] + 2 * (parts.first + parts.last)
    moment = sums[:, 1] + parts.offset().mul_(parts.p).sum(dim=1)
    # Disparities 0 and 1 lie before the first interval, D - 2 and D - 1 after the last.
    depth = _SCALE * eighths.shape[1]
    moment += parts.first + parts.last * (2 * depth - 3)
    return moment.div_(total), total


def _expectation_backward(
    eighths: Tensor, grad: Tensor, disparity: Tensor, total: Tensor
) -> Tensor:
    """Gradient of the scores (B, K, ...), for a gradient (B, ...) of `_expectation`'s disparity."""
    parts = _interpolants(eighths)
    _, a, b, aa, bb, first, last = parts
    weight = grad / total
    shape = (1, -1) + (1,) * (eighths.dim() - 2)
    # Each value moves its two neighbours, in proportion to its shares of them, away from the mean.
    gap = _starts(eighths).view(shape) - disparity.unsqueeze(1)
    scale = parts.p * weight.unsqueeze(1)
    both = parts.offset().addcmul_(gap, parts.mass()).mul_(scale)
    # Shares of the left neighbour, in eighths: 7 a^3 + 5 a^2 b + 3 a b^2 + b^3, and with places.
    share = torch.add(a, b, alpha=5 / 7).mul_(aa).mul_(7).add_(torch.add(b, a, alpha=3).mul_(bb))
    placed = torch.add(aa, bb, alpha=3 / 5).addcmul_(a, b, value=6 / 5).mul_(b)
    left = share.mul_(gap).add_(placed, alpha=5).mul_(scale.div_(8))
    result = torch.empty_like(eighths)
    result[:, :-1] = left
    result[:, -1] = weight * last * (2 * _SCALE * eighths.shape[1] - 3 - 2 * disparity)
    result[:, 1:] += both.sub_(left)
    result[:, 0] += weight * first * (1 - 2 * disparity)
    return result


def _taller(score: Tensor) -> Tensor:
    """(B, K, h, w) to (B, K, 4h, w)."""
    return F.interpolate(score, scale_factor=(_SCALE, 1), mode="bilinear", align_corners=False)


def _wider(score: Tensor) -> Tensor:
    """(B, K, rows, w) to (B, K, rows, 4w)."""
    wide = F.interpolate(score.flatten(0, 1), scale_factor=_SCALE, mode="linear")
    return wide.unflatten(0, score.shape[:2])


def _wider_backward(grad: Tensor) -> Tensor:
    """(B, K, rows, 4w) to (B, K, rows, w) by the weights of `_wider`; faster than torch's own."""
    quads = grad.unflatten(-1, (-1, _SCALE))
    own, before = grad.new_tensor([[0.625, 0.875, 0.875, 0.625], [0.375, 0.125, 0, 0]])
    result, left, right = quads @ own, quads @ before, quads @ before.flip(0)
    result[..., :-1] += left[..., 1:]
    result[..., 1:] += right[..., :-1]
    # The outermost values have no other neighbour.
    result[..., 0] += left[..., 0]
    result[..., -1] += right[..., -1]
    return result


def _row_slabs(tall: Tensor) -> list[slice]:
    """Slices of rows, small enough that their temporaries stay in the processor's cache."""
    batch, depth, height, width = tall.shape
    row_bytes = batch * depth * _SCALE * width * tall.element_size()
    rows = height if tall.is_cuda else max(1, _SLAB_BYTES // row_bytes)
    return [slice(start, start + rows) for start in range(0, height, rows)]


def _expectation_of_rows(tall: Tensor) -> tuple[Tensor, Tensor]:
    """Disparity and normaliser, (B, H, W) each, of an eighth of the scores (B, K, H, w)."""
    if is_compiled_for(tall):
        return compiled_expectation(tall, _lowest(tall.dtype))
    slabs = [_expectation(_wider(tall[:, :, rows])) for rows in _row_slabs(tall)]
    disparity, total = (torch.cat(parts, dim=1) for parts in zip(*slabs, strict=True))
    return disparity, total


def _expectation_of_rows_backward(
    tall: Tensor, grad: Tensor, disparity: Tensor, total: Tensor
) -> Tensor:
    """Gradient of the scores (B, K, H, w), for a gradient of `_expectation_of_rows`'s disparity."""
    if is_compiled_for(tall):
        return compiled_expectation_backward(tall, grad, disparity, total, _lowest(tall.dtype))
    result = torch.empty_like(tall)
    for rows in _row_slabs(tall):
        of_pixels = (t[:, rows] for t in (grad, disparity, total))
        result[:, :, rows] = _wider_backward(
            _expectation_backward(_wider(tall[:, :, rows]), *of_pixels)
        )
    return result


class _SoftArgmin(torch.autograd.Function):
    """Keeps the scores at 1/4 resolution, and two maps (B, H, W), for the backward."""

    @staticmethod
    def forward(ctx: Any, score: Tensor) -> Tensor:
        disparity, total = _expectation_of_rows(_taller(score / 8))
        ctx.save_for_backward(score, disparity, total)
        return disparity

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        score, disparity, total = ctx.saved_tensors
        tall = _expectation_of_rows_backward(_taller(score / 8), grads[0], disparity, total)
        return torch.ops.aten.upsample_bilinear2d_backward(
            tall, tall.shape[-2:], score.shape, False, None, None
        )


@full_precision
def soft_argmin(
    score: Tensor, size: tuple[int, int, int], *, align_corners: bool = False, reach: int = 0
) -> Tensor:
    """`soft_argmin_reference` without the (B, D, H, W) volume.

    Takes D/4 exponentials a pixel instead of D, in compiled code on CPUs or in slabs of rows, and
    recomputes them in the backward. Scores are clamped to 600 (in float64 5,000) below the pixel's
    highest. Falls back to the reference for scales other than 4, for `align_corners=True` and for
    gradients with a `reach`.
    """
    exact = tuple(size) == tuple(_SCALE * n for n in score.shape[1:]) and score.shape[1] > 1
    learning = needs_gradients(score)
    if align_corners or not exact or (reach and learning):
        return soft_argmin_reference(score, size, align_corners=align_corners, reach=reach)
    if torch.compiler.is_exporting():  # graphs have no slabs
        whole = _wider(_taller(widen(score) / 8))
        return _expectation(near_peak(whole, reach) if reach else whole)[0]
    if reach:
        tall = _taller(widen(score) / 8)
        wide = (_wider(tall[:, :, rows]) for rows in _row_slabs(tall))
        return torch.cat([_expectation(near_peak(slab, reach))[0] for slab in wide], dim=1)
    return _SoftArgmin.apply(widen(score))


@full_precision
def convex_upsampling_reference(
    cells: Tensor, weights: Tensor, scale: int, *, reach: float = math.inf
) -> Tensor:
    """Make every fine pixel a convex combination of the 3 x 3 coarse cells around it.

    Teed and Deng, "RAFT", ECCV 2020, section 3.3. Cells are replicated beyond the border.

    Args:
        cells: (B, h, w).
        weights: (B, 9 * scale^2, h, w), a logit for each neighbour, row by row, and each pixel of a
            cell, row by row; a softmax over the neighbours makes them convex.
        scale: Fine pixels along a cell's side.
        reach: Only cells count whose value is at most this far from that of the pixel's heaviest
            cell, so that at an edge the result is not between foreground and background.

    Returns:
        (B, scale * h, scale * w), at least float32.
    """
    shares = widen(weights).unflatten(1, (9, scale**2)).softmax(dim=1)  # (B, 9, s * s, h, w)
    around = neighbours(widen(cells))  # (B, 9, 1, h, w)
    if reach < math.inf:
        heaviest = around.expand_as(shares).gather(1, shares.max(dim=1, keepdim=True).indices)
        shares = shares * ((around - heaviest).abs() <= reach)
        shares = shares / shares.sum(dim=1, keepdim=True)
    fine = sum(share * cell for share, cell in zip(shares.unbind(1), around.unbind(1), strict=True))
    assert isinstance(fine, torch.Tensor)
    return F.pixel_shuffle(fine, scale).squeeze(1)


@full_precision
def convex_upsampling(
    cells: Tensor, weights: Tensor, scale: int, *, reach: float = math.inf
) -> Tensor:
    """`convex_upsampling_reference` in compiled code on CPUs, five to thirty times as fast.

    Falls back to the reference for scales other than 4 and for gradients.
    """
    learning = needs_gradients(cells, weights)
    if scale == _SCALE and not learning and is_compiled_for(wide := widen(cells)):
        return compiled_upsampling(wide, weights.to(wide.dtype), reach)
    return convex_upsampling_reference(cells, weights, scale, reach=reach)


def neighbours(cells: Tensor) -> Tensor:
    """The 3 x 3 cells around each of (B, h, w), row by row: (B, 9, 1, h, w).

    Cells are replicated beyond the border.
    """
    height, width = cells.shape[-2:]
    padded = F.pad(cells.unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    shifted = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return torch.stack(shifted, dim=1)
