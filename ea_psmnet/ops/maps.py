"""Attention as maps to look at: how much every position counts."""

from __future__ import annotations

import torch
from torch import Tensor

from ea_psmnet.ops.attention import Normalisation, check_normalisation
from ea_psmnet.ops.precision import widen

__all__ = ["position_shares"]


def position_shares(scores: Tensor, normalisation: Normalisation = "softmax") -> Tensor:
    """Scores over n positions as shares that sum to one.

    With softmax these are the very weights an attention uses. Without, its weights have signs and
    any sum: their sizes are drawn, |s| / sum |s|; equal shares where all are zero.

    Args:
        scores: (..., n).
        normalisation: softmax, scaling or none; the last two give the same shares.

    Returns:
        (..., n).
    """
    check_normalisation(normalisation)
    scores = widen(scores)
    if normalisation == "softmax":
        return scores.softmax(dim=-1)
    sizes = scores.abs()
    total = sizes.sum(dim=-1, keepdim=True)
    return torch.where(total > 0, sizes / total, 1 / scores.shape[-1])
