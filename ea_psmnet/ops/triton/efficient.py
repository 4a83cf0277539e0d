"""Forward passes of the efficient-attention block as Triton kernels: x is read twice.

A program processes a span of one sample's positions, a block at a time, and keeps the weights in
registers and shared memory. The backward is `ea_psmnet.ops.triton.efficient_backward`.

Shapes: B batch, C channels, k key channels, n positions, S spans that n is split into. In kernels
C, K and N are the padded numbers of channels, key channels and positions of a block.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ea_psmnet.ops.efficient_passes import merge_pieces

_PROGRAMS = 512
"""Number of spans over all samples: a few for each multiprocessor."""
_WIDEST = 64
"""Largest number of channels whose weights and sums fit into registers and shared memory."""


def is_supported(x: Tensor, keys: int, heads: int) -> bool:
    """Whether the kernels support x, (B, C, n): on CUDA, not float64, few enough channels."""
    splits_evenly = heads == 1 or padded(keys) == keys
    narrow = max(x.shape[1], keys) <= _WIDEST
    return x.is_cuda and x.dtype != torch.float64 and narrow and splits_evenly


def gather(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """`efficient_passes.gather` of x in float32 or half precision."""
    batch, channels, positions = x.shape
    keys = key.shape[0]
    grid, span, constants = _plan(x, keys)
    highest = x.new_empty((batch, grid[0], keys), dtype=torch.float32)
    total = torch.empty_like(highest)
    context = x.new_empty((batch, grid[0], keys, channels), dtype=torch.float32)
    _gather_kernel[grid](
        *(x, key.contiguous(), highest, total, context),
        *(positions, channels, keys, span, *x.stride()),
        **constants,
    )
    return merge_pieces(highest, total, context)


def spread(
    x: Tensor, query: Tensor, bias: Tensor, fold: Tensor, offset: Tensor, heads: int
) -> Tensor:
    """`efficient_passes.spread` of x in float32 or half precision.

    With more than one head, k must be a power of two.
    """
    _, channels, positions = x.shape
    keys = query.shape[0]
    out = torch.empty_like(x)
    grid, span, constants = _plan(x, keys)
    _spread_kernel[grid](
        *(x, out, query.contiguous(), bias.contiguous(), fold.contiguous(), offset.contiguous()),
        *(positions, channels, keys, span, *x.stride(), *out.stride()),
        HEADS=heads,
        **constants,
    )
    return out


def plan(
    x: Tensor, keys: int, block: int, precision: str
) -> tuple[tuple[int, int], int, dict[str, Any]]:
    """Grid and constants of a kernel that processes x, (B, C, n), in blocks of positions.

    Args:
        x: The input.
        keys: k.
        block: Positions that a program processes at a time if weights are small; with larger ones
            registers suffice for half as many, according to the compiler.
        precision: Precision of float32 products; half-precision values fit tf32 exactly.

    Returns:
        The grid (S, B), the number of positions of a span, and the kernel's constants.
    """
    batch, _, positions = x.shape
    C, K = padded(x.shape[1]), padded(keys)
    if C * K > 512:
        block //= 2
    spans = max(1, min(_PROGRAMS // batch, triton.cdiv(positions, block)))
    span = triton.cdiv(triton.cdiv(positions, spans), block) * block
    constants = {
        **{"C": C, "K": K, "N": block},
        "PRECISION": precision if x.dtype == torch.float32 else "tf32",
        "num_stages": 2 if block > 16 else 1,  # no registers for the next block
    }
    return (spans, batch), span, constants


def padded(count: int) -> int:
    """A size that matrix units support: a power of two, at least 16."""
    return max(16, triton.next_power_of_2(count))


def _plan(x: Tensor, keys: int) -> tuple[tuple[int, int], int, dict[str, Any]]:
    # Float32 products as three of tf32 parts, which matrix units compute.
    return plan(x, keys, 64, "tf32x3")


@triton.jit
def _block_at(x, first, stop, channels, stride_c, stride_n, C: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Pointers to (C, N) values from position `first` on, and a mask of those that exist."""
    c = tl.arange(0, C).to(tl.int64)
    p = first + tl.arange(0, N).to(tl.int64)
    inside = (c < channels)[:, None] & (p < stop)[None, :]
    return x + c[:, None] * stride_c + p[None, :] * stride_n, inside


