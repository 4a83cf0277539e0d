"""What attention costs: floats of memory and operations of one volume, and the paper's Table 1.

The counting is that of Table 1 of Shen et al., "Efficient Attention: Attention with Linear
Complexities", WACV 2021, as its formulas imply it. A multiply or an add is one operation. Memory is
the tensors that a forward makes and whose size grows with the volume or its context, each once:
normalisations and activations work in place, the residual sum makes one more. Of operations:

- A 1x1x1 convolution or a product of matrices is two an element; biases are free.
- Normalisations within attention (softmax, unit length, phi, the double normalisation) are free.
- The residual sum is one a channel and position, a ReLU one, a batch normalisation four.

Each mechanism tells its own cost (`VolumeAttention.cost`); Table 1 has v = d and no output
projection. Nothing is run here: `ea_psmnet.experiments.resources` measures.

Letters: n positions, d channels, k key and v value channels over all heads, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

__all__ = ["TABLE_1", "Resources"]


@dataclass(frozen=True)
class Resources:
    """Cost of one forward of one sample."""

    floats: int
    """Memory, in numbers."""
    products: int
    """Operations of convolutions and matrix products, which a counter of such can verify."""
    others: int
    """Operations element by element: sums, gates, batch normalisations."""
    map_floats: int = 0
    """Of `floats`, those of the weights between all pairs of positions."""

    @property
    def operations(self) -> int:
        """All operations."""
        return self.products + self.others

    def bytes(self, itemsize: int) -> int:
        """Memory in bytes, `itemsize` a float; pairwise weights never take less than four."""
        return (self.floats - self.map_floats) * itemsize + self.map_floats * max(itemsize, 4)


def table1_efficient(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + kd floats, (8kd + 2d^2 + d) n operations."""
    n, d, k = prod(size), channels, _or(key_channels, channels // 2)
    return Resources((2 * k + 3 * d) * n + k * d, (8 * k * d + 2 * d * d) * n, d * n)


def table1_non_local(
    size: Sequence[int], channels: int, *, key_channels: int | None = None, **_: Any
) -> Resources:
    """(2k + 3d) n + n^2 floats, (4kd + 2d^2 + d) n + (2k + 2d) n^2 operations."""
    n, d, k = prod(size), channels, _or(key_channels, channels // 2)
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


def _or(count: int | None, default: int) -> int:
    return default if count is None else count
