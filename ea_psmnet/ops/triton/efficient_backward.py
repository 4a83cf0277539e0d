"""Backward passes of `ea_psmnet.ops.triton.efficient`: x and the gradient are read twice each.

The gradient of x at a position needs the gradient of the contexts, a sum over all positions of the
output's gradient times the queries. So both tensors are read once for the sums and once more for
the gradient of x, which is written once: five transfers of a tensor of x's size. (A pass that
writes one part of the gradient and a second that adds the rest would need six, and round half
precision twice.) Queries, keys and logits are recomputed in both passes from x, the contexts and
the log-sum-exps, with 12 C k multiply-adds a position.

Gradients of weights and contexts are summed in float32, in each program over its span of positions
and then over the programs in a fixed order, so that runs are reproducible bit by bit.

Shapes: as in `ea_psmnet.ops.triton.efficient`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ea_psmnet.ops.triton.efficient import (
    load_block,
    load_matrix,
    load_vector,
    plan,
    row_of_program,
    softmax_queries,
    span_of_program,
    store_block,
    store_matrix,
    store_vector,
)

_PRECISION = "bf16x3"
"""Precision of float32 products: three of bfloat16 parts, with 16 bits of mantissa; parts of tf32
do not fit."""


def spread_sums(
    x: Tensor, grad: Tensor, query: Tensor, bias: Tensor, fold: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first pass: gradients of `spread`'s query, bias, fold and offset, in float32.

    `grad` is the gradient of the output, (B, C, n), in any strides.
    """
    batch, channels, positions = x.shape
    keys = query.shape[0]
    grid, span, constants = _plan(x, keys)

    def parts(*shape: int) -> Tensor:
        return x.new_empty((batch, grid[0], *shape), dtype=torch.float32)

    sums = parts(keys, channels), parts(keys), parts(channels, keys), parts(channels)
    _sums_kernel[grid](
        *(x, grad, query.contiguous(), bias.contiguous(), fold.contiguous(), *sums),
        *(positions, channels, keys, span, *x.stride(), *grad.stride()),
        HEADS=heads,
        **constants,
    )
    grad_query, grad_bias, grad_fold, grad_offset = (t.sum(dim=1) for t in sums)
    return grad_query.sum(dim=0), grad_bias.sum(dim=0), grad_fold, grad_offset.sum(dim=0)


