"""Dot-product attention with memory linear in the number of positions.

The plain form, which stores all n x n weights, is `ea_psmnet.ops.attention.dot_product_attention`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.attention import Normalisation, check_normalisation, efficient_attention
from ea_psmnet.ops.precision import full_precision, widen

__all__ = ["lean_dot_product_attention"]


@full_precision
def lean_dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, normalisation: Normalisation = "softmax"
) -> Tensor:
    """The same function as `dot_product_attention`, without its n x m weights.

    Softmax goes through PyTorch's `scaled_dot_product_attention` with scale 1: tile by tile with an
    online softmax where v equals k (PyTorch falls back to the plain form elsewhere), still n x m in
    time. Scaling and none are products of matrices only, so they are multiplied the other way
    round, Q (K^T V), which is linear in time too.

    Args:
        queries: (B, h, k, n).
        keys: (B, h, k, m).
        values: (B, h, v, m).
        normalisation: softmax, scaling or none.

    Returns:
        (B, h, v, n).
    """
    check_normalisation(normalisation)
    if normalisation != "softmax":
        return efficient_attention(queries, keys, values, normalisation)
    # The tiled kernels need the channels of a position to be neighbours in memory.
    q, k, v = (widen(t).transpose(-1, -2).contiguous() for t in (queries, keys, values))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0).transpose(-1, -2)  # (B, h, v, n)
