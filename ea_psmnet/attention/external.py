"""External attention (Guo et al., 2021) on a volume."""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention.resources import Resources
from ea_psmnet.attention.volume import Start, VolumeAttention, check_counts, check_start, silence
from ea_psmnet.ops.external import streamed_external_attention

__all__ = ["ExternalAttention"]


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
        final_relu: end with the code's ReLU. Off by default: cost volumes have negative values at
            most sites, which it would cut from the input, so that no start is the identity.
        start: `identity` (independent memories, the gain of the batch normalisation zero) or
            `published` (M_v a copy of M_k, the gain one). Both draw all weights from a normal
            distribution of variance 2 / C.

    Raises:
        ValueError: a count below one, or an unknown start.

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
        gathered = streamed_external_attention(queries, self.key_memory, self.value_memory)
        return self.projection(gathered.unflatten(2, volume.shape[2:]).to(volume.dtype))
