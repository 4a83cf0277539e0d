"""The whole efficient-attention block, x + W_o E(W_q x, W_k x, W_v x), in two orders.

Besides the published order there is a faster one with the same result. Every column of the keys'
softmax sums to one, so softmax(K)^T V = (softmax(K)^T X) W_v + b_v: values are never computed, and
the output projection is folded into the small context. Two passes over x remain, chunk by chunk,
with an online softmax in the first, and two in the backward (`efficient_passes`). Without a softmax
the block is linear in x but for one sum over positions, the moments, and is one matrix and one
constant.

Shapes: B batch, C channels, h heads, k and v key and value channels over all heads, n positions.
"""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ea_psmnet.ops import efficient_passes
from ea_psmnet.ops.attention import Normalisation, check_normalisation, efficient_attention
from ea_psmnet.ops.precision import full_precision, lean_backward, widen
from ea_psmnet.ops.streaming import chunks


class BlockWeights(NamedTuple):
    """The four 1x1x1 convolutions as matrices."""

    query: Tensor
    """(k, C)."""
    query_bias: Tensor
    """(k,)."""
    key: Tensor
    """(k, C)."""
    key_bias: Tensor
    """(k,); a softmax over positions is invariant to it, so its gradient is exactly zero."""
    value: Tensor
    """(v, C)."""
    value_bias: Tensor
    """(v,)."""
    projection: Tensor
    """(C, v)."""
    projection_bias: Tensor
    """(C,)."""

    def widened(self) -> BlockWeights:
        """The same in float32 at least."""
        return BlockWeights(*(widen(t) for t in self))


def folding_is_cheaper(channels: int, keys: int, values: int, heads: int) -> bool:
    """Whether 4Ck multiply-adds a position are at most those of the published order."""
    return 4 * channels * keys <= 2 * channels * (keys + values) + 2 * keys * values // heads


@full_precision
def efficient_block_reference(
    x: Tensor, weights: BlockWeights, heads: int, normalisation: Normalisation = "softmax"
) -> Tensor:
    """The block in the published order: queries, keys, values, attention, projection, sum.

    Args:
        x: (B, C, n).
        weights: Weights of the convolutions.
        heads: Number of groups that the key and value channels are split into.
        normalisation: See `efficient_attention`.

    Returns:
        (B, C, n), of x's type.
    """
    wide, weights = widen(x), weights.widened()
    queries, keys, values = (
        (matrix @ wide + bias[:, None]).unflatten(1, (heads, -1))  # (B, h, k/h or v/h, n)
        for matrix, bias in zip(weights[0:6:2], weights[1:6:2], strict=True)
    )
    gathered = efficient_attention(queries, keys, values, normalisation).flatten(1, 2)  # (B, v, n)
    branch = weights.projection @ gathered + weights.projection_bias[:, None]
    return x + branch.to(x.dtype)


@full_precision
def efficient_block(
    x: Tensor, weights: BlockWeights, heads: int, normalisation: Normalisation = "softmax"
) -> Tensor:
    """`efficient_block_reference` in two passes over x, with memory for one output.

    The backward keeps x, the (k, C) contexts and k log-sum-exps; without a softmax x and its
    moments. Falls back to the published order where that is cheaper (`folding_is_cheaper`), and in
    exported graphs.

    `EA_PSMNET_TRITON=1` uses Triton's kernels for the passes on GPUs, where
    `ops.triton.efficient.is_supported` allows: no GPU has run them yet.
    """
    check_normalisation(normalisation)
    channels, keys = weights.query.shape[1], weights.query.shape[0]
    folds = folding_is_cheaper(channels, keys, weights.value.shape[0], heads)
    if not folds or torch.compiler.is_exporting():
        return efficient_block_reference(x, weights, heads, normalisation)
    if normalisation == "softmax":
        return _SoftmaxBlock.apply(x, heads, *weights)
    return _LinearBlock.apply(x, heads, normalisation == "none", *weights)


@full_precision
def gather_context(x: Tensor, weights: BlockWeights) -> tuple[Tensor, Tensor]:
    """The first pass of the softmax block alone: the contribution of a part of a volume.

    Args:
        x: (B, C, n), the part.
        weights: Weights of the convolutions.

    Returns:
        Contexts (B, k, C) and log-sum-exps (B, k). `merge_pieces` with totals of one combines those
        of several parts to those of the whole volume.
    """
    return efficient_passes.gather(x, widen(weights.key))


