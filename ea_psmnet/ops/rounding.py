"""Convolution kernels in a narrower type whose rounding errors cancel between neighbouring taps."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["round_kernel"]


def round_kernel(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A kernel (O, C, *taps) in a narrower type: each tap takes over the error of the one before.

    Neighbouring taps see neighbouring positions, which differ little, so that what counts is how
    far the sum over taps is off: half a unit of one tap instead of a random sum over all (error
    diffusion, as Floyd and Steinberg do to an image's grey values). Taps are walked row by row, to
    and fro, so that the next one is always a neighbour.
    """
    taps = weight.flatten(2)  # (O, C, taps)
    rounded = torch.empty_like(taps, dtype=dtype)
    error = torch.zeros_like(taps[..., 0])
    for tap in _walk(weight.shape[2:]):
        wanted = taps[..., tap] + error
        rounded[..., tap] = wanted
        error = wanted - rounded[..., tap].to(error.dtype)
    return rounded.view_as(weight)


def _walk(size: torch.Size) -> list[int]:
    """Numbers of a grid's places in an order in which each is the neighbour of the one before."""
    path = [0]
    for length in size:
        rows = [[place * length + step for step in range(length)] for place in path]
        path = [at for index, row in enumerate(rows) for at in (row[::-1] if index % 2 else row)]
    return path
