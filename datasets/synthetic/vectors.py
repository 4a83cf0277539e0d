"""Vectors as (3, N) tensors.

Written out over the three rows: torch's own reductions over a first dimension of three take many
times as long on a CPU.
"""

from __future__ import annotations

from torch import Tensor


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Dot products of the columns, (N,)."""
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def length(vectors: Tensor) -> Tensor:
    """Lengths of the columns, (N,)."""
    return dot(vectors, vectors).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """The columns scaled to length 1, (3, N)."""
    return vectors / length(vectors)


def main_axis(vectors: Tensor) -> Tensor:
    """(N,) int32, the axis along which each column is longest."""
    x, y, z = vectors.abs()
    first = (x >= y) & (x >= z)
    return (2 - (y >= z).int()).masked_fill_(first, 0)