@full_precision
def spread_context(x: Tensor, weights: BlockWeights, heads: int, context: Tensor) -> Tensor:
    """The second pass of the softmax block alone, without gradients.

    Args:
        x: (B, C, n), the volume whose context is given, or a part of it.
        weights: Weights of the convolutions.
        heads: See `efficient_block`.
        context: (B, k, C), by `gather_context`.

    Returns:
        (B, C, n).
    """
    weights = weights.widened()
    query, bias, offset = weights.query, weights.query_bias, weights.projection_bias
    return efficient_passes.spread(x, query, bias, _fold(context, weights, heads), offset, heads)


def _fold(context: Tensor, weights: BlockWeights, heads: int) -> Tensor:
    """Values and projection applied to the contexts sum_t softmax(K)_t x_t, (B, k, C).

    Returns:
        (B, C, k), the contribution of each key channel to the output.
    """
    values = torch.einsum(
        "bhkc,hvc->bhkv",
        context.unflatten(1, (heads, -1)),
        weights.value.unflatten(0, (heads, -1)),
    )
    return _project(values + weights.value_bias.view(heads, 1, -1), weights, heads)


def _project(values: Tensor, weights: BlockWeights, heads: int) -> Tensor:
    """(B, h, k/h, v/h) contexts to (B, C, k) by the output projection."""
    projection = weights.projection.unflatten(1, (heads, -1))  # (C, h, v/h)
    return torch.einsum("chv,bhkv->bchk", projection, values).flatten(2)


def _passes_for(x: Tensor, weights: BlockWeights, heads: int) -> ModuleType:
    """Triton's kernels if they are enabled and support x, else the passes in torch."""
    if x.is_cuda and os.environ.get("EA_PSMNET_TRITON") == "1" and _has_triton(x.device):
        from ea_psmnet.ops.triton import efficient

        if efficient.is_supported(x, weights.query.shape[0], heads):
            return efficient
    return efficient_passes


@cache
def _has_triton(device: torch.device) -> bool:
    """Whether Triton is installed and the GPU has the matrix units that the kernels need."""
    if torch.version.hip is not None or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return find_spec("triton") is not None


class _SoftmaxBlock(torch.autograd.Function):
    """Softmax on both sides, with the residual sum written in the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, *tensors: Tensor) -> Tensor:
        weights = BlockWeights(*tensors).widened()
        passes = _passes_for(x, weights, heads)
        context, lse = passes.gather(x, weights.key)
        ctx.save_for_backward(x, context, lse, *tensors)
        ctx.heads = heads
        query, bias, offset = weights.query, weights.query_bias, weights.projection_bias
        return passes.spread(x, query, bias, _fold(context, weights, heads), offset, heads)

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, context, lse, *tensors = ctx.saved_tensors
        weights = BlockWeights(*tensors).widened()
        folded = (context, weights.value, weights.value_bias, weights.projection)
        leaves = [t.detach().requires_grad_() for t in folded]
        with torch.enable_grad():
            parts = dict(zip(("value", "value_bias", "projection"), leaves[1:], strict=True))
            fold = _fold(leaves[0], weights._replace(**parts), ctx.heads)  # (B, C, k)
        spread = weights.query, weights.query_bias, fold.detach()
        if _passes_for(x, weights, ctx.heads) is efficient_passes:
            grad_x = torch.empty_like(x)
            query, query_bias, grad_fold, offset = efficient_passes.spread_backward(
                x, grads[0], grad_x, *spread, ctx.heads
            )
            grad_context, *through = torch.autograd.grad(fold, leaves, grad_fold)
            key = efficient_passes.gather_backward(
                x, grad_x, weights.key, context, lse, grad_context
            )
        else:
            from ea_psmnet.ops.triton import efficient_backward as kernels

            query, query_bias, grad_fold, offset = kernels.spread_sums(
                x, grads[0], *spread, ctx.heads
            )
            grad_context, *through = torch.autograd.grad(fold, leaves, grad_fold)
            gathered = weights.key, context, lse, grad_context
            grad_x, key = kernels.input_gradient(x, grads[0], *spread, *gathered, ctx.heads)
        key_bias = torch.zeros_like(weights.key_bias)
        sums = (query, query_bias, key, key_bias, *through, offset)
        return grad_x, None, *(g.to(t.dtype) for g, t in zip(sums, tensors, strict=True))


class _LinearBlock(torch.autograd.Function):
    """The block without a softmax: keeps x and its moments for the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, total: bool, *tensors: Tensor) -> Tensor:
        summary = _moments(x, mean=not total)
        ctx.save_for_backward(x, summary, *tensors)
        ctx.heads, ctx.total = heads, total
        matrix, constant = _collapse(summary, BlockWeights(*tensors).widened(), heads)
        matrix, constant = matrix.to(x.dtype), constant.to(x.dtype)
        if x.stride(1) == 1:  # channels-last: the product keeps that order only the other way round
            out = torch.empty_like(x)  # a view, `.mT`, could not be added to in place
            torch.baddbmm(x.mT, x.mT, matrix.mT, out=out.mT)
            return out.add_(constant)
        return torch.baddbmm(x, matrix, x).add_(constant)

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, summary, *tensors = ctx.saved_tensors
        wide = BlockWeights(*tensors).widened()
        leaves = [t.detach().requires_grad_() for t in (summary, *wide)]
        with torch.enable_grad():
            collapsed = _collapse(leaves[0], BlockWeights(*leaves[1:]), ctx.heads)
        grad_x, *arriving = _collapsed_backward(x, grads[0], collapsed[0].detach())
        grad_summary, *through = torch.autograd.grad(collapsed, leaves, arriving)
        _moments_backward(x, grad_summary, grad_x, mean=not ctx.total)
        own = (g.to(t.dtype) for g, t in zip(through, tensors, strict=True))
        return grad_x, None, None, *own


