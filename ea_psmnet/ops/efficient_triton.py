"""The two passes of the efficient-attention block as Triton kernels: x is read twice, written once.

Shapes: B batch, C channels, k key channels, n positions, S pieces that n is cut into.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ea_psmnet.ops.efficient_passes import merge_pieces

__all__ = ["gather", "is_supported", "spread"]

_BLOCK = 64
"""Positions a program holds at a time."""
_PROGRAMS = 512
"""Pieces of the first pass over all samples: a few for each multiprocessor."""
_WIDEST = 128
"""Channels up to which the weights fit into a program's registers and shared memory."""


def is_supported(x: Tensor, keys: int, heads: int) -> bool:
    """Whether the kernels can take x, (B, C, n): on CUDA, not in float64, narrow enough."""
    splits_evenly = heads == 1 or _padded(keys) == keys
    narrow = max(x.shape[1], keys) <= _WIDEST
    return x.is_cuda and x.dtype != torch.float64 and narrow and splits_evenly


def gather(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The first pass: softmax over positions, times x.

    Args:
        x: (B, C, n) in float32 or half precision, any strides.
        key: (k, C) in float32.

    Returns:
        Contexts (B, k, C) and log-sum-exps (B, k), float32.
    """
    batch, channels, positions = x.shape
    keys = key.shape[0]
    pieces = max(1, min(_PROGRAMS // batch, triton.cdiv(positions, _BLOCK)))
    span = triton.cdiv(triton.cdiv(positions, pieces), _BLOCK) * _BLOCK
    highest = x.new_empty((batch, pieces, keys), dtype=torch.float32)
    total = torch.empty_like(highest)
    context = x.new_empty((batch, pieces, keys, channels), dtype=torch.float32)
    _gather_kernel[(pieces, batch)](
        *(x, key.contiguous(), highest, total, context),
        *(positions, channels, keys, span, *x.stride()),
        **_constants(x, keys),
    )
    return merge_pieces(highest, total, context)


def spread(
    x: Tensor, query: Tensor, bias: Tensor, fold: Tensor, offset: Tensor, heads: int
) -> Tensor:
    """The second pass: x + fold softmax(query x + bias) + offset.

    Args:
        x: (B, C, n) in float32 or half precision, any strides.
        query: (k, C); the softmax runs over each head's k / heads channels.
        bias: (k,).
        fold: (B, C, k).
        offset: (C,).
        heads: divides k; above one, k must be a power of two.

    Returns:
        (B, C, n) of x's type and strides.
    """
    batch, channels, positions = x.shape
    keys = query.shape[0]
    out = torch.empty_like(x)
    _spread_kernel[(triton.cdiv(positions, _BLOCK), batch)](
        *(x, out, query.contiguous(), bias, fold.contiguous(), offset),
        *(positions, channels, keys, *x.stride()),
        HEADS=heads,
        **_constants(x, keys),
    )
    return out


def _padded(count: int) -> int:
    """A size that a matrix unit takes: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(count))


def _constants(x: Tensor, keys: int) -> dict[str, Any]:
    # Half-precision values fit tf32 exactly; float32 ones would lose 13 bits.
    precision = "ieee" if x.dtype == torch.float32 else "tf32"
    return {"C": _padded(x.shape[1]), "K": _padded(keys), "N": _BLOCK, "PRECISION": precision}


@triton.jit
def _positions(x, first, stop, channels, stride_c, stride_n, C: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers to (C, N) values from position `first` on, and which of them exist."""
    c = tl.arange(0, C)
    p = first + tl.arange(0, N).to(tl.int64)
    inside = (c < channels)[:, None] & (p < stop)[None, :]
    return x + c[:, None] * stride_c + p[None, :] * stride_n, inside, p < stop


@triton.jit
def _matrix(start, rows, columns, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """A row-major (rows, columns) matrix padded with zeros to (R, C)."""
    r = tl.arange(0, R)[:, None]
    c = tl.arange(0, C)[None, :]
    return tl.load(start + r * columns + c, mask=(r < rows) & (c < columns), other=0.0)


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    x, key, highest, total, context,
    positions, channels, keys, span, stride_b, stride_c, stride_n,
    C: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over one piece of one sample's positions."""
    piece = tl.program_id(0)
    batch = tl.program_id(1)
    x += batch.to(tl.int64) * stride_b
    weights = _matrix(key, keys, channels, K, C)
    top = tl.full((K,), float("-inf"), tl.float32)
    mass = tl.zeros((K,), tl.float32)
    sums = tl.zeros((K, C), tl.float32)
    start = piece.to(tl.int64) * span
    stop = tl.minimum(start + span, positions)
    for first in range(start, stop, N):
        at, inside, exists = _positions(x, first, stop, channels, stride_c, stride_n, C, N)
        block = tl.load(at, mask=inside, other=0.0).to(tl.float32)  # (C, N)
        logits = tl.dot(weights, block, input_precision=PRECISION)  # (K, N)
        logits = tl.where(exists[None, :], logits, float("-inf"))
        above = tl.maximum(top, tl.max(logits, 1))
        decay = tl.exp(top - above)
        part = tl.exp(logits - above[:, None])
        mass = mass * decay + tl.sum(part, 1)
        sums = sums * decay[:, None] + tl.dot(part, tl.trans(block), input_precision=PRECISION)
        top = above
    row = (batch * tl.num_programs(0) + piece).to(tl.int64) * keys
    k = tl.arange(0, K)
    tl.store(highest + row + k, top, mask=k < keys)
    tl.store(total + row + k, mass, mask=k < keys)
    c = tl.arange(0, C)[None, :]
    at = context + row * channels + k[:, None] * channels + c
    tl.store(at, sums, mask=(k[:, None] < keys) & (c < channels))


@triton.jit
def _spread_kernel(  # type: ignore[no-untyped-def]
    x, out, query, bias, fold, offset,
    positions, channels, keys, stride_b, stride_c, stride_n,
    HEADS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries, their softmax and the folded projection for one block of one sample's positions."""
    first = tl.program_id(0).to(tl.int64) * N
    batch = tl.program_id(1).to(tl.int64)
    at, inside, _ = _positions(
        x + batch * stride_b, first, positions, channels, stride_c, stride_n, C, N
    )
    block = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    k = tl.arange(0, K)
    logits = tl.dot(_matrix(query, keys, channels, K, C), block, input_precision=PRECISION)
    logits += tl.load(bias + k, mask=k < keys, other=0.0)[:, None]
    logits = tl.where((k < keys)[:, None], logits, float("-inf"))
    grouped = tl.reshape(logits, (HEADS, K // HEADS, N))
    grouped = tl.exp(grouped - tl.max(grouped, 1)[:, None, :])
    grouped = grouped / tl.sum(grouped, 1)[:, None, :]
    queries = tl.reshape(grouped, (K, N))
    projection = _matrix(fold + batch * channels * keys, channels, keys, C, K)
    c = tl.arange(0, C)
    shift = tl.load(offset + c, mask=c < channels, other=0.0)
    result = tl.dot(projection, queries, input_precision=PRECISION) + shift[:, None] + block
    target, inside, _ = _positions(
        out + batch * stride_b, first, positions, channels, stride_c, stride_n, C, N
    )
    tl.store(target, result.to(out.dtype.element_ty), mask=inside)
