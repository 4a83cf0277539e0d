"""The training loss (PSMNet, section 3.6), and a cross-entropy that can stand beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "LOSS_WEIGHTS",
    "counted_pixels",
    "cross_entropies",
    "output_losses",
    "stereo_loss",
    "weighted_sum",
]

LOSS_WEIGHTS = (0.5, 0.7, 1.0)
"""Of the three classifiers, in network order."""


def counted_pixels(disparity: Tensor, valid: Tensor, max_disparity: int) -> Tensor:
    """Where the loss looks: known disparities below the maximum; a mask of the same shape."""
    return valid & (disparity < max_disparity)


def stereo_loss(
    predictions: Sequence[Tensor],
    disparity: Tensor,
    valid: Tensor,
    max_disparity: int,
    weights: Sequence[float] = LOSS_WEIGHTS,
    pixels: Tensor | None = None,
) -> Tensor:
    """Weighted sum of `output_losses`, whose arguments these are; a scalar."""
    losses = output_losses(predictions, disparity, valid, max_disparity, pixels)
    return weighted_sum(losses, weights)


def output_losses(
    predictions: Sequence[Tensor],
    disparity: Tensor,
    valid: Tensor,
    max_disparity: int,
    pixels: Tensor | None = None,
) -> Tensor:
    """Smooth L1 of each prediction over pixels whose disparity is known and searched.

    Args:
        predictions: (B, H, W) each, in pixels.
        disparity: true disparity, (B, H, W) in pixels.
        valid: (B, H, W), true where it is known.
        max_disparity: pixels at or above it do not count.
        pixels: what to divide the sums by; default: the pixels that count. The parts of a batch
            divided by the pixels of all of it add up to its loss, wherever it was cut.

    Returns:
        (predictions,); zeros with zero gradients if no pixel counts.
    """
    counted = counted_pixels(disparity, valid, max_disparity)
    divisor = (counted.sum() if pixels is None else pixels).clamp(min=1)
    target = torch.where(counted, disparity, 0)
    # Masking by `where`, not by indexing, keeps shapes fixed and an empty mask harmless.
    errors = [
        F.smooth_l1_loss(torch.where(counted, prediction, 0), target, reduction="sum")
        for prediction in predictions
    ]
    return torch.stack(errors) / divisor


def cross_entropies(
    scores: Sequence[Tensor], disparity: Tensor, valid: Tensor, pixels: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each score's distribution over disparities, at 1/4 resolution.

    Soft-argmin alone is content with any distribution that has the right mean; this asks for the
    right distribution, so that a surface and what is behind it stay two peaks (Zhang et al.,
    "Adaptive Unimodal Cost Volume Filtering for Deep Stereo Matching", AAAI 2020, supervise the
    volume likewise, at image resolution). A cell's target is the mean over its 16 pixels of the
    truth, each shared linearly between the two nearest levels: level k is disparity 4k + 1.5.

    Args:
        scores: (B, K, h, w) each, higher is likelier.
        disparity: true disparity, (B, 4h, 4w) in pixels.
        valid: (B, 4h, 4w); pixels at or above 4K do not count, either.
        pixels: as in `output_losses`.

    Returns:
        (scores,) in nats a pixel; zeros with zero gradients if no pixel counts.
    """
    levels = scores[0].shape[1]
    counted = counted_pixels(disparity, valid, 4 * levels)
    divisor = (counted.sum() if pixels is None else pixels).clamp(min=1)
    target = _level_targets(torch.where(counted, disparity, 0), counted, levels)
    return torch.stack([-(target * s.log_softmax(dim=1)).sum() for s in scores]) / divisor


def _level_targets(disparity: Tensor, counted: Tensor, levels: int) -> Tensor:
    """Counted pixels near each level, (B, K, h, w), from (B, 4h, 4w)."""
    place = F.pixel_unshuffle(((disparity - 1.5) / 4).clamp(0, levels - 1).unsqueeze(1), 4)
    weight = F.pixel_unshuffle(counted.to(disparity.dtype).unsqueeze(1), 4)  # (B, 16, h, w)
    below = place.floor().clamp(max=levels - 2)
    above = (place - below) * weight
    batch, _, height, width = place.shape
    target = disparity.new_zeros(batch, levels, height, width)
    target.scatter_add_(1, below.long(), weight - above)
    return target.scatter_add_(1, below.long() + 1, above)


def weighted_sum(losses: Tensor, weights: Sequence[float] = LOSS_WEIGHTS) -> Tensor:
    """The loss to train with; fewer losses (N,) than weights take the last weights."""
    parts = zip(weights[-len(losses) :], losses, strict=True)
    return sum((weight * loss for weight, loss in parts), losses.new_zeros(()))
