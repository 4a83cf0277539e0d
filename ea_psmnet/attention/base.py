"""The interface of all attention mechanisms, the steps they share, and what attention costs.

Costs are counted as in Table 1 of Shen et al., "Efficient Attention: Attention with Linear
Complexities", WACV 2021, whose formulas imply these rules. A multiply or an add is one operation.
Memory is the tensors that a forward makes and whose size grows with the volume or its context, each
once: normalisations and activations work in place, the residual sum makes one more. Of operations:

- A 1x1x1 convolution or a product of matrices is two an element; biases are free.
- Normalisations within attention (softmax, unit length, phi, the double normalisation) are free.
- The residual sum is one a channel and position, a ReLU one, a batch normalisation four.

Table 1 has v = d and no output projection.

Shapes: B batch, C channels, (D, H, W) a volume, n = D * H * W positions, h heads. Letters of costs:
d channels, k key and v value channels over all heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from ea_psmnet.tables import check_choice, check_counts


@dataclass(frozen=True)
class Resources:
    """Cost of one forward of one sample."""

    floats: int
    """Memory, in numbers."""
    products: int
    """Operations of convolutions and matrix products, which a counter of these can verify."""
    others: int
    """Operations element by element: sums, gates, batch normalisations."""
    map_floats: int = 0
    """How many of `floats` are weights between all pairs of positions."""

    @property
    def operations(self) -> int:
        """All operations."""
        return self.products + self.others

    def bytes(self, itemsize: int) -> int:
        """Memory in bytes, `itemsize` for each float, but at least four for pairwise weights."""
        return (self.floats - self.map_floats) * itemsize + self.map_floats * max(itemsize, 4)


Start = Literal["identity", "published"]
"""Initialisation of a new module: adding nothing, or as in the code published with its paper."""


class VolumeAttention(nn.Module):
    """A residual attention block: (B, C, D, H, W) in, the same shape, type and layout out.

    A mechanism defines `queries`, `attend` and `cost`; `forward` is here. The rest has defaults.
    """

    queries: nn.Conv3d
    """A convolution that reads all C channels of the volume."""

    @property
    def shares_context(self) -> bool:
        """Whether tiles of a volume can gather one context that all of them use.

        If so, `gather_context`, `merge_contexts` and `spread_context` are defined.
        """
        return False

    @property
    def survives_repetition(self) -> bool:
        """Whether repeating every channel leaves the output the same, but for the repetition."""
        return False

    def forward(self, volume: Tensor) -> Tensor:
        """Add to every position what it gathers from all others.

        Raises:
            ValueError: The volume is not floating-point, does not have C channels or has no
                positions.
        """
        check_volume(volume, self.queries.in_channels)
        gathered = self.attend(volume).to(volume.dtype)
        return volume + gathered.contiguous(memory_format=layout_of(volume))

    def attend(self, volume: Tensor) -> Tensor:
        """The residual branch, (B, C, D, H, W) to (B, C, D, H, W)."""
        raise NotImplementedError

    def cost(self, size: Sequence[int], *, published: bool = False) -> Resources:
        """Cost of one forward of one sample, by the rules at the top of this file.

        Args:
            size: Sides of the volume, (D, H, W).
            published: Count the order of the published code, if the module has a cheaper one.
        """
        raise NotImplementedError

    def gather_context(self, volume: Tensor) -> tuple[Tensor, ...]:
        """What a part of a volume, (B, C, D, H, W), adds to the context of the whole."""
        raise NotImplementedError

    def merge_contexts(self, parts: Sequence[tuple[Tensor, ...]]) -> Tensor:
        """The context of a whole volume, from the results of `gather_context` for its parts."""
        raise NotImplementedError

    def spread_context(self, volume: Tensor, context: Tensor) -> Tensor:
        """`forward` of a part of a volume, (B, C, D, H, W), with the context of the whole."""
        raise NotImplementedError


def layout_of(volume: Tensor) -> torch.memory_format:
    """The memory format of a volume: channels-last if it is dense in that order."""
    last = volume.is_contiguous(memory_format=torch.channels_last_3d)
    return torch.channels_last_3d if last else torch.contiguous_format


def split_heads(volume: Tensor, heads: int) -> Tensor:
    """(B, h * c, D, H, W) to (B, h, c, n); positions in row-major order of (D, H, W)."""
    batch, channels = volume.shape[:2]
    return volume.reshape(batch, heads, channels // heads, -1)


def check_volume(volume: Tensor, channels: int) -> None:
    """Raise a ValueError unless the volume is (B, channels, D, H, W), floating-point, not empty."""
    fits = volume.ndim == 5 and volume.shape[1] == channels and 0 not in volume.shape[2:]
    if not (fits and volume.is_floating_point()):
        raise ValueError(
            f"this attention takes floating-point volumes (B, {channels}, D, H, W), "
            f"not {volume.dtype} {tuple(volume.shape)}"
        )


def check_heads(heads: int, **channels: int) -> None:
    """Raise a ValueError unless the heads divide all numbers of channels."""
    check_counts(heads=heads, **{f"{name}_channels": count for name, count in channels.items()})
    for name, count in channels.items():
        if count % heads:
            raise ValueError(f"{name}_channels ({count}) must be divisible by heads ({heads})")


def check_start(name: str) -> None:
    """Raise a ValueError that lists the choices when `name` is not among them."""
    check_choice("start", name, get_args(Start))


def matrices_and_biases(*layers: nn.Conv3d) -> list[Tensor]:
    """1x1x1 convolutions as a matrix (outputs, inputs) and a bias (outputs,) each."""
    return [t for layer in layers for t in (layer.weight.flatten(1), cast(Tensor, layer.bias))]


def silence(layer: nn.Module) -> None:
    """Zero-initialise a layer, so that a branch that ends in it adds nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


# Table 1 ------------------------------------------------------------------------------------------


def table1_efficient(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + kd floats, (8kd + 2d^2 + d) n operations."""
    n, d, k = prod(size), channels, key_channels or channels // 2
    return Resources((2 * k + 3 * d) * n + k * d, (8 * k * d + 2 * d * d) * n, d * n)


def table1_non_local(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + n^2 floats, (4kd + 2d^2 + d) n + (2k + 2d) n^2 operations."""
    n, d, k = prod(size), channels, key_channels or channels // 2
    products = (4 * k * d + 2 * d * d) * n + (2 * k + 2 * d) * n * n
    return Resources((2 * k + 3 * d) * n + n * n, products, d * n, map_floats=n * n)


def table1_residual(size: Sequence[int], channels: int, **_: Any) -> Resources:
    """A residual block of two 3x3 convolutions: 5dn floats, (36d^2 + 11d) n operations."""
    n, d = prod(size), channels
    return Resources(5 * d * n, 36 * d * d * n, 11 * d * n)


TABLE_1: dict[str, Callable[..., Resources]] = {
    "table1-efficient": table1_efficient,
    "table1-non-local": table1_non_local,
    "table1-residual": table1_residual,
}
