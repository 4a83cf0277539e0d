"""Hydra attention (Bolya et al., ECCV Workshops 2022) on a volume."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from ea_psmnet.attention.resources import Resources
from ea_psmnet.attention.volume import (
    Start,
    VolumeAttention,
    check_counts,
    check_start,
    matrix_and_bias,
    silence,
)
from ea_psmnet.ops.hydra import Reduction, check_reduction, hydra_block

__all__ = ["HydraAttention"]


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
        key_channels: of queries, keys and values alike, each a head; None for C, as published.
        reduction: over positions: `mean`, or `sum` as published, which can leave float16's range.
        start: `identity` (projection at zero) or `published` (at random, as PyTorch starts it).

    Raises:
        ValueError: a count below one, an unknown reduction or start.

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
        check_reduction(reduction)
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
        layers = (self.queries, self.keys, self.values, self.projection)
        weights = [t for layer in layers for t in matrix_and_bias(layer)]
        branch = hydra_block(volume.flatten(2), *weights, reduction=self.reduction)  # (B, C, n)
        return branch.unflatten(2, volume.shape[2:])
