"""The training loss (PSMNet, section 3.6), and cross-entropies that can be added to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.tables import check_choice

LOSS_WEIGHTS = (0.5, 0.7, 1.0)
"""Weights of the three classifiers, in network order."""

_CLUSTER_GAP = 0.5
"""Gap between neighbouring ground-truth values of a cell that separates two surfaces, in levels."""
_LAPLACIAN_SCALE = 0.8
"""Scale of the Laplacians, in levels."""
_OWN_WEIGHT = 0.8
"""Weight of the cluster that the median pixel of a cell belongs to; the others share the rest."""

_REACH = 2.0
"""Pixels: a ground truth that is further from all candidates cannot be chosen."""


def counted_pixels(disparity: Tensor, valid: Tensor, max_disparity: int) -> Tensor:
    """Mask of the pixels that count: valid, with a disparity (px) below the maximum; (B, H, W)."""
    return valid & (disparity < max_disparity)


def _divisor(counted: Tensor, pixels: Tensor | None) -> Tensor:
    """The given number of pixels, or the number of those that count; at least 1."""
    return (counted.sum() if pixels is None else pixels).clamp(min=1)


def _by_cells(disparity: Tensor, counted: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Ground truth, 0 where it does not count, and 1 where it does: (B, s * s, h, w) each."""
    maps = torch.where(counted, disparity, 0), counted.to(disparity.dtype)
    truth, weight = (F.pixel_unshuffle(each.unsqueeze(1), scale) for each in maps)
    return truth, weight


def stereo_loss(
    predictions: Sequence[Tensor],
    disparity: Tensor,
    valid: Tensor,
    max_disparity: int,
) -> Tensor:
    """Weighted sum of `output_losses` without a divisor of its own; a scalar."""
    return weighted_sum(output_losses(predictions, disparity, valid, max_disparity))


def output_losses(
    predictions: Sequence[Tensor],
    disparity: Tensor,
    valid: Tensor,
    max_disparity: int,
    pixels: Tensor | None = None,
) -> Tensor:
    """Smooth L1 loss of each prediction over the valid pixels below the maximum disparity.

    Args:
        predictions: Predictions, (B, H, W) each, in pixels.
        disparity: Ground truth, (B, H, W) in pixels.
        valid: Mask of its valid pixels, (B, H, W).
        max_disparity: Pixels at or above it do not count.
        pixels: Divisor of the sums; default: the number of pixels that count. The losses of the
            micro-batches of a batch, divided by the pixels of the whole batch, add up to its loss.

    Returns:
        (predictions,); zeros with zero gradients if no pixel counts.
    """
    counted = counted_pixels(disparity, valid, max_disparity)
    divisor = _divisor(counted, pixels)
    target = torch.where(counted, disparity, 0)
    # Masking by `where` rather than by indexing keeps shapes fixed and allows empty masks.
    errors = [
        F.smooth_l1_loss(torch.where(counted, prediction, 0), target, reduction="sum")
        for prediction in predictions
    ]
    return torch.stack(errors) / divisor


