"""External attention (Guo et al., 2021): its function on flattened positions, and the module.

Shapes: B batch, C channels, s memory rows, n positions, c positions of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention.base import (
    Resources,
    Start,
    VolumeAttention,
    check_start,
    silence,
)
from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.ops.streaming import streamed
from ea_psmnet.tables import check_counts

EPSILON = 1e-9
"""The published value; where the s weights of a position sum to less, its output tends to zero."""


@full_precision
def double_normalisation(similarity: Tensor) -> Tensor:
    """Softmax over the positions, then division by the sum over the memory rows.

    Guo et al., "Beyond Self-attention: External Attention using Two Linear Layers", TPAMI 2022,
    equations 9 to 11. The paper has no epsilon, its code adds 1e-9 to the sum.

    Args:
        similarity: (B, s, n).

    Returns:
        (B, s, n).
    """
    weights = widen(similarity).softmax(dim=-1)
    return weights / (EPSILON + weights.sum(dim=-2, keepdim=True))


@full_precision
def external_attention_reference(
    queries: Tensor, key_memory: Tensor, value_memory: Tensor
) -> Tensor:
    """Read from a memory that all inputs share, in time linear in the number of positions.

    Guo et al., equations 7 and 8: A = Norm(F M_k^T), A M_v.

    Args:
        queries: (B, c, n).
        key_memory: M_k, (s, c).
        value_memory: M_v, (s, c).

    Returns:
        (B, c, n).
    """
    weights = double_normalisation(widen(key_memory) @ widen(queries))  # (B, s, n)
    return widen(value_memory).T @ weights  # (B, c, n)


def external_attention(queries: Tensor, key_memory: Tensor, value_memory: Tensor) -> Tensor:
    """`external_attention_reference` chunk by chunk, without the (B, s, n) weights.

    It keeps s scalars instead: the log-sum-exps of the similarities over the positions.
    """
    rows = 4 * sum(key_memory.shape)
    return streamed(queries, _masses, _read, rows, key_memory, value_memory, logarithmic=True)


def _masses(queries: Tensor, key_memory: Tensor, _: Tensor) -> Tensor:
    return (key_memory @ queries).logsumexp(dim=-1, keepdim=True)  # (B, s, 1)


def _read(queries: Tensor, masses: Tensor, key_memory: Tensor, value_memory: Tensor) -> Tensor:
    weights = (key_memory @ queries - masses).exp()  # (B, s, c)
    weights = weights / (EPSILON + weights.sum(dim=-2, keepdim=True))
    return value_memory.T @ weights


class ExternalAttention(VolumeAttention):
    """x + BN(W_2 (Norm(W_1 x, M_k) M_v)), with two learned memories that all inputs share.

    Guo et al., "Beyond Self-attention: External Attention using Two Linear Layers for Visual
    Tasks", 2021 (TPAMI 2022), equations 7 to 11: a position reads from s rows of M_v with weights
    from s rows of M_k, normalised twice, by softmax over the positions and by the sum over the rows
    (plus 1e-9 in the code). The convolutions around it, the batch normalisation, the residual and
    the last ReLU are the published code's block; its other, multi-head variant is not here.

    In that code M_v starts as a copy of M_k (on a CPU the two even stay one storage); here they
    are separate parameters, as in the paper.

    Args:
        channels: C of the volume.
        rows: s, the rows of both memories.
        final_relu: End with the code's ReLU. Off by default, because it would set negative values
            of the cost volume to zero, so that no initialisation is the identity.
        start: `identity` (independent memories, the gain of the batch normalisation zero) or
            `published` (M_v a copy of M_k, the gain one). Both draw all weights from a normal
            distribution of variance 2 / C.

    Raises:
        ValueError: A count below one, or an unknown start.

    Example:
        >>> ExternalAttention(32)(torch.randn(1, 32, 8, 16, 16)).shape
        torch.Size([1, 32, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        rows: int = 64,
        final_relu: bool = False,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        check_start(start)
        check_counts(channels=channels, rows=rows)
        self.final_relu = final_relu
        self.queries = nn.Conv3d(channels, channels, kernel_size=1)
        self.key_memory = nn.Parameter(torch.empty(rows, channels))
        self.value_memory = nn.Parameter(torch.empty(rows, channels))
        mixing = nn.Conv3d(channels, channels, kernel_size=1, bias=False)
        norm = nn.BatchNorm3d(channels)
        self.projection = nn.Sequential(mixing, norm)
        for weight in (self.queries.weight, self.key_memory, self.value_memory, mixing.weight):
            nn.init.normal_(weight, std=math.sqrt(2 / channels))
        if start == "identity":
            silence(norm)
        else:
            self.value_memory.data.copy_(self.key_memory.data)

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """See `VolumeAttention.cost`; with s memory rows; the memories are parameters.

        Published order: queries, weights (normalised in place), gathered, projected, normalised and
        summed, (5d + s) n floats; two convolutions 4d^2 and the two products with the memories 4ds
        operations a position, batch normalisation and sum 5d, the last ReLU d.

        Streamed: s log-sum-exps instead of the weights, 5dn + s floats; they come from a pass of
        their own, which multiplies with M_k too, 6ds instead of 4ds operations.
        """
        n, d, s = prod(size), self.queries.in_channels, len(self.key_memory)
        others = (6 if self.final_relu else 5) * d * n
        if published:
            return Resources((5 * d + s) * n, (4 * d * d + 4 * d * s) * n, others)
        return Resources(5 * d * n + s, (4 * d * d + 6 * d * s) * n, others)

    def forward(self, volume: Tensor) -> Tensor:
        """Add to every position what it reads from the memories."""
        mixed = super().forward(volume)
        # A ReLU that keeps its input for the backward: the network adds to its output in place.
        return F.threshold(mixed, 0.0, 0.0) if self.final_relu else mixed

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        queries = self.queries(volume).flatten(2)  # (B, C, n)
        gathered = external_attention(queries, self.key_memory, self.value_memory)
        return self.projection(gathered.unflatten(2, volume.shape[2:]).to(volume.dtype))
