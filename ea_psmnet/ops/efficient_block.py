"""The whole efficient-attention block, x + W_o E(W_q x, W_k x, W_v x): published and exact fast.

Every column of the keys' softmax sums to one, so softmax(K)^T V = (softmax(K)^T X) W_v + b_v:
values need never exist, and the output projection folds into the small context. What remains is two
passes over x, chunk by chunk, with an online softmax in the first, and as many in the backward.

Shapes: B batch, C channels, h heads, k and v key and value channels over all heads, n positions.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ea_psmnet.ops.attention import Normalisation, efficient_attention
from ea_psmnet.ops.precision import full_precision, widen
from ea_psmnet.ops.streaming import chunks

__all__ = [
    "BlockWeights",
    "efficient_block",
    "efficient_block_reference",
    "folding_is_cheaper",
]


class BlockWeights(NamedTuple):
    """The four 1x1x1 convolutions as matrices."""

    query: Tensor
    """(k, C)."""
    query_bias: Tensor
    """(k,)."""
    key: Tensor
    """(k, C)."""
    key_bias: Tensor
    """(k,); a softmax over positions does not feel it, so its gradient is exactly zero."""
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
    """Whether 4Ck multiply-adds a position are no more than the published order's."""
    return 4 * channels * keys <= 2 * channels * (keys + values) + 2 * keys * values // heads


@full_precision
def efficient_block_reference(
    x: Tensor, weights: BlockWeights, heads: int, normalisation: Normalisation = "softmax"
) -> Tensor:
    """The block in the published order: queries, keys, values, attention, projection, sum.

    Args:
        x: (B, C, n).
        weights: of the convolutions.
        heads: the key and value channels are split into so many groups.
        normalisation: as of `efficient_attention`.

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

    Saves for the backward x, the (k, C) contexts and k log-sum-exps. Without a softmax the block is
    linear in x but for its Gram matrix, and collapses to one C x C matrix. Falls back to the
    published order where so many key channels and heads are asked for that this one is cheaper.
    """
    channels, keys = weights.query.shape[1], weights.query.shape[0]
    if not folding_is_cheaper(channels, keys, weights.value.shape[0], heads):
        return efficient_block_reference(x, weights, heads, normalisation)
    if normalisation == "softmax":
        return _SoftmaxBlock.apply(x, heads, *weights)
    return _linear_block(x, weights, heads, total=normalisation == "none")


def _fold(context: Tensor, weights: BlockWeights, heads: int) -> Tensor:
    """Values and projection applied to the contexts sum_t softmax(K)_t x_t, (B, k, C).

    Returns:
        (B, C, k): what each key channel adds to the output.
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


def _softmax_queries(x: Tensor, weights: BlockWeights, heads: int) -> Tensor:
    """(C, c) positions to (k, c) queries, normalised over each head's channels."""
    logits = torch.addmm(weights.query_bias[:, None], weights.query, x)
    return logits.unflatten(0, (heads, -1)).softmax(dim=1).flatten(0, 1)


def _triton_for(x: Tensor, weights: BlockWeights, heads: int) -> ModuleType | None:
    """The Triton kernels where they can take x."""
    if not x.is_cuda:
        return None
    from ea_psmnet.ops import efficient_triton  # not every platform has Triton

    supported = efficient_triton.is_supported(x, weights.query.shape[0], heads)
    return efficient_triton if supported else None


