"""Functions of a global summary, in two passes over the positions that keep only their input.

External, hydra and focused linear attention share one structure: every position adds to a small
summary, then every position is mapped with that summary. Here both passes run chunk by chunk, and
the backward recomputes each chunk, so that input, output and gradient are the only tensors of all
positions.

Shapes: B batch, C channels, n positions, c positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from ea_psmnet.ops.precision import full_precision, lean_backward, widen

_CHUNK_FLOATS = 2**19
"""Floats of one chunk's temporaries, which stay in the processor's cache."""

_MULTIPLE = 16
"""Positions of a chunk are a multiple of this, but for the last one's."""

Summarise = Callable[..., Tensor]
"""(x (B, C, c), *parameters) to the chunk's share of the summary, or its logarithm."""
Spread = Callable[..., Tensor]
"""(x (B, C, c), summary, *parameters) to the chunk's output (B, C', c)."""


def chunks(x: Tensor, rows: int) -> Iterator[slice]:
    """Slices of the last dimension of x, small enough for temporaries of `rows` rows."""
    if x.is_cuda:
        rows = max(1, rows // 16)  # GPUs hide latency with larger pieces, and have the memory
    step = max(256, _CHUNK_FLOATS // rows // _MULTIPLE * _MULTIPLE)
    return (slice(start, start + step) for start in range(0, x.shape[-1], step))


@full_precision
def streamed(
    x: Tensor,
    summarise: Summarise,
    spread: Spread,
    rows: int,
    *parameters: Tensor,
    logarithmic: bool = False,
) -> Tensor:
    """Equal to `spread(x, summarise(x, *parameters), *parameters)`, if the summary is a sum.

    Args:
        x: (B, C, n); chunks reach the two functions in float32 at least.
        summarise: Function that is a sum over positions.
        spread: Function whose output at a position depends on that position and the summary alone.
        rows: Approximate number of floats that the two need for temporaries at each position.
        parameters: Further inputs, which get gradients.
        logarithmic: The summary is the logarithm of a sum, as of `torch.logsumexp`.

    Returns:
        (B, C', n), of x's type.
    """
    if torch.compiler.is_exporting():  # graphs have no chunks
        wide = [widen(t) for t in (x, *parameters)]
        return spread(wide[0], summarise(*wide), *wide[1:]).to(x.dtype)
    return _Streamed.apply(x, (summarise, spread, rows, logarithmic), *parameters)


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, plan: tuple[Summarise, Spread, int, bool], *tensors: Tensor
    ) -> Tensor:
        summarise, spread, rows, logarithmic = plan
        wide = [widen(t) for t in tensors]
        parts = (summarise(widen(x[..., chunk]), *wide) for chunk in chunks(x, rows))
        summary = reduce(torch.logaddexp if logarithmic else torch.add, parts)
        ctx.save_for_backward(x, summary, *tensors)
        ctx.plan = plan
        out: Tensor | None = None
        for chunk in chunks(x, rows):
            piece = spread(widen(x[..., chunk]), summary, *wide)
            if out is None:
                out = x.new_empty(*piece.shape[:2], x.shape[2])
            out[..., chunk] = piece
        assert out is not None  # there is at least one position
        return out

    @staticmethod
    @lean_backward
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, summary, *tensors = ctx.saved_tensors
        summarise, spread, rows, logarithmic = ctx.plan
        wide = [widen(t).detach().requires_grad_() for t in tensors]
        sums = [torch.zeros_like(t) for t in (summary, *wide)]
        grad_x = torch.empty_like(x)
        for chunk in chunks(x, rows):
            leaf, total = _leaf(widen(x[..., chunk])), _leaf(summary)
            with torch.enable_grad():
                out = spread(leaf, total, *wide)
            grad_x[..., chunk] = _accumulate(out, leaf, [total, *wide], grads[0][..., chunk], sums)
        for chunk in chunks(x, rows):
            leaf = _leaf(widen(x[..., chunk]))
            with torch.enable_grad():
                part = summarise(leaf, *wide)
            share = (part.detach() - summary).exp() if logarithmic else 1
            grad_x[..., chunk] += _accumulate(part, leaf, wide, sums[0] * share, sums[1:])
        through = (g.to(t.dtype) for g, t in zip(sums[1:], tensors, strict=True))
        return grad_x, None, *through


def _leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_()


def _accumulate(
    out: Tensor, x: Tensor, others: list[Tensor], grad: Tensor, sums: list[Tensor]
) -> Tensor:
    """Gradient of x; those of the others are added to sums."""
    arriving = grad.to(out.dtype)
    own, *rest = torch.autograd.grad(out, [x, *others], arriving, allow_unused=True)
    for total, part in zip(sums, rest, strict=True):
        if part is not None:
            total += part
    return own