def input_gradient(
    x: Tensor,
    grad: Tensor,
    query: Tensor,
    bias: Tensor,
    fold: Tensor,
    key: Tensor,
    context: Tensor,
    lse: Tensor,
    grad_context: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """The second pass: backward of `spread` for x, and of `gather`.

    The arguments are those of `spread_sums` and `gather`, the contexts (B, k, C) and log-sum-exps
    (B, k) that `gather` returned, and the gradient of the contexts.

    Returns:
        Gradients of x, of its type and strides, and of key, (k, C), in float32.
    """
    batch, channels, positions = x.shape
    keys = key.shape[0]
    grid, span, constants = _plan(x, keys)
    grad_x = torch.empty_like(x)
    grad_key = x.new_empty((batch, grid[0], keys, channels), dtype=torch.float32)
    means = (grad_context * context).sum(dim=2)  # (B, k)
    small = (query, bias, fold, key, lse, grad_context, means)
    _input_kernel[grid](
        *(x, grad, *(t.contiguous() for t in small), grad_x, grad_key),
        *(positions, channels, keys, span, *x.stride(), *grad.stride(), *grad_x.stride()),
        HEADS=heads,
        **constants,
    )
    return grad_x, grad_key.sum(dim=(0, 1))


def _plan(x: Tensor, keys: int) -> tuple[tuple[int, int], int, dict[str, Any]]:
    # Smaller blocks than the forward's, as more weights and sums are held.
    return plan(x, keys, 32, _PRECISION)


@triton.jit
def _queries_and_slope(  # type: ignore[no-untyped-def]
    block, arriving, weights, bias, projection, keys,
    HEADS: tl.constexpr, K: tl.constexpr, N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(K, N) queries of a (C, N) block, and the gradient of their logits."""
    logits = tl.dot(weights, block, input_precision=PRECISION) + bias
    queries = softmax_queries(logits, keys, HEADS, K, N)
    pull = tl.dot(tl.trans(projection), arriving, input_precision=PRECISION)
    weighted = tl.reshape(queries * pull, (HEADS, K // HEADS, N))
    grouped = tl.reshape(queries, (HEADS, K // HEADS, N))
    slope = weighted - grouped * tl.sum(weighted, 1)[:, None, :]
    return queries, tl.reshape(slope, (K, N))


@triton.jit
def _sums_kernel(  # type: ignore[no-untyped-def]
    x, grad, query, bias, fold, grad_query, grad_bias, grad_fold, grad_offset,
    positions, channels, keys, span, stride_b, stride_c, stride_n, grad_b, grad_c, grad_n,
    HEADS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Contribution of a span of one sample's positions to the gradients of weights and fold."""
    batch = tl.program_id(1).to(tl.int64)
    x += batch * stride_b
    grad += batch * grad_b
    weights = load_matrix(query, keys, channels, K, C)
    below = load_vector(bias, keys, K)[:, None]
    projection = load_matrix(fold + batch * channels * keys, channels, keys, C, K)
    query_sum = tl.zeros((K, C), tl.float32)
    bias_sum = tl.zeros((K,), tl.float32)
    fold_sum = tl.zeros((C, K), tl.float32)
    offset_sum = tl.zeros((C,), tl.float32)
    start, stop = span_of_program(span, positions)
    for first in range(start, stop, N):
        block = load_block(x, first, stop, channels, stride_c, stride_n, C, N)
        arriving = load_block(grad, first, stop, channels, grad_c, grad_n, C, N)
        queries, slope = _queries_and_slope(
            block, arriving, weights, below, projection, keys, HEADS, K, N, PRECISION
        )
        fold_sum += tl.dot(arriving, tl.trans(queries), input_precision=PRECISION)
        query_sum += tl.dot(slope, tl.trans(block), input_precision=PRECISION)
        bias_sum += tl.sum(slope, 1)
        offset_sum += tl.sum(arriving, 1)
    row = row_of_program()
    store_matrix(grad_query + row * keys * channels, query_sum, keys, channels, K, C)
    store_vector(grad_bias + row * keys, bias_sum, keys, K)
    store_matrix(grad_fold + row * keys * channels, fold_sum, channels, keys, C, K)
    store_vector(grad_offset + row * channels, offset_sum, channels, C)


@triton.jit
def _input_kernel(  # type: ignore[no-untyped-def]
    x, grad, query, bias, fold, key, lse, grad_context, means, grad_x, grad_key,
    positions, channels, keys, span, stride_b, stride_c, stride_n,
    grad_b, grad_c, grad_n, out_b, out_c, out_n,
    HEADS: tl.constexpr, C: tl.constexpr, K: tl.constexpr, N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradient of x in a span of positions, and its contribution to the gradient of key."""
    batch = tl.program_id(1).to(tl.int64)
    x += batch * stride_b
    grad += batch * grad_b
    grad_x += batch * out_b
    matrix = batch * keys * channels
    query_weights = load_matrix(query, keys, channels, K, C)
    query_bias = load_vector(bias, keys, K)[:, None]
    projection = load_matrix(fold + matrix, channels, keys, C, K)
    key_weights = load_matrix(key, keys, channels, K, C)
    push = load_matrix(grad_context + matrix, keys, channels, K, C)
    scale = load_vector(lse + batch * keys, keys, K)[:, None]
    mean = load_vector(means + batch * keys, keys, K)[:, None]
    key_sum = tl.zeros((K, C), tl.float32)
    start, stop = span_of_program(span, positions)
    for first in range(start, stop, N):
        block = load_block(x, first, stop, channels, stride_c, stride_n, C, N)
        result = load_block(grad, first, stop, channels, grad_c, grad_n, C, N)
        _, slope = _queries_and_slope(
            block, result, query_weights, query_bias, projection, keys, HEADS, K, N, PRECISION
        )
        result += tl.dot(tl.trans(query_weights), slope, input_precision=PRECISION)
        share = tl.dot(key_weights, block, input_precision=PRECISION) - scale  # (K, N)
        exists = first + tl.arange(0, N) < stop  # elsewhere exp(-lse) may be infinite
        share = tl.exp(tl.where(exists[None, :], share, float("-inf")))
        slope = share * (tl.dot(push, block, input_precision=PRECISION) - mean)
        result += tl.dot(tl.trans(push), share, input_precision=PRECISION)
        result += tl.dot(tl.trans(key_weights), slope, input_precision=PRECISION)
        key_sum += tl.dot(slope, tl.trans(block), input_precision=PRECISION)
        store_block(grad_x, result, first, stop, channels, out_c, out_n, C, N)
    store_matrix(grad_key + row_of_program() * keys * channels, key_sum, keys, channels, K, C)
