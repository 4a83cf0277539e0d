"""The passes of the efficient-attention block in torch, chunk by chunk, with their backward.

`ea_psmnet.ops.triton` has the same passes as kernels for GPUs. The temporaries of a chunk are
allocated once and reused, because fresh memory for each chunk costs page faults. Their layout is
that of x, so that no matrix product has to transpose a matrix.

Shapes: B batch, C channels, h heads, k key channels over all heads, n positions, c positions of a
chunk, S chunks.

Exponentials over positions are powers of 2 of logits in units of log 2: on CPUs `exp` takes three
times as long, and thirty times where the result is denormal, which is common far from a peak.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ea_psmnet.ops.precision import widen
from ea_psmnet.ops.streaming import chunks

_VECTOR = 16
"""Floats of a vector register; a softmax over fewer adjacent values is slow."""

_BIT = math.log(2)
"""Unit of the logits."""


def gather(x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """The first pass: softmax over positions, times x.

    Args:
        x: (B, C, n) in any type, any strides.
        key: (k, C) in float32 or wider.

    Returns:
        Contexts (B, k, C) and log-sum-exps (B, k) of the logits key x, of key's type.
    """
    pieces = list(chunks(x, sum(key.shape)))
    highest, total = key.new_empty(2, x.shape[0], len(pieces), key.shape[0])
    context = key.new_empty(x.shape[0], len(pieces), *key.shape)
    (room,) = _scratch(x, key, [key.shape[0]], pieces, positions_first=_positions_first(x))
    bits = key / _BIT
    for sample, *sums in zip(x, highest, total, context, strict=True):
        for chunk, *piece in zip(pieces, *sums, strict=True):
            _gather_piece(widen(sample[:, chunk]), bits, room, *piece)
    return merge_pieces(highest.mul_(_BIT), total, context)


def _gather_piece(
    positions: Tensor, bits: Tensor, room: Tensor, highest: Tensor, total: Tensor, context: Tensor
) -> None:
    """Write maxima, sums and context of one chunk, relative to its own maximum, to base 2."""
    mass = torch.mm(bits, positions, out=room[:, : positions.shape[1]])  # (k, c)
    highest.copy_(_maxima(mass))
    mass.sub_(highest[:, None]).exp2_()
    torch.sum(mass, dim=1, out=total)
    torch.mm(mass, positions.T, out=context)


def _maxima(logits: Tensor) -> Tensor:
    """Maximum of each row of (k, c), in few passes if the rows of a position are neighbours.

    Torch's reduction over a dimension that is not the last in memory is slow for fewer than 64
    adjacent values.
    """
    rows, positions = logits.shape
    if logits.stride(0) != 1 or positions % _VECTOR:
        return logits.amax(dim=1)
    return logits.T.view(-1, _VECTOR * rows).amax(dim=0).view(_VECTOR, rows).amax(dim=0)


def merge_pieces(highest: Tensor, total: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    """Combine the sums of several pieces: online softmax (Milakov and Gimelshein, 2018).

    Args:
        highest: (B, S, k), maxima of the logits; -inf for a piece without positions.
        total: (B, S, k), sums of exponentials relative to the maxima.
        context: (B, S, k, C), sums of exponentials times x, relative to the maxima.

    Returns:
        Contexts (B, k, C) and log-sum-exps (B, k).
    """
    top = highest.amax(dim=1)  # (B, k)
    share = (highest - top[:, None]).exp()
    mass = (total * share).sum(dim=1)
    return (context * share[..., None]).sum(dim=1) / mass[..., None], top + mass.log()


def spread(
    x: Tensor, query: Tensor, bias: Tensor, fold: Tensor, offset: Tensor, heads: int
) -> Tensor:
    """The second pass: x + fold softmax(query x + bias) + offset.

    Args:
        x: (B, C, n) in any type, any strides.
        query: (k, C); the softmax runs over each head's k / heads channels.
        bias: (k,).
        fold: (B, C, k).
        offset: (C,).
        heads: divides k.

    Returns:
        (B, C, n) of x's type and strides.
    """
    out = torch.empty_like(x)
    pieces = list(chunks(x, sum(query.shape)))
    room = _query_room(x, query, heads, pieces)
    (wide,) = _scratch(x, query, [x.shape[1]], pieces, positions_first=_positions_first(x))
    fold = fold + offset[:, None] / heads  # every head's queries sum to one
    for sample, target, matrix in zip(x, out, fold, strict=True):
        for chunk in pieces:
            positions = widen(sample[:, chunk])  # (C, c)
            queries, _ = _softmax_queries(positions, query, bias, heads, room)
            place = target[:, chunk]
            through = place if place.dtype == wide.dtype else wide[:, : place.shape[1]]
            torch.addmm(positions, matrix, queries, out=through)
            if through is not place:
                place.copy_(through)
    return out


def spread_backward(
    x: Tensor, grad: Tensor, grad_x: Tensor, query: Tensor, bias: Tensor, fold: Tensor, heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backward of `spread`: fills grad_x, (B, C, n), from the arriving grad.

    Returns:
        Gradients of query, bias, fold and offset.
    """
    grad_query, grad_bias = torch.zeros_like(query), torch.zeros_like(bias)
    grad_fold, grad_offset = torch.zeros_like(fold), fold.new_zeros(fold.shape[1])
    pieces = list(chunks(x, sum(query.shape)))
    room = _query_room(x, query, heads, pieces)
    for sample, arriving, target, matrix, part in zip(
        x, grad, grad_x, fold, grad_fold, strict=True
    ):
        sums = grad_query, grad_bias, part, grad_offset
        for chunk in pieces:
            pair = widen(sample[:, chunk]), widen(arriving[:, chunk])  # (C, c) each
            with _wide(target[:, chunk]) as place:
                _spread_piece_backward(*pair, place, query, bias, matrix, heads, room, sums)
    return grad_query, grad_bias, grad_fold, grad_offset


