"""Hydra attention on flattened positions, without parameters.

Shapes: B batch, c channels (each one is a head), n positions.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, get_args

from torch import Tensor
from torch.nn import functional as F

from ea_psmnet.ops.choices import check_choice
from ea_psmnet.ops.precision import full_precision, linear, widen
from ea_psmnet.ops.streaming import streamed

__all__ = [
    "Reduction",
    "check_reduction",
    "hydra_attention",
    "hydra_block",
    "hydra_block_reference",
]

Reduction = Literal["mean", "sum"]

SHORTEST = 1e-6
"""Zero has no direction; below this length, vectors keep a finite gradient instead."""


def check_reduction(name: str) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    check_choice("reduction", name, get_args(Reduction))


@full_precision
def hydra_attention(
    queries: Tensor, keys: Tensor, values: Tensor, reduction: Reduction = "mean"
) -> Tensor:
    """Gate one global vector by every position's query, linear in positions and channels.

    Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCV Workshops 2022,
    section 3 and the code of its appendix: phi(Q) * sum_t(phi(K)_t * V_t), element by element,
    with the cosine similarity, phi(x) = x / |x| over the channels. Vectors shorter than 1e-6 (the
    paper has no such limit) are divided by that.

    Args:
        queries: (B, c, n).
        keys: (B, c, m).
        values: (B, c, m).
        reduction: of keys times values over positions: `sum` is the paper's.

    Returns:
        (B, c, n).
    """
    check_reduction(reduction)
    queries, keys = (F.normalize(widen(t), dim=1, eps=SHORTEST) for t in (queries, keys))
    products = keys * widen(values)  # (B, c, m)
    reduce = products.mean if reduction == "mean" else products.sum
    return queries * reduce(dim=-1, keepdim=True)  # (B, c, n)


@full_precision
def hydra_block_reference(x: Tensor, *weights: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The whole branch W_o hydra(W_q x, W_k x, W_v x), convolution by convolution.

    Args:
        x: (B, C, n).
        weights: matrix and bias of queries, keys, values, each (c, C) and (c,), and of the
            projection, (C, c) and (C,).
        reduction: as of `hydra_attention`.

    Returns:
        (B, C, n).
    """
    wide = widen(x)
    queries, keys, values = (linear(wide, *weights[i : i + 2]) for i in (0, 2, 4))
    return linear(hydra_attention(queries, keys, values, reduction), *weights[6:])


def hydra_block(x: Tensor, *weights: Tensor, reduction: Reduction = "mean") -> Tensor:
    """`hydra_block_reference` in two passes over x, keeping x and c scalars for the backward."""
    check_reduction(reduction)
    factor = 1 / x.shape[-1] if reduction == "mean" else 1.0
    rows = 4 * (x.shape[1] + weights[0].shape[0])
    return streamed(x, partial(_gate, factor=factor), _gated, rows, *weights)


def _gate(x: Tensor, *weights: Tensor, factor: float) -> Tensor:
    """What a chunk adds to the global vector, (B, c, 1)."""
    keys, values = (linear(x, *weights[i : i + 2]) for i in (2, 4))
    return factor * (F.normalize(keys, dim=1, eps=SHORTEST) * values).sum(dim=-1, keepdim=True)


def _gated(x: Tensor, gate: Tensor, *weights: Tensor) -> Tensor:
    queries = F.normalize(linear(x, *weights[:2]), dim=1, eps=SHORTEST)
    return linear(queries * gate, *weights[6:])
