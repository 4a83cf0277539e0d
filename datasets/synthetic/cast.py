"""Ray casting: the object and depth that each pixel sees, occlusion between views, and shadows.

Each object is intersected only with the rays that pass its bounds on the screen, so the cost grows
with the area drawn rather than with objects times pixels. Rays that do not form a full image are
handled in blocks of neighbours: a block is skipped if its bounds and those of the object are
disjoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ea_psmnet.datasets.synthetic.body import TOUCH, Body, screen_bounds
from ea_psmnet.datasets.synthetic.scene import Array, Rig

BLOCK = 64
"""Number of rays in a block."""
_TILE = 8
"""Side of the tiles of pixels that `neighbours_first` keeps together."""


@contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread, which is faster for tensors as small as these."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays of a camera through image positions (x, y), which need not be pixel centres.

    Directions have z = 1, so that the parameter of a ray is the depth.
    """

    rig: Rig
    eye: float
    """Position of the camera on the x axis."""
    x: Tensor
    """(N,) float32 columns in pixels."""
    y: Tensor
    """(N,) float32 rows in pixels."""

    @property
    def origin(self) -> Tensor:
        """(3, 1) position of the camera."""
        return self.x.new_tensor([[self.eye], [0.0], [0.0]])

    @cached_property
    def directions(self) -> Tensor:
        """(3, N) directions with z = 1."""
        x = (self.x - self.rig.centre[0]) / self.rig.focal
        y = (self.y - self.rig.centre[1]) / self.rig.focal
        return torch.stack([x, y, torch.ones_like(x)])

    def part(self, index: Tensor) -> Rays:
        """Return the rays with these indices."""
        return Rays(
            self.rig, self.eye, self.x.index_select(0, index), self.y.index_select(0, index)
        )

    def near(self, bounds: Array) -> Tensor:
        """Return (K, B) whether blocks of the rays may pass the bounds (K, 8) of bodies."""
        (left, right), (top, bottom) = (blocks(v).aminmax(dim=1) for v in (self.x, self.y))
        x0, x1, y0, y1, nx, ny, first, last = self.x.new_tensor(bounds).T[:, :, None]  # (K, 1)
        in_box = (right >= x0) & (left <= x1) & (bottom >= y0) & (top <= y1)
        across = nx * ((left + right) / 2) + ny * ((top + bottom) / 2)
        reach = nx.abs() * ((right - left) / 2) + ny.abs() * ((bottom - top) / 2)
        return in_box & (across + reach >= first) & (across - reach <= last)


def pixel_rays(rig: Rig, eye: float, device: torch.device | str) -> Rays:
    """Return the rays through the centres of all pixels, row by row."""
    height, width = rig.size
    y = torch.arange(height, dtype=torch.float32, device=device)
    x = torch.arange(width, dtype=torch.float32, device=device)
    return Rays(rig, eye, x.repeat(height), y.repeat_interleave(width))


