"""Focused linear attention (Han et al., ICCV 2023): its functions, and the module.

All is computed in float32 at least: the published epsilons and powers do not survive half
precision.

Shapes: B batch, C channels of a volume, h heads, k key channels, v value channels, n positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention.base import (
    Resources,
    Start,
    VolumeAttention,
    check_heads,
    check_start,
    matrices_and_biases,
    silence,
)
from ea_psmnet.ops.precision import full_precision, linear, widen
from ea_psmnet.ops.streaming import streamed
from ea_psmnet.tables import check_choice, check_counts

Denominator = Literal["mean", "sum"]

EPSILON = 1e-6
"""The published value, added to the features and to the denominator."""


@full_precision
def focused_features(features: Tensor, scale: Tensor, power: float = 3.0) -> Tensor:
    """Rotate the features of every position towards its largest ones, keeping their length.

    Han et al., "FLatten Transformer", ICCV 2023, equations 5 and 6: x^p with the norm of x. Before
    it, as in the published code only: ReLU plus 1e-6, divided by softplus(scale). The norms are
    over all channels, so this comes before heads are split. The power is taken of x over its
    largest channel, which the two norms cancel: x^p itself overflows float32 for p above 3.

    Args:
        features: queries or keys, (B, k, n).
        scale: (k,), before its softplus.
        power: p.

    Returns:
        (B, k, n), not negative.
    """
    divisor = F.softplus(widen(scale))[:, None]  # (k, 1)
    features = (widen(features).relu() + EPSILON) / divisor
    # No gradient through the largest channel: the result does not depend on it.
    powered = (features / features.detach().amax(dim=1, keepdim=True)) ** power
    length = features.norm(dim=1, keepdim=True)  # (B, 1, n)
    return powered * (length / powered.norm(dim=1, keepdim=True))


@full_precision
def focused_linear_attention(
    queries: Tensor, keys: Tensor, values: Tensor, denominator: Denominator = "mean"
) -> Tensor:
    """Average the values with weights queries . keys, through a k x v context.

    Han et al., section 3.2, linear in n. The paper has no epsilon under the fraction. Its code adds
    1e-6, first to the sum of the products over positions, later to their mean.

    Args:
        queries: (B, h, k, n), not negative.
        keys: (B, h, k, m), not negative.
        values: (B, h, v, m).
        denominator: Whether the epsilon is added to the `mean` or to the `sum`.

    Returns:
        (B, h, v, n).
    """
    check_choice("denominator", denominator, get_args(Denominator))
    queries, keys, values = widen(queries), widen(keys), widen(values)
    count = keys.shape[-1]
    epsilon = EPSILON if denominator == "mean" else EPSILON / count
    context = keys @ values.transpose(-1, -2) / count  # (B, h, k, v)
    total = keys.mean(dim=-1, keepdim=True)  # (B, h, k, 1)
    gathered = context.transpose(-1, -2) @ queries  # (B, h, v, n)
    return gathered / (total.transpose(-1, -2) @ queries + epsilon)


@full_precision
def focused_block_reference(
    x: Tensor, *weights: Tensor, power: float, heads: int, denominator: Denominator
) -> Tensor:
    """Queries, keys, values and their attention, convolution by convolution.

    Args:
        x: (B, C, n).
        weights: Matrix and bias of queries, keys and values, (k or v, C) and (k or v,), and the
            feature scale (k,).
        power: See `focused_features`.
        heads: Number of groups that the key and value channels are split into.
        denominator: See `focused_linear_attention`.

    Returns:
        (B, v, n).
    """
    wide = widen(x)
    queries, keys, values = (linear(wide, *weights[i : i + 2]) for i in (0, 2, 4))
    queries, keys = (focused_features(t, weights[6], power) for t in (queries, keys))
    q, k, v = (t.unflatten(1, (heads, -1)) for t in (queries, keys, values))  # (B, h, ., n)
    return focused_linear_attention(q, k, v, denominator).flatten(1, 2)


def focused_block(
    x: Tensor, *weights: Tensor, power: float, heads: int, denominator: Denominator
) -> Tensor:
    """`focused_block_reference` in two passes over x; the backward keeps x and the contexts."""
    check_choice("denominator", denominator, get_args(Denominator))
    share = 1 / x.shape[-1]
    epsilon = EPSILON if denominator == "mean" else EPSILON * share
    rows = 4 * (x.shape[1] + weights[0].shape[0] + weights[4].shape[0])
    gather = partial(_contexts, power=power, heads=heads, share=share)
    spread = partial(_averages, power=power, heads=heads, epsilon=epsilon)
    return streamed(x, gather, spread, rows, *weights)


def _contexts(x: Tensor, *weights: Tensor, power: float, heads: int, share: float) -> Tensor:
    """What a chunk adds to the mean of keys times (values, 1): (B, h, k, v + 1)."""
    keys = focused_features(linear(x, *weights[2:4]), weights[6], power)
    values = linear(x, *weights[4:6]).unflatten(1, (heads, -1))  # (B, h, v, c)
    ones = F.pad(values, (0, 0, 0, 1), value=1.0)
    return keys.unflatten(1, (heads, -1)) @ ones.mT * share


def _averages(
    x: Tensor, contexts: Tensor, *weights: Tensor, power: float, heads: int, epsilon: float
) -> Tensor:
    queries = focused_features(linear(x, *weights[:2]), weights[6], power)
    gathered = contexts.mT @ queries.unflatten(1, (heads, -1))  # (B, h, v + 1, c)
    return (gathered[:, :, :-1] / (gathered[:, :, -1:] + epsilon)).flatten(1, 2)


class FocusedLinearAttention(VolumeAttention):
    """x + W_o (phi(Q) (phi(K)^T V) / (phi(Q) sum phi(K)) + DWC(V)), linear in the positions.

    Han et al., "FLatten Transformer: Vision Transformer using Focused Linear Attention", ICCV
    2023: phi turns features towards x^p at their old length (equations 5 and 6); a depth-wise
    convolution of the values, one kernel for all heads, restores the rank of the attention map
    (equation 10).

    In the published code and not in the paper: ReLU plus 1e-6, the learned divisor softplus(scale)
    of queries and keys, norms over the channels of all heads, 1e-6 under the fraction (see
    `denominator`). Not here: the code's position table, added to the keys, because its size is that
    of the input (it starts at zero); its layer normalisation, which belongs to the transformer
    block; its reduced keys (`sr_ratio`). The depth-wise kernel is a cube instead of a square: a
    published one goes into the middle slice of D.

    Args:
        channels: C of the volume.
        key_channels: Channels of queries and keys over all heads; None for C, as published.
        value_channels: Channels of values over all heads; None for C, as published.
        heads: Number of groups that the key and value channels are split into.
        focusing_power: p, above zero; 3 as published, finite in float32 up to 8 at least.
        kernel_size: Side of the depth-wise kernel, odd; 5 as published.
        denominator: What 1e-6 is added to: the `mean` over positions of the products, as in the
            code's last version and the same at every size, or their `sum`, as in its first.
        start: `identity` (projection at zero) or `published` (weights of the four projections
            normal with deviation 0.02, biases zero).

    Raises:
        ValueError: A count below one, heads that do not divide the channels, a power or kernel
            size out of range, an unknown denominator or start.

    Example:
        >>> FocusedLinearAttention(32, heads=4)(torch.randn(1, 32, 8, 16, 16)).shape
        torch.Size([1, 32, 8, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        value_channels: int | None = None,
        heads: int = 1,
        focusing_power: float = 3.0,
        kernel_size: int = 5,
        denominator: Denominator = "mean",
        start: Start = "identity",
    ) -> None:
        super().__init__()
        key_channels = channels if key_channels is None else key_channels
        value_channels = channels if value_channels is None else value_channels
        check_counts(channels=channels, kernel_size=kernel_size)
        check_heads(heads, key=key_channels, value=value_channels)
        check_choice("denominator", denominator, get_args(Denominator))
        check_start(start)
        if not (isinstance(focusing_power, int | float) and 0 < focusing_power < math.inf):
            raise ValueError(f"focusing_power must be a number above zero, not {focusing_power!r}")
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, to have a middle, not {kernel_size}")
        self.heads = heads
        self.focusing_power = focusing_power
        self.denominator: Denominator = denominator
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, value_channels, kernel_size=1)
        self.scale = nn.Parameter(torch.zeros(key_channels))
        width = value_channels // heads
        self.restoration = nn.Conv3d(
            width, width, kernel_size, padding=kernel_size // 2, groups=width
        )
        self.projection = nn.Conv3d(value_channels, channels, kernel_size=1)
        if start == "identity":
            silence(self.projection)
        else:
            for layer in (self.queries, self.keys, self.values, self.projection):
                silence(layer)
                nn.init.trunc_normal_(layer.weight, std=0.02)

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """See `VolumeAttention.cost`; s is the side of the depth-wise kernel.

        Published order, floats: Q, K (phi in place), V, gathered, depth-wise convolved, projected
        and summed, (2k + 3v + 2d) n, the denominators hn, contexts kv/h and the sum of keys k.
        Operations: convolutions 4kd + 2dv + 2vd a position, contexts and gathering 4kv/h,
        denominators 2k and the sum of keys k, division v, depth-wise convolution 2vs^3 and its sum
        v, residual sum d.

        Streamed: V, gathered, convolved, projected and summed, (3v + 2d) n floats and the contexts
        with the sum of keys, kv/h + k. The contexts are made from V of their own, 2dv operations
        more, and sum the keys as one more product, 2k instead of k.
        """
        n, d, h = prod(size), self.queries.in_channels, self.heads
        k, v = self.queries.out_channels, self.values.out_channels
        kernel = prod(self.restoration.kernel_size)
        products = 4 * k * d + 4 * d * v + 4 * k * v // h + 2 * k + 2 * v * kernel
        if not published:
            floats = (3 * v + 2 * d) * n + k * v // h + k
            return Resources(floats, (products + 2 * d * v + 2 * k) * n, (2 * v + d) * n)
        return Resources(
            (2 * k + 3 * v + 2 * d + h) * n + k * v // h + k, products * n, (k + 2 * v + d) * n
        )

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        gathered = focused_block(
            volume.flatten(2),
            *matrices_and_biases(self.queries, self.keys, self.values),
            self.scale,
            power=self.focusing_power,
            heads=self.heads,
            denominator=self.denominator,
        )  # (B, v, n)
        return self._project(gathered.unflatten(2, volume.shape[2:]), self.values(volume))

    def _project(self, gathered: Tensor, values: Tensor) -> Tensor:
        """Project the results of attention and depth-wise convolution to C channels."""
        return self.projection(gathered + self._restore_rank(values))

    def _restore_rank(self, values: Tensor) -> Tensor:
        """Depth-wise convolution of every head, (B, v, D, H, W) to the same."""
        batch, channels, *size = values.shape
        heads = values.reshape(batch * self.heads, channels // self.heads, *size)
        return self.restoration(heads).reshape(values.shape)
