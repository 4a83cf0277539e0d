"""The training loss (PSMNet, section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOSS_WEIGHTS", "counted_pixels", "output_losses", "stereo_loss", "weighted_sum"]

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


def weighted_sum(losses: Tensor, weights: Sequence[float] = LOSS_WEIGHTS) -> Tensor:
    """The loss to train with; fewer losses (N,) than weights take the last weights."""
    parts = zip(weights[-len(losses) :], losses, strict=True)
    return sum((weight * loss for weight, loss in parts), losses.new_zeros(()))
