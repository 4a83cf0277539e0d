"""Rays of a camera, and quick ways to leave out those that cannot meet a body.

Rays that are not all pixels of a picture are looked at in blocks of neighbours: a whole block is
left out at once where its bounds and the body's do not meet.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.scene import Array, Rig

BLOCK = 64
"""Rays a block."""
_TILE = 8
"""Rows and columns of the pixels that `neighbours_first` keeps together."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on tensors as small as these, more threads wait on each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays of one camera through the pixels (x, y), as positions, not necessarily whole ones.

    Directions have z = 1, so that the ray's parameter is the depth.
    """

    rig: Rig
    eye: float
    """Where the camera stands on the x axis."""
    x: Tensor
    """(N,) float32 columns in pixels."""
    y: Tensor
    """(N,) float32 rows in pixels."""

    @property
    def origin(self) -> Tensor:
        """(3, 1)."""
        return self.x.new_tensor([[self.eye], [0.0], [0.0]])

    @cached_property
    def directions(self) -> Tensor:
        """(3, N)."""
        x = (self.x - self.rig.centre[0]) / self.rig.focal
        y = (self.y - self.rig.centre[1]) / self.rig.focal
        return torch.stack([x, y, torch.ones_like(x)])

    def part(self, index: Tensor) -> Rays:
        """The rays of these numbers."""
        return Rays(
            self.rig, self.eye, self.x.index_select(0, index), self.y.index_select(0, index)
        )

    def near(self, bounds: Array) -> Tensor:
        """(K, B) which blocks of the rays may pass which of the bounds (K, 8)."""
        (left, right), (top, bottom) = (blocks(v).aminmax(dim=1) for v in (self.x, self.y))
        x0, x1, y0, y1, nx, ny, first, last = self.x.new_tensor(bounds).T[:, :, None]  # (K, 1)
        in_box = (right >= x0) & (left <= x1) & (bottom >= y0) & (top <= y1)
        across = nx * ((left + right) / 2) + ny * ((top + bottom) / 2)
        reach = nx.abs() * ((right - left) / 2) + ny.abs() * ((bottom - top) / 2)
        return in_box & (across + reach >= first) & (across - reach <= last)


def pixel_rays(rig: Rig, eye: float, device: torch.device | str) -> Rays:
    """The rays through the centres of all pixels, row by row."""
    height, width = rig.size
    y = torch.arange(height, dtype=torch.float32, device=device)
    x = torch.arange(width, dtype=torch.float32, device=device)
    return Rays(rig, eye, x.repeat(height), y.repeat_interleave(width))


def pixels(bounds: Array, size: tuple[int, int]) -> tuple[slice, slice]:
    """Rows and columns of the pixels whose centres are inside the box of the bounds (8,)."""
    height, width = size
    x0, x1, y0, y1 = bounds[:4]
    return _whole(y0, y1, height), _whole(x0, x1, width)


def _whole(first: float, last: float, size: int) -> slice:
    """The whole numbers of [first, last] that are also in [0, size)."""
    start = int(np.clip(np.ceil(first), 0, size))
    return slice(start, int(np.clip(np.floor(last) + 1, start, size)))


def neighbours_first(rays: Rays, number: Tensor) -> Tensor:
    """(M,) numbers of the rays that met a body, sorted by body, then by where they are.

    The points of one body then are a slice, and those of a block close together.

    Args:
        rays: N rays.
        number: (N,) bodies that they met; below 0 for none.
    """
    across = rays.rig.size[1] // _TILE + 2
    tile = (rays.y / _TILE).to(torch.int32) * across + (rays.x / _TILE).to(torch.int32)
    tiles = (rays.rig.size[0] // _TILE + 2) * across
    order = (number.to(torch.int32) * tiles + tile).argsort(stable=True)
    return order[int((number < 0).sum()) :]


def blocks(values: Tensor) -> Tensor:
    """(..., N) as (..., B, BLOCK); the last value fills the last block."""
    short = -values.shape[-1] % BLOCK
    if short:
        filling = values[..., -1:].expand(*values.shape[:-1], short)
        values = torch.cat([values, filling], -1)
    return values.unflatten(-1, (-1, BLOCK))


def others(chosen: Tensor, number: Tensor, convex: Tensor) -> Tensor:
    """`chosen` (K, B) without the blocks that lie on the row's body alone, where it is convex.

    Args:
        chosen: (K, B) blocks of points that are looked at for each body.
        number: (N,) bodies of the points.
        convex: (K,) bodies that never come between their own points and anything.
    """
    low, high = blocks(number).aminmax(dim=1)
    row = torch.arange(len(chosen), device=number.device)[:, None]
    return chosen & ((low != row) | (high != row) | ~convex[:, None])


def members(chosen: Tensor) -> list[Tensor]:
    """For each row of `chosen` (K, B) the numbers of the blocks it chooses."""
    return list(chosen.nonzero()[:, 1].split(chosen.sum(1).tolist()))
