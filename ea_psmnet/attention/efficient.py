"""Efficient attention (Shen et al., WACV 2021) on a volume."""

from __future__ import annotations

import itertools
from typing import cast

from torch import Tensor, nn

from ea_psmnet.attention.volume import VolumeAttention, layout_of
from ea_psmnet.ops.attention import Normalisation, check_normalisation
from ea_psmnet.ops.efficient_block import (
    BlockWeights,
    efficient_block,
    efficient_block_reference,
)

__all__ = ["EfficientAttention"]


class EfficientAttention(VolumeAttention):
    """x + W_o E(W_q x, W_k x, W_v x), with E linear in the number of positions.

    Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, section 3.2
    and figure 2: 1x1x1 convolutions make queries, keys and values, heads split their channels, a
    last convolution projects back to C channels, and the input is added. That projection starts at
    zero (the published code starts it at random), so a new module is the identity.

    Args:
        channels: C of the volume.
        key_channels: d_k over all heads; None for C / 2.
        value_channels: d_v over all heads; None for C.
        heads: how many groups the key and value channels are split into.
        normalisation: `softmax` (of queries over channels, of keys over positions), `scaling` (by
            the number of positions) or `none`.
        published_order: compute queries, keys, values and projection one after the other, as the
            published code does, instead of the exact form that needs less time and memory.

    Raises:
        ValueError: the heads do not divide the channels, or the normalisation is unknown.

    Example:
        >>> EfficientAttention(32)(torch.randn(1, 32, 8, 16, 16)).shape
        torch.Size([1, 32, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        value_channels: int | None = None,
        heads: int = 1,
        normalisation: Normalisation = "softmax",
        published_order: bool = False,
    ) -> None:
        super().__init__()
        key_channels = channels // 2 if key_channels is None else key_channels
        value_channels = channels if value_channels is None else value_channels
        check_normalisation(normalisation)
        for label, count in (("key", key_channels), ("value", value_channels)):
            if heads < 1 or count < 1 or count % heads:
                raise ValueError(f"{heads} heads cannot share {count} {label} channels equally")
        self.heads = heads
        self.published_order = published_order
        self.normalisation: Normalisation = normalisation
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, value_channels, kernel_size=1)
        self.projection = nn.Conv3d(value_channels, channels, kernel_size=1)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)  # type: ignore[arg-type]  # the bias exists

    def forward(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) to the same: type and memory layout are kept."""
        block = efficient_block_reference if self.published_order else efficient_block
        out = block(volume.flatten(2), self._weights(), self.heads, self.normalisation)
        return out.unflatten(2, volume.shape[2:]).contiguous(memory_format=layout_of(volume))

    def _weights(self) -> BlockWeights:
        convolutions = (self.queries, self.keys, self.values, self.projection)
        pairs = ((c.weight.flatten(1), cast(Tensor, c.bias)) for c in convolutions)
        return BlockWeights(*itertools.chain.from_iterable(pairs))