def _spread_piece_backward(
    positions: Tensor,
    arriving: Tensor,
    place: Tensor,
    query: Tensor,
    bias: Tensor,
    fold: Tensor,
    heads: int,
    room: tuple[Tensor, Tensor],
    sums: tuple[Tensor, ...],
) -> None:
    """One chunk: fills its part of grad_x and adds to the sums of `spread_backward`."""
    grad_query, grad_bias, grad_fold, grad_offset = sums
    queries, free = _softmax_queries(positions, query, bias, heads, room)
    grad_fold.addmm_(arriving, queries.T)
    pull = torch.mm(fold.T, arriving, out=free).mul_(queries)  # (k, c)
    by_head = pull.unflatten(0, (heads, -1))
    means = by_head.sum(dim=1, keepdim=True)
    by_head.addcmul_(queries.unflatten(0, (heads, -1)), means, value=-1)  # of the logits, in pull
    grad_query.addmm_(pull, positions.T)
    grad_bias.add_(pull.sum(dim=1))
    grad_offset.add_(arriving.sum(dim=1))
    place.copy_(arriving)
    place.addmm_(query.T, pull)


def gather_backward(
    x: Tensor, grad_x: Tensor, key: Tensor, context: Tensor, lse: Tensor, grad_context: Tensor
) -> Tensor:
    """Backward of `gather` from its results and the contexts' gradient: adds to grad_x.

    Returns:
        Gradient of key.
    """
    keys = key.shape[0]
    grad_key = torch.zeros_like(key)
    pieces = list(chunks(x, sum(key.shape)))
    (room,) = _scratch(x, key, [2 * keys], pieces, positions_first=_positions_first(x))
    means = (grad_context * context).sum(dim=2)  # (B, k)
    for sample, target, arriving, *shift in zip(x, grad_x, grad_context, lse, means, strict=True):
        there = torch.cat([key / _BIT, arriving])  # (2k, C)
        back = torch.cat([arriving, key]).T  # (C, 2k)
        below = torch.cat([shift[0] / _BIT, shift[1]])[:, None]  # (2k, 1)
        for chunk in pieces:
            positions = widen(sample[:, chunk])  # (C, c)
            both = torch.mm(there, positions, out=room[:, : positions.shape[1]]).sub_(below)
            mass = both[:keys].exp2_()  # (k, c)
            grad_logits = both[keys:].mul_(mass)
            grad_key.addmm_(grad_logits, positions.T)
            with _wide(target[:, chunk]) as place:
                place.addmm_(back, both)
    return grad_key


# Temporaries --------------------------------------------------------------------------------------


def _positions_first(x: Tensor) -> bool:
    """Whether a position's channels are neighbours in memory, as in channels-last order."""
    return x.stride(1) == 1


def _scratch(
    x: Tensor, like: Tensor, rows: list[int], pieces: list[slice], *, positions_first: bool
) -> list[Tensor]:
    """Matrices (rows, positions of the longest chunk), uninitialised, of `like`'s type."""
    longest = min(pieces[0].stop, x.shape[2])
    if positions_first:
        return [like.new_empty(longest, count).T for count in rows]
    return [like.new_empty(count, longest) for count in rows]


def _query_room(x: Tensor, query: Tensor, heads: int, pieces: list[slice]) -> tuple[Tensor, Tensor]:
    """Two (k, c) matrices for `_softmax_queries`."""
    keys = query.shape[0]
    positions_first = _positions_first(x) and keys // heads >= _VECTOR
    first, second = _scratch(x, query, [keys, keys], pieces, positions_first=positions_first)
    return first, second


def _softmax_queries(
    positions: Tensor, query: Tensor, bias: Tensor, heads: int, room: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """(C, c) positions to (k, c) queries, normalised over each head's channels.

    Returns:
        The queries in the second half of the room, and the first, free again.
    """
    logits, queries = (half[:, : positions.shape[1]] for half in room)
    torch.mm(query, positions, out=logits).add_(bias[:, None])
    source, target = (t.unflatten(0, (heads, -1)) for t in (logits, queries))  # (h, k/h, c)
    if logits.stride(0) == 1:  # the kernel for a last dimension, on what is last in memory
        torch.softmax(source.permute(2, 0, 1), dim=2, out=target.permute(2, 0, 1))
    else:
        torch.softmax(source, dim=1, out=target)
    return queries, logits


@contextmanager
def _wide(target: Tensor) -> Iterator[Tensor]:
    """The target itself, or for half precision a float32 copy that is written back."""
    wide = widen(target)
    yield wide
    if wide is not target:
        target.copy_(wide)