def _collapse(summary: Tensor, weights: BlockWeights, heads: int) -> tuple[Tensor, Tensor]:
    """What the block without a softmax adds to x, as a linear map of x.

    With a constant 1 appended to x, each convolution is one matrix.

    Args:
        summary: (B, C + 1, C + 1), the volume's moments.
        weights: Weights of the convolutions, in the type of `summary`.
        heads: See `efficient_block`.

    Returns:
        The matrix (B, C, C) and the constant (B, C, 1).
    """
    queries, keys, values = (
        torch.cat([matrix, bias[:, None]], dim=1)  # (k or v, C + 1)
        for matrix, bias in zip(weights[0:6:2], weights[1:6:2], strict=True)
    )
    contexts = torch.einsum(
        "hkc,bcd,hvd->bhkv",
        keys.unflatten(0, (heads, -1)),
        summary,
        values.unflatten(0, (heads, -1)),
    )
    block = _project(contexts, weights, heads) @ queries  # (B, C, C + 1)
    return block[:, :, :-1], block[:, :, -1:] + weights.projection_bias[:, None]


def _moments(x: Tensor, *, mean: bool) -> Tensor:
    """Sum or mean over positions of the outer product of (x, 1) with itself.

    Returns:
        (B, C + 1, C + 1), in float32 at least, for x (B, C, n).
    """
    batch, channels, positions = x.shape
    sums = widen(x.new_zeros(batch, channels + 1, channels + 1))
    for chunk in chunks(x, 2 * channels):
        part = widen(x[:, :, chunk])
        sums[:, :-1, :-1].baddbmm_(part, part.transpose(1, 2))
        sums[:, :-1, -1] += part.sum(dim=2)
    sums[:, -1, :-1] = sums[:, :-1, -1]
    sums[:, -1, -1] = positions
    return sums / positions if mean else sums


def _moments_backward(x: Tensor, grad: Tensor, grad_x: Tensor, *, mean: bool) -> None:
    """Backward of `_moments`: adds to grad_x (B, C, n) for a gradient (B, C + 1, C + 1)."""
    symmetric = (grad + grad.mT) / (x.shape[2] if mean else 1)
    for chunk in chunks(x, 2 * x.shape[1]):
        grad_x[:, :, chunk] += torch.baddbmm(
            symmetric[:, :-1, -1:], symmetric[:, :-1, :-1], widen(x[:, :, chunk])
        )


def _collapsed_backward(x: Tensor, grad: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Backward of x + matrix x + constant, its sums in the matrix's type.

    Returns:
        Gradients of x (B, C, n), of the matrix (B, C, C) and of the constant (B, C, 1).
    """
    grad_x, grad_matrix = torch.empty_like(x), torch.zeros_like(matrix)
    grad_constant = torch.zeros_like(matrix[:, :, :1])
    for chunk in chunks(x, 2 * x.shape[1]):
        part = widen(grad[:, :, chunk])
        grad_matrix.baddbmm_(part, widen(x[:, :, chunk]).mT)
        grad_constant += part.sum(dim=2, keepdim=True)
        grad_x[:, :, chunk] = torch.baddbmm(part, matrix.mT, part)
    return grad_x, grad_matrix, grad_constant
