"""Attention kernels on flattened positions, without parameters.

Shapes: B batch, h heads, k key channels a head, v value channels a head, n positions. Products and
normalisations are computed in float32 at least: with n above a million, a softmax over positions
stored in half precision loses most of its weights to underflow.
"""

from __future__ import annotations

from typing import Literal, get_args

from torch import Tensor

from ea_psmnet.ops.choices import check_choice
from ea_psmnet.ops.precision import full_precision, widen

__all__ = [
    "Normalisation",
    "check_normalisation",
    "dot_product_attention",
    "efficient_attention",
]

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
def dot_product_attention(
    queries: Tensor, keys: Tensor, values: Tensor, normalisation: Normalisation = "softmax"
) -> Tensor:
    """Attention through the n x n similarity of all pairs of positions, materialised.

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
