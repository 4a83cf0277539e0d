"""The training loss (PSMNet, section 3.6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["LOSS_WEIGHTS", "counted_pixels", "stereo_loss"]

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
    """Weighted smooth L1 over pixels whose disparity is known and searched.

    Args:
        predictions: (B, H, W) each, in pixels; fewer than the weights take the last weights.
        disparity: true disparity, (B, H, W) in pixels.
        valid: (B, H, W), true where it is known.
        max_disparity: pixels at or above it do not count.
        weights: of the predictions.
        pixels: what to divide the sum by; default: the pixels that count. The parts of a batch
            divided by the pixels of all of it add up to its loss, wherever it was cut.

    Returns:
        A scalar; zero with zero gradients if no pixel counts.
    """
    counted = counted_pixels(disparity, valid, max_disparity)
    divisor = (counted.sum() if pixels is None else pixels).clamp(min=1)
    target = torch.where(counted, disparity, 0)
    total = predictions[0].new_zeros(())
    for weight, prediction in zip(weights[-len(predictions) :], predictions, strict=True):
        # Masking by `where`, not by indexing, keeps shapes fixed and an empty mask harmless.
        errors = F.smooth_l1_loss(torch.where(counted, prediction, 0), target, reduction="none")
        total = total + weight * errors.sum() / divisor
    return total
