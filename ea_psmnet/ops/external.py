"""External attention on flattened positions; its memories are the caller's parameters.

Shapes: B batch, c channels, s memory rows, n positions.
"""

from __future__ import annotations

from torch import Tensor

from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.ops.streaming import streamed

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

    They are the log-sum-exps of the similarities over the positions.
    """
    rows = 4 * sum(key_memory.shape)
    return streamed(queries, _masses, _read, rows, key_memory, value_memory, logarithmic=True)


def _masses(queries: Tensor, key_memory: Tensor, _: Tensor) -> Tensor:
    return (key_memory @ queries).logsumexp(dim=-1, keepdim=True)  # (B, s, 1)


def _read(queries: Tensor, masses: Tensor, key_memory: Tensor, value_memory: Tensor) -> Tensor:
    weights = (key_memory @ queries - masses).exp()  # (B, s, c)
    weights = weights / (EPSILON + weights.sum(dim=-2, keepdim=True))
    return value_memory.T @ weights