@triton.jit
def load_block(x, first, stop, channels, stride_c, stride_n, C: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load (C, N) values from position `first` on, upcast to float32 and padded with zeros."""
    at, inside = _block_at(x, first, stop, channels, stride_c, stride_n, C, N)
    return tl.load(at, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def store_block(  # type: ignore[no-untyped-def]
    x, values, first, stop, channels, stride_c, stride_n, C: tl.constexpr, N: tl.constexpr
):  # fmt: skip
    """Store (C, N) values at the positions that `load_block` reads."""
    at, inside = _block_at(x, first, stop, channels, stride_c, stride_n, C, N)
    tl.store(at, values.to(x.dtype.element_ty), mask=inside)


@triton.jit
def load_matrix(start, rows, columns, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load a row-major (rows, columns) matrix, padded with zeros to (R, C)."""
    r = tl.arange(0, R)[:, None]
    c = tl.arange(0, C)[None, :]
    return tl.load(start + r * columns + c, mask=(r < rows) & (c < columns), other=0.0)


@triton.jit
def store_matrix(start, values, rows, columns, R: tl.constexpr, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the (rows, columns) part of (R, C) values, row-major."""
    r = tl.arange(0, R)[:, None]
    c = tl.arange(0, C)[None, :]
    tl.store(start + r * columns + c, values, mask=(r < rows) & (c < columns))


@triton.jit
def load_vector(start, count, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load a vector, padded with zeros to C."""
    c = tl.arange(0, C)
    return tl.load(start + c, mask=c < count, other=0.0)


@triton.jit
def store_vector(start, values, count, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store the first `count` of C values."""
    c = tl.arange(0, C)
    tl.store(start + c, values, mask=c < count)


@triton.jit
def span_of_program(span, positions):  # type: ignore[no-untyped-def]
    """This program's first position and the one after its last."""
    start = tl.program_id(0).to(tl.int64) * span
    return start, tl.minimum(start + span, positions)


@triton.jit
def row_of_program():  # type: ignore[no-untyped-def]
    """Row of this program's sums in an array (B, S, ...)."""
    return tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)


@triton.jit
def softmax_queries(logits, keys, HEADS: tl.constexpr, K: tl.constexpr, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """(K, N) logits to queries: a softmax over each head's channels, zero in padded ones."""
    exists = (tl.arange(0, K) < keys)[:, None]
    logits = tl.where(exists, logits, float("-inf"))
    grouped = tl.reshape(logits, (HEADS, K // HEADS, N))
    grouped = tl.exp(grouped - tl.max(grouped, 1)[:, None, :])
    grouped = grouped / tl.sum(grouped, 1)[:, None, :]
    return tl.reshape(grouped, (K, N))


@triton.jit
def _gather_kernel(  # type: ignore[no-untyped-def]
    x, key, highest, total, context,
    positions, channels, keys, span, stride_b, stride_c, stride_n,
    C: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Online softmax over one span of one sample's positions."""
    x += tl.program_id(1).to(tl.int64) * stride_b
    weights = load_matrix(key, keys, channels, K, C)
    top = tl.full((K,), float("-inf"), tl.float32)
    mass = tl.zeros((K,), tl.float32)
    sums = tl.zeros((K, C), tl.float32)
    start, stop = span_of_program(span, positions)
    for first in range(start, stop, N):
        block = load_block(x, first, stop, channels, stride_c, stride_n, C, N)
        logits = tl.dot(weights, block, input_precision=PRECISION)  # (K, N)
        exists = first + tl.arange(0, N) < stop
        logits = tl.where(exists[None, :], logits, float("-inf"))
        above = tl.maximum(top, tl.max(logits, 1))
        decay = tl.exp(top - above)
        part = tl.exp(logits - above[:, None])
        mass = mass * decay + tl.sum(part, 1)
        sums = sums * decay[:, None] + tl.dot(part, tl.trans(block), input_precision=PRECISION)
        top = above
    row = row_of_program() * keys
    store_vector(highest + row, top, keys, K)
    store_vector(total + row, mass, keys, K)
    store_matrix(context + row * channels, sums, keys, channels, K, C)


@triton.jit
def _spread_kernel(  # type: ignore[no-untyped-def]
    x, out, query, bias, fold, offset,
    positions, channels, keys, span, stride_b, stride_c, stride_n, out_b, out_c, out_n,
    HEADS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries, their softmax and the folded projection for one span of one sample's positions."""
    batch = tl.program_id(1).to(tl.int64)
    x += batch * stride_b
    out += batch * out_b
    weights = load_matrix(query, keys, channels, K, C)
    below = load_vector(bias, keys, K)[:, None]
    projection = load_matrix(fold + batch * channels * keys, channels, keys, C, K)
    shift = load_vector(offset, channels, C)[:, None]
    start, stop = span_of_program(span, positions)
    for first in range(start, stop, N):
        block = load_block(x, first, stop, channels, stride_c, stride_n, C, N)
        logits = tl.dot(weights, block, input_precision=PRECISION) + below  # (K, N)
        queries = softmax_queries(logits, keys, HEADS, K, N)
        result = tl.dot(projection, queries, input_precision=PRECISION) + shift + block
        store_block(out, result, first, stop, channels, out_c, out_n, C, N)
