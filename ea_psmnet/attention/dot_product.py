"""Dot-product (non-local) attention (Wang et al., CVPR 2018) on a volume."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ea_psmnet.attention.base import (
    Resources,
    Start,
    VolumeAttention,
    check_start,
    silence,
    split_heads,
)
from ea_psmnet.ops.attention import (
    Normalisation,
    check_normalisation,
    dot_product_attention,
    dot_product_attention_reference,
    position_shares,
)
from ea_psmnet.ops.precision import widen
from ea_psmnet.tables import check_choice, check_counts

Backend = Literal["naive", "sdpa"]
Pool = Literal["none", "projected", "input"]

BACKENDS = {"naive": dot_product_attention_reference, "sdpa": dot_product_attention}


class DotProductAttention(VolumeAttention):
    """The non-local block: x + BN(W_z A(W_theta x, W_phi x) W_g x), with A of size n x n.

    Wang et al., "Non-local Neural Networks", CVPR 2018, equation 6 and figure 2. Keys, queries and
    values have C / 2 channels, the batch normalisation after the projection starts with gain zero
    (section 4.1), so a new block is the identity. With the naive back end memory grows with the
    square of the number of positions: it fits at 1/16 of an image's resolution, rarely above.

    Paper and published code (its own, and mmcv's `NonLocal3d`) differ: see `scale_logits`, `pool`
    and `start`. Both codes scale and pool by default.

    Args:
        channels: C of the volume.
        key_channels: Channels of queries, keys and values; None for C / 2.
        normalisation: `softmax` (the embedded Gaussian, equation 3), `scaling` (the dot product
            over n, equation 4) or `none`.
        backend: `naive` stores all n x n weights, as published. `sdpa` is the same function with
            memory linear in n: PyTorch's tiled kernel for softmax, Q (K^T V) for the others.
        pool: Max-pool keys and values by two in H and W, which quarters the weights (section 3.3;
            an odd last row or column is left out): `projected` after their convolutions, as in the
            paper and mmcv, `input` before them, as in the authors' code.
        scale_logits: Divide by the square root of the key channels before the softmax, as both
            codes do; the paper does not.
        start: `identity`, or `published`, which is the identity too, but for training draws all
            convolutions from a normal distribution of deviation 0.01, without biases.

    Raises:
        ValueError: A count below one; an unknown normalisation, back end, pool or start;
            `scale_logits` without softmax.

    Example:
        >>> DotProductAttention(32)(torch.randn(1, 32, 4, 8, 8)).shape
        torch.Size([1, 32, 4, 8, 8])
    """

    def __init__(
        self,
        channels: int,
        *,
        key_channels: int | None = None,
        normalisation: Normalisation = "softmax",
        backend: Backend = "naive",
        pool: Pool = "none",
        scale_logits: bool = False,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        check_counts(channels=channels)
        check_normalisation(normalisation)
        check_choice("backend", backend, get_args(Backend))
        check_choice("pool", pool, get_args(Pool))
        check_start(start)
        if scale_logits and normalisation != "softmax":
            raise ValueError(f"scale_logits belongs to softmax, not to {normalisation}")
        key_channels = channels // 2 if key_channels is None else key_channels
        check_counts(key_channels=key_channels)
        self.normalisation: Normalisation = normalisation
        self.backend, self.pool = backend, pool
        self.logit_scale = key_channels**-0.5 if scale_logits else 1.0
        self.queries = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.keys = nn.Conv3d(channels, key_channels, kernel_size=1)
        self.values = nn.Conv3d(channels, key_channels, kernel_size=1)
        norm = nn.BatchNorm3d(channels)
        silence(norm)
        mixing = nn.Conv3d(key_channels, channels, kernel_size=1)
        self.projection = nn.Sequential(mixing, norm)
        if start == "published":
            for layer in (self.queries, self.keys, self.values, mixing):
                silence(layer)
                nn.init.normal_(layer.weight, std=0.01)

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """See `VolumeAttention.cost`; values have k channels too, m keys after pooling, else m = n.

        Floats: Q, gathered, projected, normalised and summed, (2k + 3d) n; K and V, 2kn, pooled
        2km more, or dm + 2km pooled before them; the map, nm, naive only. Operations: the
        convolutions of Q and the projection 4kd n, of K and V 4kd a position that they see, the two
        products with the map 4knm, batch normalisation and sum 5d n. Without a softmax the `sdpa`
        back end multiplies K with V first: 2k^2 (n + m) in place of 4knm, and k^2 floats.
        """
        n, d, k = prod(size), self.queries.in_channels, self.queries.out_channels
        m = prod(_pooled_sides(size)) if self.pool != "none" else n
        seen = m if self.pool == "input" else n
        floats = (2 * k + 3 * d) * n + 2 * k * seen
        floats += {"none": 0, "projected": 2 * k * m, "input": d * m}[self.pool]
        linear = self.backend == "sdpa" and self.normalisation != "softmax"
        pairs = 2 * k * k * (n + m) if linear else 4 * k * n * m
        stored = n * m if self.backend == "naive" else 0
        return Resources(
            floats + stored + (k * k if linear else 0),
            4 * k * d * (n + seen) + pairs,
            5 * d * n,
            map_floats=stored,
        )

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        queries = widen(self.queries(volume)) * self.logit_scale  # (B, k, D, H, W)
        keys, values = self._keys_and_values(volume)  # (B, k, D, H, W) or pooled
        q, k, v = (split_heads(t, heads=1) for t in (queries, keys, values))  # (B, 1, k, n or m)
        gathered = BACKENDS[self.backend](q, k, v, self.normalisation)  # (B, 1, k, n)
        return self.projection(gathered.squeeze(1).unflatten(2, volume.shape[2:]).to(volume.dtype))

    def map_of(self, volume: Tensor, position: tuple[int, int, int]) -> Tensor:
        """What one position attends to: its row of the n x n weights, without the other rows.

        With softmax these are the weights themselves; with scaling or none, whose weights have
        signs, their sizes divided by their sum. Where keys are pooled, the weight of a key is
        spread evenly over the positions under its window.

        Args:
            volume: (B, C, D, H, W), the input of `forward`.
            position: (d, y, x) in the volume, not negative.

        Returns:
            (B, D, H, W) in float32 or wider; sums to one.
        """
        d, y, x = position
        with torch.autocast(volume.device.type, enabled=False):
            volume = volume.to(self.keys.weight.dtype)
            query = self.queries(volume[:, :, d : d + 1, y : y + 1, x : x + 1])  # (B, k, 1, 1, 1)
            keys, _ = self._keys_and_values(volume)  # (B, k, D, H, W) or pooled
            products = widen(query) * self.logit_scale * widen(keys)  # widened as in `attend`
            scores = products.sum(dim=1)  # (B, D, H, W) or pooled
        shares = position_shares(scores.flatten(1), self.normalisation).view_as(scores)
        return shares if self.pool == "none" else _spread(shares, volume.shape[-2:])

    def _keys_and_values(self, volume: Tensor) -> tuple[Tensor, Tensor]:
        source = _halved(volume) if self.pool == "input" else volume
        keys, values = self.keys(source), self.values(source)
        return (_halved(keys), _halved(values)) if self.pool == "projected" else (keys, values)


def _halved(volume: Tensor) -> Tensor:
    """(B, C, D, H, W) to (B, C, D, H // 2, W // 2), sides of one kept."""
    height, width = volume.shape[-2:]
    return F.max_pool3d(volume, kernel_size=(1, min(2, height), min(2, width)))


def _spread(shares: Tensor, size: torch.Size) -> Tensor:
    """Inverse of `_halved`: each window's share in equal parts, zero in rows left out."""
    (height, width), (rows, columns) = size, shares.shape[-2:]
    window = (min(2, height), min(2, width))
    spread = shares.repeat_interleave(window[0], dim=-2).repeat_interleave(window[1], dim=-1)
    missing = (0, width - columns * window[1], 0, height - rows * window[0])
    return F.pad(spread / (window[0] * window[1]), missing)


def _pooled_sides(size: Sequence[int]) -> list[int]:
    """Sides after max-pooling by two in H and W; an odd last row is left out, a single one kept."""
    return [*size[:-2], *(max(1, side // 2) for side in size[-2:])]
