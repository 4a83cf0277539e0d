"""External attention on flattened positions; its memories are the caller's parameters.

Shapes: B batch, c channels, s memory rows, n positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.ops.streaming import chunks, streamed

__all__ = ["double_normalisation", "external_attention", "streamed_external_attention"]

EPSILON = 1e-9
"""The published one; at positions whose s weights sum to less, the output fades to zero."""


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
def external_attention(queries: Tensor, key_memory: Tensor, value_memory: Tensor) -> Tensor:
    """Read from a memory shared by all inputs, linear in the number of positions.

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


def streamed_external_attention(
    queries: Tensor, key_memory: Tensor, value_memory: Tensor
) -> Tensor:
    """`external_attention` chunk by chunk: of the (B, s, n) weights only s scalars are kept.

    They are the sums of the exponentials over the positions, relative to the largest, which is
    found in a pass of its own and cancels from the result, so that it needs no gradient.
    """
    rows = 4 * sum(key_memory.shape)
    largest = _largest(queries, key_memory, rows)
    return streamed(queries, _mass, _read, rows, key_memory, value_memory, largest)


@full_precision
@torch.no_grad()
def _largest(queries: Tensor, key_memory: Tensor, rows: int) -> Tensor:
    """(B, s, 1), the largest similarity of each row."""
    parts = [
        (widen(key_memory) @ widen(queries[..., chunk])).amax(dim=-1, keepdim=True)
        for chunk in chunks(queries, rows)
    ]
    return torch.stack(parts).amax(dim=0)


def _mass(queries: Tensor, key_memory: Tensor, _: Tensor, largest: Tensor) -> Tensor:
    return (key_memory @ queries - largest).exp().sum(dim=-1, keepdim=True)  # (B, s, 1)


def _read(
    queries: Tensor, mass: Tensor, key_memory: Tensor, value_memory: Tensor, largest: Tensor
) -> Tensor:
    weights = (key_memory @ queries - largest).exp() / mass  # (B, s, c)
    weights = weights / (EPSILON + weights.sum(dim=-2, keepdim=True))
    return value_memory.T @ weights