def cross_entropies(
    scores: Sequence[Tensor],
    disparity: Tensor,
    valid: Tensor,
    *,
    target: str = "linear",
    first: float = 1.5,
    pixels: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each score's distribution over disparity levels, at the volume's resolution.

    Soft-argmin alone accepts any distribution with the right mean. This loss supervises the
    distribution itself, so that a surface and its background remain two peaks (Zhang et al.,
    "Adaptive Unimodal Cost Volume Filtering for Deep Stereo Matching", AAAI 2020, supervise the
    volume similarly, at image resolution). The target of a cell, from the ground truth of its
    pixels, is

    - `linear`: the mean over its pixels, each divided linearly between the two nearest levels;
    - `adaptive`: a Laplacian around each surface in the cell, after Xu et al., "Adaptive
      Multi-Modal Cross-Entropy Loss for Stereo Matching", CVPR 2024, section 3.2: the ground truth
      around a pixel is clustered, each cluster becomes a Laplacian around its mean, and the cluster
      of the pixel has the largest weight. Here the pixel is replaced by a cell of the volume: its
      pixels are clustered, its cluster is that of their median, and the scale of the Laplacian,
      0.8, is in levels.

    Args:
        scores: Scores, (B, K, h, w) each; higher is more likely.
        disparity: Ground truth, (B, s * h, s * w) in pixels, where s is the scale of the volume.
        valid: Mask of its valid pixels, (B, s * h, s * w); pixels at or above s * K do not count.
        target: `linear` or `adaptive`, as above.
        first: Disparity of level 0, in pixels; the levels are s pixels apart.
        pixels: Divisor of the sums, as in `output_losses`.

    Returns:
        (scores,) in nats per pixel; zeros with zero gradients if no pixel counts.

    Raises:
        ValueError: Unknown target.
    """
    check_choice("target", target, _TARGETS)
    levels, scale = scores[0].shape[1], disparity.shape[-1] // scores[0].shape[-1]
    counted = counted_pixels(disparity, valid, scale * levels)
    divisor = _divisor(counted, pixels)
    truth, weight = _by_cells(disparity, counted, scale)
    place = ((truth - first) / scale).clamp(0, levels - 1)
    wanted = _TARGETS[target](place, weight, levels)
    return torch.stack([-(wanted * s.log_softmax(dim=1)).sum() for s in scores]) / divisor


def mixture_loss(
    candidates: Tensor,
    logits: Tensor,
    disparity: Tensor,
    valid: Tensor,
    max_disparity: int,
    pixels: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood of a mixture of Laplacians around candidate disparities.

    The expectation alone accepts a mean of foreground and background at an edge; the likelihood
    wants the weights on candidates that are right (Tosi et al., "SMD-Nets: Stereo Mixture Density
    Networks", CVPR 2021, equation 4, with two learned modes). Here all Laplacians have a scale of
    one pixel, and pixels of which no candidate is within 2 pixels of the ground truth do not count.

    Args:
        candidates: (B, N, 1 or s * s, h, w) in pixels, for the pixels of cells of s x s, row by
            row. They get no gradient.
        logits: (B, N, s * s, h, w); a softmax over the candidates gives their weights.
        disparity: Ground truth, (B, s * h, s * w) in pixels.
        valid: Mask of its valid pixels, (B, s * h, s * w).
        max_disparity: Pixels at or above it do not count.
        pixels: Divisor of the sum, as in `output_losses`.

    Returns:
        A scalar in nats per pixel, 0 for certain and right weights; zero with zero gradients if no
        pixel counts.
    """
    scale = disparity.shape[-1] // candidates.shape[-1]
    counted = counted_pixels(disparity, valid, max_disparity)
    divisor = _divisor(counted, pixels)
    truth, weight = _by_cells(disparity, counted, scale)
    apart = (candidates.detach() - truth.unsqueeze(1)).abs()  # (B, N, s * s, h, w)
    weight = weight * (apart.amin(dim=1) < _REACH)
    likelihood = (logits.log_softmax(dim=1) - apart).logsumexp(dim=1)
    return -(weight * likelihood).sum() / divisor


def _linear_targets(place: Tensor, weight: Tensor, levels: int) -> Tensor:
    """Number of counted pixels near each of K levels, (B, K, h, w).

    `place` is the ground truth in levels, (B, pixels of a cell, h, w); `weight`, of the same shape,
    is 1 where a pixel counts, otherwise 0.
    """
    below = place.floor().clamp(max=levels - 2)
    above = (place - below) * weight
    batch, _, height, width = place.shape
    target = place.new_zeros(batch, levels, height, width)
    target.scatter_add_(1, below.long(), weight - above)
    return target.scatter_add_(1, below.long() + 1, above)


def _adaptive_targets(place: Tensor, weight: Tensor, levels: int) -> Tensor:
    """Mixture of Laplacians times the counted pixels; arguments as in `_linear_targets`."""
    count = weight.sum(dim=1, keepdim=True)
    # Pixels that do not count are sorted to the end, where they form no cluster of their own.
    ordered, order = place.masked_fill(weight == 0, torch.inf).sort(dim=1)
    weight = weight.gather(1, order)
    gaps = ordered[:, 1:] - ordered[:, :-1]
    begins = (gaps > _CLUSTER_GAP) & (weight[:, 1:] > 0)
    cluster = F.pad(begins, (0, 0, 0, 0, 1, 0)).cumsum(dim=1)  # (B, pixels, h, w)
    ordered = torch.where(weight > 0, ordered, 0)
    own = cluster.gather(1, ((count - 1) / 2).floor().clamp(min=0).long())
    level = torch.arange(levels, dtype=place.dtype, device=place.device).view(1, -1, 1, 1)
    target = place.new_zeros(len(place), levels, *place.shape[2:])
    for number in range(int(cluster.max()) + 1):
        members = weight * (cluster == number)
        size = members.sum(dim=1, keepdim=True)
        mean = (members * ordered).sum(dim=1, keepdim=True) / size.clamp(min=1)
        laplacian = (-(level - mean).abs() / _LAPLACIAN_SCALE).softmax(dim=1)
        is_own = own == number
        others = (count - 1).clamp(min=1)
        share = (size - is_own.to(size)) * (1 - _OWN_WEIGHT) / others + _OWN_WEIGHT * is_own
        share = torch.where(count > 1, share, is_own.to(share))
        target += count * share * laplacian
    return target


_TARGETS: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "linear": _linear_targets,
    "adaptive": _adaptive_targets,
}


def weighted_sum(losses: Tensor) -> Tensor:
    """Sum of losses (N,), weighted with the last N of `LOSS_WEIGHTS`."""
    parts = zip(LOSS_WEIGHTS[-len(losses) :], losses, strict=True)
    return sum((weight * loss for weight, loss in parts), losses.new_zeros(()))
