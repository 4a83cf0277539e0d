"""Attention on flattened positions, without parameters.

Products and normalisations are computed in float32 at least: with n above a million, a softmax over
positions stored in half precision loses most of its weights to underflow.

Shapes: B batch, h heads, k key channels a head, v value channels a head, n positions.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.tables import check_choice

Normalisation = Literal["softmax", "scaling", "none"]


def check_normalisation(name: str) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    check_choice("normalisation", name, get_args(Normalisation))


@full_precision
def efficient_attention(
    queries: Tensor, keys: Tensor, values: Tensor, normalisation: Normalisation = "softmax"
) -> Tensor:
    """Attention through global context vectors, linear in the number of positions.

    Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, equation 5:
    softmax normalises the queries over channels and the keys over positions; equation 4's scaling
    divides by n, here as 1/sqrt(n) on both factors, so that half precision does not overflow.

    Args:
        queries: (B, h, k, n).
        keys: (B, h, k, n).
        values: (B, h, v, n).
        normalisation: softmax, scaling or none.

    Returns:
        (B, h, v, n).
    """
    check_normalisation(normalisation)
    queries, keys, values = widen(queries), widen(keys), widen(values)
    if normalisation == "softmax":
        queries, keys = queries.softmax(dim=-2), keys.softmax(dim=-1)
    elif normalisation == "scaling":
        scale = keys.shape[-1] ** -0.5
        queries, keys = queries * scale, keys * scale
    context = keys @ values.transpose(-1, -2)  # (B, h, k, v)
    return context.transpose(-1, -2) @ queries  # (B, h, v, n)


@full_precision
def dot_product_attention_reference(
    queries: Tensor, keys: Tensor, values: Tensor, normalisation: Normalisation = "softmax"
) -> Tensor:
    """Attention through the n x n similarity of all pairs of positions, which is stored.

    Wang et al., "Non-local Neural Networks", CVPR 2018: softmax is the embedded Gaussian (equation
    3, no 1/sqrt(k)), scaling the dot product divided by n (equation 4).

    Args:
        queries: (B, h, k, n).
        keys: (B, h, k, m).
        values: (B, h, v, m).
        normalisation: softmax, scaling or none.

    Returns:
        (B, h, v, n).
    """
    check_normalisation(normalisation)
    queries, keys, values = widen(queries), widen(keys), widen(values)
    weights = queries.transpose(-1, -2) @ keys  # (B, h, n, m)
    if normalisation == "softmax":
        weights = weights.softmax(dim=-1)
    elif normalisation == "scaling":
        weights = weights / keys.shape[-1]
    return values @ weights.transpose(-1, -2)  # (B, h, v, n)


@full_precision
def dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, normalisation: Normalisation = "softmax"
) -> Tensor:
    """`dot_product_attention_reference` with memory linear in the number of positions.

    Softmax goes through PyTorch's `scaled_dot_product_attention` with scale 1: tile by tile with an
    online softmax where v equals k (PyTorch falls back to the plain form elsewhere), still n x m in
    time. Scaling and none consist of matrix products only, which are multiplied in the other
    order, Q (K^T V), so that time is linear too.
    """
    check_normalisation(normalisation)
    if normalisation != "softmax":
        return efficient_attention(queries, keys, values, normalisation)
    # The tiled kernels need the channels of a position to be neighbours in memory.
    q, k, v = (widen(t).transpose(-1, -2).contiguous() for t in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(-1, -2)  # (B, h, v, n)


def position_shares(scores: Tensor, normalisation: Normalisation = "softmax") -> Tensor:
    """Scores over n positions as shares that sum to one, for maps of attention.

    With softmax these are the weights that the attention uses. Other normalisations give signed
    weights with any sum: their shares are |s| / sum |s|, or equal where all scores are zero.

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
