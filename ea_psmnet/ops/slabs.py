"""Two 3x3x3 convolutions over a volume, some disparities at a time, for inference.

What lies between them never exists as a whole: a volume less in memory, and its activation and the
sums behind happen while a slab is in the processor's cache. Nothing is computed twice.

Shapes: B batch, C channels, K disparities, h and w of the features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ea_psmnet.ops.score_conv import add_taps, score_taps

__all__ = ["Convolve", "convolve_in_place", "residual_in_place", "score_in_slabs"]

_SLAB_BYTES = 2**23
"""Of what lies between: it stays in the processor's cache."""

_LEAST = 4
"""Disparities of a slab: a tile of Winograd's."""

Convolve = Callable[[Tensor], Tensor]
"""A 3x3x3 convolution of (1, C, k + 2, h, w) to (1, O, k, h, w): padded in rows and columns."""


def convolve_in_place(volume: Tensor, convolve: Convolve) -> Tensor:
    """Overwrite a volume (B, C, K, h, w) with its convolution to as many channels."""
    border = _border(volume)
    for sample in volume.split(1):
        before, depth = border, sample.shape[2]
        for start, stop in _slabs(sample):
            behind = [border] if stop == depth else []
            seen = _join([before, sample[:, :, start : stop + 1], *behind])
            before = sample[:, :, stop - 1 : stop].clone()
            sample[:, :, start:stop] = convolve(seen)
    return volume


def residual_in_place(volume: Tensor, first: Convolve, second: Convolve) -> Tensor:
    """Add to a volume (B, C, K, h, w) the second convolution of what the first one makes.

    A disparity is overwritten once all that needs it is computed.
    """
    border = _border(volume)
    for sample in volume.split(1):
        window, done = border, 0
        for start, hidden in _hidden_slabs(sample, first):
            behind = [border] if start + hidden.shape[2] == sample.shape[2] else []
            window = _join([window[:, :, -2:], hidden, *behind])
            added = second(window)
            sample[:, :, done : done + added.shape[2]] += added
            done += added.shape[2]
    return volume


def score_in_slabs(volume: Tensor, first: Convolve, weight: Tensor) -> Tensor:
    """The score of what a convolution makes.

    Args:
        volume: (B, C, K, h, w).
        first: C to O channels, with the activation behind it.
        weight: (1, O, 3, 3, 3), of the padded convolution to one channel.

    Returns:
        (B, 1, K, h, w) in float32 at least.
    """
    score = volume.new_zeros(
        volume.shape[0], *volume.shape[2:], dtype=torch.promote_types(volume.dtype, torch.float32)
    )
    for sample, total in zip(volume.split(1), score.split(1), strict=True):
        for start, hidden in _hidden_slabs(sample, first):
            add_taps(total, score_taps(hidden, weight), start)
    return score.unsqueeze(1)


def _hidden_slabs(volume: Tensor, convolve: Convolve) -> Iterator[tuple[int, Tensor]]:
    """A volume (1, C, K, h, w) convolved, some disparities at a time, and the first of each."""
    border, depth = _border(volume), volume.shape[2]
    for start, stop in _slabs(volume):
        before, behind = [border] * (start == 0), [border] * (stop == depth)
        inside = volume[:, :, max(start - 1, 0) : stop + 1]
        seen = _join([*before, inside, *behind]) if before or behind else inside
        yield start, convolve(seen)


def _slabs(volume: Tensor) -> Iterator[tuple[int, int]]:
    """First disparities of (1, C, K, h, w), and behind the last, of slabs."""
    depth = volume.shape[2]
    bytes_each = volume[:, :, 0].numel() * volume.element_size()
    step = max(_LEAST, _SLAB_BYTES // bytes_each // _LEAST * _LEAST)
    for start in range(0, depth, step):
        yield start, min(start + step, depth)


def _border(volume: Tensor) -> Tensor:
    """What lies beyond a volume's disparities: (1, C, 1, h, w) of zeros."""
    return volume.new_zeros(1, volume.shape[1], 1, *volume.shape[3:])


def _join(parts: list[Tensor]) -> Tensor:
    """Parts of a volume put together by disparity, channels-last as convolutions want it."""
    return torch.cat([part.movedim(1, -1) for part in parts], dim=1).movedim(-1, 1)