def _gather(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax over positions of x, (B, C, n), times x.

    Returns:
        The contexts (B, k, C) and the log-sum-exps (B, k) of the logits without bias.
    """
    samples = [_gather_sample(sample, key) for sample in x]
    return torch.stack([c for c, _ in samples]), torch.stack([lse for _, lse in samples])


def _gather_sample(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Online softmax (Milakov and Gimelshein, 2018) over the positions of one x, (C, n)."""
    highest = key.new_full((key.shape[0],), -torch.inf)
    total, context = torch.zeros_like(highest), torch.zeros_like(key)
    for chunk in chunks(x, sum(key.shape)):
        positions = widen(x[:, chunk])  # (C, c)
        logits = key @ positions  # (k, c)
        above = torch.maximum(highest, logits.amax(dim=1))
        decay, highest = (highest - above).exp_(), above
        mass = logits.sub_(above[:, None]).exp_()
        total = total * decay + mass.sum(dim=1)
        context = torch.addmm(context * decay[:, None], mass, positions.T)
    return context / total[:, None], highest + total.log()


def _spread(x: Tensor, fold: Tensor, weights: BlockWeights, heads: int) -> Tensor:
    """Return x + fold softmax(W_q x + b_q) + b_o, (B, C, n), written once; fold is (B, C, k)."""
    out = torch.empty_like(x)
    for sample, target, matrix in zip(x, out, fold, strict=True):
        for chunk in chunks(x, sum(weights.query.shape)):
            positions = widen(sample[:, chunk])
            queries = _softmax_queries(positions, weights, heads)
            branch = torch.addmm(weights.projection_bias[:, None], matrix, queries)
            target[:, chunk] = branch.add_(positions)
    return out


class _SoftmaxBlock(torch.autograd.Function):
    """Softmax on both sides, with the residual sum written in the same pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, heads: int, *tensors: Tensor) -> Tensor:
        weights = BlockWeights(*tensors).widened()
        kernels = _triton_for(x, weights, heads)
        context, lse = kernels.gather(x, weights.key) if kernels else _gather(x, weights.key)
        ctx.save_for_backward(x, context, lse, *tensors)
        ctx.heads = heads
        fold = _fold(context, weights, heads)
        if kernels:
            query, bias, offset = weights.query, weights.query_bias, weights.projection_bias
            return kernels.spread(x, query, bias, fold, offset, heads)
        return _spread(x, fold, weights, heads)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, context, lse, *tensors = ctx.saved_tensors
        weights = BlockWeights(*tensors).widened()
        leaves = [t.detach().requires_grad_() for t in (context, *weights)]
        with torch.enable_grad():
            fold = _fold(leaves[0], BlockWeights(*leaves[1:]), ctx.heads)  # (B, C, k)
        sums = BlockWeights(*(torch.zeros_like(t) for t in weights))
        grad_x = torch.empty_like(x)
        grad_fold = torch.stack(
            [
                _spread_backward(*sample, weights, ctx.heads, sums)
                for sample in zip(x, grads[0], grad_x, fold.detach(), strict=True)
            ]
        )
        through = torch.autograd.grad(fold, leaves, grad_fold, allow_unused=True)
        for total, part in zip(sums, through[1:], strict=True):
            if part is not None:
                total.add_(part)
        for sample in zip(x, grad_x, context, lse, through[0], strict=True):
            _gather_backward(*sample, weights.key, sums.key)
        return grad_x, None, *(g.to(t.dtype) for g, t in zip(sums, tensors, strict=True))


def _spread_backward(
    x: Tensor,
    grad: Tensor,
    grad_x: Tensor,
    fold: Tensor,
    weights: BlockWeights,
    heads: int,
    sums: BlockWeights,
) -> Tensor:
    """Backward of the second pass of one sample: fills grad_x, adds to sums, returns fold's."""
    grad_fold = torch.zeros_like(fold)
    for chunk in chunks(x, 2 * sum(weights.query.shape)):
        positions, arriving = widen(x[:, chunk]), widen(grad[:, chunk])  # (C, c)
        queries = _softmax_queries(positions, weights, heads)  # (k, c)
        grad_fold.addmm_(arriving, queries.T)
        pull = queries * (fold.T @ arriving)
        means = pull.unflatten(0, (heads, -1)).sum(dim=1, keepdim=True)
        grad_logits = pull - (queries.unflatten(0, (heads, -1)) * means).flatten(0, 1)
        sums.query.addmm_(grad_logits, positions.T)
        sums.query_bias.add_(grad_logits.sum(dim=1))
        sums.projection_bias.add_(arriving.sum(dim=1))
        grad_x[:, chunk] = torch.addmm(arriving, weights.query.T, grad_logits)
    return grad_fold


def _gather_backward(
    x: Tensor,
    grad_x: Tensor,
    context: Tensor,
    lse: Tensor,
    grad_context: Tensor,
    key: Tensor,
    grad_key: Tensor,
) -> None:
    """Backward of the first pass of one sample: adds to grad_x and grad_key."""
    means = (grad_context * context).sum(dim=1, keepdim=True)  # (k, 1)
    for chunk in chunks(x, 2 * sum(key.shape)):
        positions = widen(x[:, chunk])
        mass = (key @ positions).sub_(lse[:, None]).exp_()  # (k, c)
        grad_logits = (grad_context @ positions).sub_(means).mul_(mass)
        grad_key.addmm_(grad_logits, positions.T)
        step = torch.addmm(grad_context.T @ mass, key.T, grad_logits)
        grad_x[:, chunk] = step.add_(grad_x[:, chunk])


class _Moments(torch.autograd.Function):
    """Mean outer product of (x, 1) with itself: (B, C, n) to (B, C + 1, C + 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        batch, channels, positions = x.shape
        moments = widen(x.new_zeros(batch, channels + 1, channels + 1))
        for chunk in chunks(x, 2 * channels):
            part = widen(x[:, :, chunk])
            moments[:, :-1, :-1].baddbmm_(part, part.transpose(1, 2))
            moments[:, :-1, -1] += part.sum(dim=2)
        moments /= positions
        moments[:, -1, :-1] = moments[:, :-1, -1]
        moments[:, -1, -1] = 1
        return moments

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        symmetric = (grads[0] + grads[0].transpose(1, 2)) / x.shape[2]
        grad_x = torch.empty_like(x)
        for chunk in chunks(x, 2 * x.shape[1]):
            grad_x[:, :, chunk] = torch.baddbmm(
                symmetric[:, :-1, -1:], symmetric[:, :-1, :-1], widen(x[:, :, chunk])
            )
        return grad_x


def _linear_block(x: Tensor, weights: BlockWeights, heads: int, *, total: bool) -> Tensor:
    """The block with scaling by the number of positions, or (`total`) without normalisation.

    With a constant 1 appended to x, each convolution is one matrix, and so is the whole block once
    the mean outer product of x is known.
    """
    weights = weights.widened()
    queries, keys, values = (
        torch.cat([matrix, bias[:, None]], dim=1)  # (k or v, C + 1)
        for matrix, bias in zip(weights[0:6:2], weights[1:6:2], strict=True)
    )
    contexts = torch.einsum(
        "hkc,bcd,hvd->bhkv",
        keys.unflatten(0, (heads, -1)),
        _Moments.apply(x) * (x.shape[2] if total else 1),
        values.unflatten(0, (heads, -1)),
    )
    block = _project(contexts, weights, heads) @ queries  # (B, C, C + 1)
    constant = block[:, :, -1:] + weights.projection_bias[:, None]
    matrix, constant = block[:, :, :-1].to(x.dtype), constant.to(x.dtype)
    if x.stride(1) == 1:  # channels-last: the product keeps that order only the other way round
        return torch.baddbmm(x.mT, x.mT, matrix.mT).add_(constant.mT).mT
    return torch.baddbmm(x, matrix, x).add_(constant)
