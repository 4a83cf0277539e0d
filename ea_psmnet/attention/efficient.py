"""Efficient attention (Shen et al., WACV 2021) on a volume."""

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
    check_heads,
    check_start,
    check_volume,
    layout_of,
    matrices_and_biases,
    silence,
)
from ea_psmnet.ops.attention import Normalisation, check_normalisation, position_shares
from ea_psmnet.ops.efficient_block import (
    BlockWeights,
    efficient_block,
    efficient_block_reference,
    folding_is_cheaper,
    gather_context,
    spread_context,
)
from ea_psmnet.ops.efficient_passes import merge_pieces
from ea_psmnet.tables import check_counts

_HALF_RANGE = 24
"""Levels over which the positions' coordinate of disparities runs from -1 to 0."""


class EfficientAttention(VolumeAttention):
    """x + W_o E(W_q x, W_k x, W_v x), with E linear in the number of positions.

    Shen et al., "Efficient Attention: Attention with Linear Complexities", WACV 2021, section 3.2
    and figure 2: 1x1x1 convolutions make queries, keys and values, heads split their channels, a
    last convolution projects back to C channels, and the input is added.

    Args:
        channels: C of the volume.
        key_channels: d_k over all heads; None for C / 2.
        value_channels: d_v over all heads; None for C.
        heads: Number of groups that the key and value channels are split into.
        normalisation: `softmax` (of queries over channels, of keys over positions), `scaling` (by
            the number of positions) or `none`.
        published_order: Compute queries, keys, values and projection one after the other, as the
            published code does, instead of the exact form that needs less time and memory.
        start: `identity` (projection at zero) or `published` (at random, as PyTorch starts it).
        positions: Fourier frequencies along each of D, H and W whose sine and cosine queries and
            keys read beside the channels, so that a key can prefer a place or a disparity; 0 for
            none, as published. See `fourier_positions`.
        sharpness: Factor of PyTorch's initial query and key weights. At 1 both softmaxes start
            nearly uniform, so that every key gathers about the mean of the volume.

    Raises:
        ValueError: A count below one, heads that do not divide the channels, an unknown
            normalisation or start, negative positions, a sharpness that is not above zero.

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
        start: Start = "identity",
        positions: int = 0,
        sharpness: float = 1.0,
    ) -> None:
        super().__init__()
        check_counts(channels=channels)
        key_channels = channels // 2 if key_channels is None else key_channels
        value_channels = channels if value_channels is None else value_channels
        check_normalisation(normalisation)
        check_heads(heads, key=key_channels, value=value_channels)
        check_start(start)
        if not (isinstance(sharpness, int | float) and 0 < sharpness < math.inf):
            raise ValueError(f"sharpness must be a number above zero, not {sharpness!r}")
        if not isinstance(positions, int) or positions not in range(9):
            raise ValueError(f"positions must be 0 to 8 frequencies, not {positions!r}")
        self.channels = channels
        self.positions = positions
        self.heads = heads
        self.published_order = published_order
        self.normalisation: Normalisation = normalisation
        seen = channels + 6 * positions
        self.queries = nn.Conv3d(seen, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(seen, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, value_channels, kernel_size=1)
        self.projection = nn.Conv3d(value_channels, channels, kernel_size=1)
        with torch.no_grad():
            for layer in (self.queries, self.keys):
                layer.weight *= sharpness
        if start == "identity":
            silence(self.projection)

    @property
    def shares_context(self) -> bool:
        """See `VolumeAttention`; with positions, coordinates of tiles would not be the volume's."""
        return self.normalisation == "softmax" and not self.positions

    @property
    def survives_repetition(self) -> bool:
        """See `VolumeAttention`; a softmax over repeated channels keeps its result."""
        return self.normalisation == "softmax" and not self.positions

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """See `VolumeAttention.cost`; in the order that the module chooses.

        Published order: Q, K, V, gathered, projected and summed, (2k + 2v + 2d) n floats and kv/h
        of contexts; (4kd + 2dv + 4kv/h + 2vd + d) n operations. That is Table 1 with the
        projection, which adds 2vd operations and d floats a position.

        Folded (softmax): one output and the contexts of x, dn + kd floats; keys, contexts of x,
        queries and the folded product, (8kd + d) n operations, and 4kvd/h to fold values and
        projection into the contexts. The chunks it works through, a few MiB at any size, are left
        out.

        Folded (scaling, none): the Gram matrix of (x, 1) and one d x d product, dn + (d + 1)^2
        floats and (4d^2 + 3d) n operations, without the small products that do not grow with n.
        """
        # Positions are further channels of the block's input.
        n, d, h = prod(size), self.queries.in_channels, self.heads
        k, v = self.queries.out_channels, self.values.out_channels
        products = 4 * k * d + 2 * d * v + 4 * k * v // h + 2 * v * d
        if published or self.published_order or not folding_is_cheaper(d, k, v, h):
            return Resources((2 * k + 2 * v + 2 * d) * n + k * v // h, products * n, d * n)
        if self.normalisation == "softmax":
            return Resources(d * n + k * d, 8 * k * d * n + 4 * k * v * d // h, d * n)
        return Resources(d * n + (d + 1) ** 2, 4 * d * d * n, 3 * d * n)

    def forward(self, volume: Tensor) -> Tensor:
        """See `VolumeAttention.forward`."""
        check_volume(volume, self.channels)
        block = efficient_block_reference if self.published_order else efficient_block
        out = block(self.seen(volume), self.weights(), self.heads, self.normalisation)
        out = out[:, : self.channels]
        return out.unflatten(2, volume.shape[2:]).contiguous(memory_format=layout_of(volume))

    def gather_context(self, volume: Tensor) -> tuple[Tensor, ...]:
        """See `VolumeAttention.gather_context`."""
        return gather_context(volume.flatten(2), self.weights())

    def merge_contexts(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """See `VolumeAttention.merge_contexts`."""
        contexts, sums = (torch.stack(kind, dim=1) for kind in zip(*parts, strict=True))
        return merge_pieces(sums, torch.ones_like(sums), contexts)[0]

    def spread_context(self, volume: Tensor, context: Tensor) -> Tensor:
        """See `VolumeAttention.spread_context`."""
        out = spread_context(volume.flatten(2), self.weights(), self.heads, context)
        return out.unflatten(2, volume.shape[2:])

    def global_maps(self, volume: Tensor) -> Tensor:
        """What each key channel attends to, as in figure 5 of the paper.

        With softmax these are the weights that gather the context; with scaling or none, whose
        weights are signed, they are |K| / sum |K|.

        Args:
            volume: (B, C, D, H, W), the input of `forward`.

        Returns:
            (B, d_k, D, H, W) in float32 or wider; every map sums to one over (D, H, W).
        """
        weights = self.weights().widened()  # as the block computes them, also in half precision
        with torch.autocast(volume.device.type, enabled=False):
            positions = self.seen(volume).to(weights.key.dtype)  # (B, C, n)
            scores = weights.key @ positions + weights.key_bias[:, None]  # (B, d_k, n)
        return position_shares(scores, self.normalisation).unflatten(2, volume.shape[2:])

    def seen(self, volume: Tensor) -> Tensor:
        """The input of queries and keys: (B, C, D, H, W) to (B, C + 6 * positions, n)."""
        if not self.positions:
            return volume.flatten(2)
        places = fourier_positions(volume.shape[2:], self.positions).to(volume)
        return torch.cat([volume, places.expand(len(volume), -1, -1, -1, -1)], dim=1).flatten(2)

    def weights(self) -> BlockWeights:
        """The four convolutions as the matrices that `efficient_block` takes.

        Positions are channels that values do not read and the projection does not write.
        """
        made = BlockWeights(
            *matrices_and_biases(self.queries, self.keys, self.values, self.projection)
        )
        if not self.positions:
            return made
        places = 6 * self.positions
        return made._replace(
            value=F.pad(made.value, (0, places)),
            projection=F.pad(made.projection, (0, 0, 0, places)),
            projection_bias=F.pad(made.projection_bias, (0, places)),
        )


def fourier_positions(size: Sequence[int], frequencies: int) -> Tensor:
    """Sine and cosine of pi 2^f u for each coordinate u of a volume's positions.

    Rows and columns run from -1 to 1 over the volume, whatever its size; disparities from -1 in
    steps of 1 / 24, because they mean the same in volumes of any depth.

    Args:
        size: (D, H, W).
        frequencies: F; f runs from 0 to F - 1.

    Returns:
        (1, 6 F, D, H, W) in float32.
    """
    depth, height, width = size
    axes = (
        torch.arange(depth) / _HALF_RANGE - 1,
        (2 * torch.arange(height) + 1) / height - 1,
        (2 * torch.arange(width) + 1) / width - 1,
    )
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))  # (3, D, H, W)
    angles = torch.cat([math.pi * 2**f * grid for f in range(frequencies)])
    return torch.cat([angles.sin(), angles.cos()]).unsqueeze(0)
