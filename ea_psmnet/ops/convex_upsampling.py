"""Upsampling by learned convex combinations (Teed and Deng, "RAFT", ECCV 2020, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["convex_upsampling"]


@full_precision
def convex_upsampling(cells: Tensor, weights: Tensor, scale: int) -> Tensor:
    """Make every fine pixel a mean of the 3 x 3 coarse cells around it.

    Beyond the border the outermost cells are repeated.

    Args:
        cells: (B, h, w).
        weights: (B, 9 * scale^2, h, w): for each neighbour, row by row, and each pixel of a cell,
            row by row, a logit; a softmax over the neighbours makes them convex.
        scale: Fine pixels along a cell's side.

    Returns:
        (B, scale * h, scale * w), at least float32.
    """
    height, width = cells.shape[-2:]
    padded = F.pad(widen(cells).unsqueeze(1), (1, 1, 1, 1), mode="replicate")
    shares = widen(weights).unflatten(1, (9, scale**2)).softmax(dim=1)  # (B, 9, s * s, h, w)
    neighbours = [
        padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)
    ]  # (B, 1, h, w) each
    fine = sum(share * cell for share, cell in zip(shares.unbind(1), neighbours, strict=True))
    assert isinstance(fine, torch.Tensor)
    return F.pixel_shuffle(fine, scale).squeeze(1)