def pixels(bounds: Array, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return rows and columns of the pixels whose centres are in the box of the bounds (8,)."""
    height, width = size
    x0, x1, y0, y1 = bounds[:4]
    return _whole(y0, y1, height), _whole(x0, x1, width)


def _whole(first: float, last: float, size: int) -> slice:
    """Return the integers in [first, last] that are also in [0, size)."""
    start = int(np.clip(np.ceil(first), 0, size))
    return slice(start, int(np.clip(np.floor(last) + 1, start, size)))


def neighbours_first(rays: Rays, number: Tensor) -> Tensor:
    """Return (M,) indices of the rays that hit a body, sorted by body, then by tile of the image.

    The points of a body are then a slice, and those of a block are close together.

    Args:
        rays: N rays.
        number: (N,) index of the body hit; below 0 for none.
    """
    across = rays.rig.size[1] // _TILE + 2
    tile = (rays.y / _TILE).to(torch.int32) * across + (rays.x / _TILE).to(torch.int32)
    tiles = (rays.rig.size[0] // _TILE + 2) * across
    order = (number.to(torch.int32) * tiles + tile).argsort(stable=True)
    return order[int((number < 0).sum()) :]


def blocks(values: Tensor) -> Tensor:
    """Reshape (..., N) to (..., B, BLOCK), padding the last block with the last value."""
    short = -values.shape[-1] % BLOCK
    if short:
        filling = values[..., -1:].expand(*values.shape[:-1], short)
        values = torch.cat([values, filling], -1)
    return values.unflatten(-1, (-1, BLOCK))


def others(chosen: Tensor, number: Tensor, convex: Tensor) -> Tensor:
    """Remove from `chosen` (K, B) the blocks with points of the row's own convex body only.

    Args:
        chosen: (K, B) blocks of points to try for each body.
        number: (N,) index of the body of each point.
        convex: (K,) whether a body is convex and so never occludes its own points.
    """
    low, high = blocks(number).aminmax(dim=1)
    row = torch.arange(len(chosen), device=number.device)[:, None]
    return chosen & ((low != row) | (high != row) | ~convex[:, None])


def members(chosen: Tensor) -> list[Tensor]:
    """Return the indices of the chosen blocks for each row of `chosen` (K, B)."""
    return list(chosen.nonzero()[:, 1].split(chosen.sum(1).tolist()))


_SLACK = 1.01
"""Factor on the size of bodies that covers rounding errors of float32."""
_FAR_SLACK = 1e-5
"""Rounding error of float32 far away, as a share of the distance."""


def nearest_on_grid(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """Return the same as `nearest` for the rays of all pixels, row by row; faster."""
    size = rays.rig.size
    directions = rays.directions.view(3, *size)
    depth = torch.full_like(directions[0], torch.inf)
    number = torch.full_like(directions[0], -1, dtype=torch.int32)
    for k, bounds in enumerate(screen_bounds(bodies, rays.rig, rays.eye)):
        rows, columns = pixels(bounds, size)
        through = directions[:, rows, columns]
        if not through.numel():
            continue
        t = bodies[k].seen(rays.eye, through.flatten(1)).view(through.shape[1:])
        before = depth[rows, columns]
        number[rows, columns].masked_fill_(t < before, k)
        torch.minimum(t, before, out=before)
    return depth.flatten(), number.flatten()


def nearest(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """Find the first body that each ray hits.

    Returns:
        Depth (N,), infinite for a miss, and index (N,) of the body, -1 for a miss.
    """
    directions = blocks(rays.directions)  # (3, B, BLOCK)
    depth = torch.full_like(directions[0], torch.inf)
    number = torch.full_like(directions[0], -1, dtype=torch.int32)
    near = rays.near(screen_bounds(bodies, rays.rig, rays.eye))
    for k, body, chosen in _tries(bodies, near):
        t = _tried(body, rays.eye, directions, chosen)
        before = depth.index_select(0, chosen)
        closer = number.index_select(0, chosen).masked_fill_(t < before, k)
        number.index_copy_(0, chosen, closer)
        depth.index_copy_(0, chosen, torch.minimum(t, before))
    return depth.flatten()[: len(rays.x)], number.flatten()[: len(rays.x)]


def _tries(bodies: Sequence[Body], near: Tensor) -> Iterator[tuple[int, Body, Tensor]]:
    """Yield index, body and chosen blocks of rays (C,) for each body with blocks in `near`."""
    for k, (body, chosen) in enumerate(zip(bodies, members(near), strict=True)):
        if chosen.numel():
            yield k, body, chosen


def _tried(body: Body, eye: float, directions: Tensor, chosen: Tensor) -> Tensor:
    """Return (C, BLOCK) parameters at which the rays of the chosen blocks hit the body."""
    through = directions.index_select(1, chosen)
    return body.seen(eye, through.flatten(1)).view(-1, BLOCK)


def occluded(
    bodies: Sequence[Body], rays: Rays, depth: Tensor, number: Tensor, away: Tensor, eye: float
) -> Tensor:
    """Return which of the points seen along `rays` are occluded for the camera at x = `eye`.

    A point is occluded if it projects outside the image, if its surface faces away, or if another
    body is in between. The front of a convex body never occludes its own points; that of a mesh
    may, and also occludes its surfaces that face away.

    Args:
        bodies: All bodies.
        rays: The N rays of the camera that saw the points.
        depth: (N,) depths of the points.
        number: (N,) index of the body of each point.
        away: (N,) dot product of surface normal and viewing direction at `eye`; negative if that
            camera sees the back of the surface.
        eye: Position of the other camera on the x axis.

    Returns:
        (N,) booleans.
    """
    width = rays.rig.size[1]
    column = rays.x + rays.rig.focal * (rays.eye - eye) / depth
    # The outermost pixels extend half a pixel beyond their centres.
    hidden = (column < -0.5) | (column > width - 0.5)
    convex = _convex(bodies, number)
    hidden |= (away < 0) & convex.index_select(0, number)
    other = Rays(rays.rig, eye, column, rays.y)
    camera = depth.new_tensor([[eye], [0.0], [0.0]])
    between = _between(bodies, rays.origin + depth * rays.directions, camera)
    near = others(between & other.near(screen_bounds(bodies, rays.rig, eye)), number, convex)
    near &= ~blocks(hidden).all(1)
    directions, limit = blocks(other.directions), blocks(depth * (1 - TOUCH))
    depth, number, found = blocks(depth), blocks(number), blocks(hidden).clone()
    for k, body, chosen in _tries(bodies, near):
        t = _tried(body, eye, directions, chosen)
        hides = number.index_select(0, chosen) != k
        if body.own < np.inf:
            hides |= t < depth.index_select(0, chosen) - body.own
        hides &= t < limit.index_select(0, chosen)
        found.index_copy_(0, chosen, found.index_select(0, chosen) | hides)
    return found.flatten()[: len(hidden)]


def _convex(bodies: Sequence[Body], number: Tensor) -> Tensor:
    """Return (K,) whether bodies are convex, on the device of `number`."""
    return number.new_tensor([np.isinf(body.own) for body in bodies], dtype=torch.bool)


def shaded(
    bodies: Sequence[Body], points: Tensor, number: Tensor, wanted: Tensor, light: Tensor
) -> Tensor:
    """Return which points are in the shadow of a light.

    Args:
        bodies: All bodies.
        points: (3, N) positions.
        number: (N,) index of the body of each point.
        wanted: (N,) points to compute; the result is arbitrary for others.
        light: (3, 1) position of the light.

    Returns:
        (N,) booleans.
    """
    dark = torch.zeros_like(blocks(wanted))
    if not len(wanted):
        return dark.flatten()
    between = _between(bodies, points, light) & blocks(wanted).any(1)
    casts = number.new_tensor([b.solid.casts_shadow for b in bodies], dtype=torch.bool)
    between = others(between & casts[:, None], number, _convex(bodies, number))
    points, numbers = blocks(points), blocks(number)
    for k, body, chosen in _tries(bodies, between):
        hit = body.shades(points.index_select(1, chosen).flatten(1), light).view(-1, BLOCK)
        if np.isinf(body.own):
            hit &= numbers.index_select(0, chosen) != k
        dark.index_copy_(0, chosen, dark.index_select(0, chosen) | hit)
    return dark.flatten()[: len(wanted)]


def _between(bodies: Sequence[Body], points: Tensor, goal: Tensor) -> Tensor:
    """Return (K, B) whether a body may be between the goal (3, 1) and a point of a block.

    Lines from the points of a block to the goal are no further from the line of the block's centre
    than the points are from the centre. So that line must hit the body's box enlarged by as much.
    """
    low, high = blocks(points).aminmax(dim=2)  # (3, B)
    to_unit = torch.cat([body.to_unit for body in bodies])  # (3 K, 3)
    centre = torch.cat([body.to_unit @ body.centre for body in bodies])  # (3 K, 1)
    start = to_unit @ ((low + high) / 2) - centre
    step = to_unit @ goal - centre - start
    size = points.new_tensor([[1, 1, not body.flat] for body in bodies]).flatten()[:, None]
    reach = _SLACK * (size + to_unit.abs() @ ((high - low) / 2)) + _FAR_SLACK * start.abs()
    inverse = step.reciprocal()
    middle, half = -start * inverse, reach * inverse.abs()
    enter = (middle - half).unflatten(0, (-1, 3)).amax(1)  # (K, B)
    leave = (middle + half).unflatten(0, (-1, 3)).amin(1)
    # NaN, as along a side of the box, counts as a hit.
    return ~((enter > leave) | (enter > 1) | (leave < 0))
