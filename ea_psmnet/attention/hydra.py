"""Hydra attention (Bolya et al., ECCV Workshops 2022): its functions, and the module.

Shapes: B batch, C channels of a volume, c channels of keys (each one is a head), n positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention.base import (
    Resources,
    Start,
    VolumeAttention,
    check_start,
    matrices_and_biases,
    silence,
)
from ea_psmnet.ops.precision import full_precision, linear, widen
from ea_psmnet.ops.streaming import streamed
from ea_psmnet.tables import check_choice, check_counts

Reduction = Literal["mean", "sum"]

SHORTEST = 1e-6
"""Shorter vectors are divided by this length, which keeps their gradient finite."""


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
        reduction: Reduction of keys times values over positions; the paper's is `sum`.

    Returns:
        (B, c, n).
    """
    check_choice("reduction", reduction, get_args(Reduction))
    queries, keys = (F.normalize(widen(t), dim=1, eps=SHORTEST) for t in (queries, keys))
    products = keys * widen(values)  # (B, c, m)
    reduce = products.mean if reduction == "mean" else products.sum
    return queries * reduce(dim=-1, keepdim=True)  # (B, c, n)


@full_precision
def hydra_block_reference(x: Tensor, *weights: Tensor, reduction: Reduction = "mean") -> Tensor:
    """The whole branch W_o hydra(W_q x, W_k x, W_v x), convolution by convolution.

    Args:
        x: (B, C, n).
        weights: Matrix and bias of queries, keys, values, each (c, C) and (c,), and of the
            projection, (C, c) and (C,).
        reduction: See `hydra_attention`.

    Returns:
        (B, C, n).
    """
    wide = widen(x)
    queries, keys, values = (linear(wide, *weights[i : i + 2]) for i in (0, 2, 4))
    return linear(hydra_attention(queries, keys, values, reduction), *weights[6:])


def hydra_block(x: Tensor, *weights: Tensor, reduction: Reduction = "mean") -> Tensor:
    """`hydra_block_reference` in two passes over x; the backward keeps x and c scalars."""
    check_choice("reduction", reduction, get_args(Reduction))
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


class HydraAttention(VolumeAttention):
    """x + W_o (Q^ * sum_t(K^_t * V_t)): as many heads as channels, linear in both.

    Bolya et al., "Hydra Attention: Efficient Attention with Many Heads", ECCV Workshops 2022,
    section 3 and the code of its appendix: unit queries and keys over the channels (the cosine
    similarity), and one global vector that every query gates, element by element.

    The paper sums over positions, for images of one size; here the default is their mean, since
    the sum grows with the volume: crops in training, whole images later. The paper publishes no
    block around its formula: biases and the projection are those of a vision transformer. Unlike
    there, queries and keys shorter than 1e-6 are divided by 1e-6.

    Args:
        channels: C of the volume.
        key_channels: Channels of queries, keys and values, each a head; None for C, as published.
        reduction: Reduction over positions: `mean`, or `sum` as published, which can exceed
            float16's range.
        start: `identity` (projection at zero) or `published` (at random, as PyTorch starts it).

    Raises:
        ValueError: A count below one, an unknown reduction or start.

    Example:
        >>> HydraAttention(32)(torch.randn(1, 32, 8, 16, 16)).shape
        torch.Size([1, 32, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        reduction: Reduction = "mean",
        start: Start = "identity",
    ) -> None:
        super().__init__()
        check_choice("reduction", reduction, get_args(Reduction))
        check_start(start)
        key_channels = channels if key_channels is None else key_channels
        check_counts(channels=channels, key_channels=key_channels)
        self.reduction: Reduction = reduction
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.projection = nn.Conv3d(key_channels, channels, kernel_size=1)
        if start == "identity":
            silence(self.projection)

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """See `VolumeAttention.cost`.

        Published order: Q, K, V, K * V, gathered, projected and summed, (5k + 2d) n floats, and the
        global vector k. Streamed: projected, summed and the vector, 2dn + k floats. Operations of
        both: the four convolutions 8kd a position, K * V and its sum 2k, the gate k, the residual
        sum d.
        """
        n, d, k = prod(size), self.queries.in_channels, self.queries.out_channels
        floats = ((5 * k + 2 * d) if published else 2 * d) * n + k
        return Resources(floats, 8 * k * d * n, (3 * k + d) * n)

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        weights = matrices_and_biases(self.queries, self.keys, self.values, self.projection)
        branch = hydra_block(volume.flatten(2), *weights, reduction=self.reduction)  # (B, C, n)
        return branch.unflatten(2, volume.shape[2:])
