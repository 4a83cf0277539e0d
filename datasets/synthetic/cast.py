"""Ray casting: which object each pixel sees, at what depth, and whether another view sees it too.

Each object is tried only with the rays that pass its box on the screen, so the cost grows with
what is drawn, not with objects times pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.outlines import covers
from datasets.synthetic.scene import Rig, Solid
from datasets.synthetic.shapes import first_hit
from datasets.synthetic.vectors import dot, unit

_NEAR = 1e-3
"""An object that reaches behind this depth has no box on the screen and is tried everywhere."""
_TOUCH = 1e-7
"""Share of the distance within which two surfaces touch rather than hide one another."""

Bounds = tuple[float, float, float, float]


@contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: on tensors as small as these, more threads wait on each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Body:
    """A solid made ready for casting: its tensors on the device."""

    def __init__(self, solid: Solid, device: torch.device | str) -> None:
        half = solid.half.copy()
        if solid.shape == "card":
            half[2] = 1.0  # its thickness is nought: any scale will do
        self.solid = solid
        self.flat = solid.shape == "card"
        self.to_unit = _tensor(solid.rotation.T / half[:, None], device)  # (3, 3)
        self.to_world = _tensor(solid.rotation / half[None, :], device)  # (3, 3), for normals
        self.centre = _tensor(solid.centre[:, None], device)  # (3, 1)
        self.half = _tensor(half[:, None], device)  # (3, 1)
        self.cuts = _tensor(solid.cuts, device)  # (F, 4)
        reach = half * np.array([1, 1, not self.flat])
        signs = np.array(list(product((-1, 1), repeat=3)))
        self.corners = solid.centre + (signs * reach) @ solid.rotation.T  # (8, 3)
        self.radius = float(np.linalg.norm(reach))

    def hit(self, origin: Tensor, direction: Tensor) -> Tensor:
        """(N,) parameters of the first hits of rays (3, 1 or N) + t (3, N); inf for a miss."""
        start, step = self.to_unit @ (origin - self.centre), self.to_unit @ direction
        t = first_hit(self.solid.shape, self.cuts, start, step)
        if not self.flat:
            return t
        x, y = start[0] + t * step[0], start[1] + t * step[1]
        return torch.where(covers(self.solid.outline, x, y), t, torch.inf)

    def bounds(self, rig: Rig, eye: float) -> Bounds:
        """Its box (x0, x1, y0, y1) in the pixels of the camera that stands at x = `eye`."""
        x, y, z = self.corners.T
        if z.min() < _NEAR:
            return -np.inf, np.inf, -np.inf, np.inf
        column = rig.focal * (x - eye) / z + rig.centre[0]
        row = rig.focal * y / z + rig.centre[1]
        return float(column.min()), float(column.max()), float(row.min()), float(row.max())


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float64, device=device)


@dataclass(frozen=True, eq=False)
class Rays:
    """Rays of one camera through the pixels (x, y), as positions, not necessarily whole ones.

    Directions have z = 1, so that the ray's parameter is the depth.
    """

    rig: Rig
    eye: float
    """Where the camera stands on the x axis."""
    x: Tensor
    """(N,) columns in pixels."""
    y: Tensor
    """(N,) rows in pixels."""
    is_grid: bool = False
    """True where the rays are those of all pixels, row by row."""

    @property
    def origin(self) -> Tensor:
        """(3, 1)."""
        return self.x.new_tensor([[self.eye], [0.0], [0.0]])

    @property
    def directions(self) -> Tensor:
        """(3, N)."""
        x = (self.x - self.rig.centre[0]) / self.rig.focal
        y = (self.y - self.rig.centre[1]) / self.rig.focal
        return torch.stack([x, y, torch.ones_like(x)])

    def within(self, bounds: Bounds) -> Tensor | slice:
        """The index of the rays inside `bounds`: all, of a grid without a look at each."""
        x0, x1, y0, y1 = bounds
        if np.isinf(x0):
            return slice(None)
        if not self.is_grid:
            inside = (self.x >= x0) & (self.x <= x1) & (self.y >= y0) & (self.y <= y1)
            return inside.nonzero()[:, 0]
        height, width = self.rig.size
        rows = _whole(y0, y1, height, self.x.device)
        columns = _whole(x0, x1, width, self.x.device)
        return (rows[:, None] * width + columns).flatten()


def _whole(first: float, last: float, size: int, device: torch.device) -> Tensor:
    """The whole numbers of [first, last] that are also in [0, size)."""
    start = int(np.clip(np.ceil(first), 0, size))
    stop = int(np.clip(np.floor(last) + 1, start, size))
    return torch.arange(start, stop, device=device)


def pixel_rays(rig: Rig, eye: float, device: torch.device | str) -> Rays:
    """The rays through the centres of all pixels, row by row."""
    height, width = rig.size
    y = torch.arange(height, dtype=torch.float64, device=device)
    x = torch.arange(width, dtype=torch.float64, device=device)
    return Rays(rig, eye, x.repeat(height), y.repeat_interleave(width), is_grid=True)


def nearest(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """What each ray meets first.

    Returns:
        The depth (N,) float64, infinite where nothing is met, and the number (N,) of the body,
        -1 where nothing is met.
    """
    origin, directions = rays.origin, rays.directions
    depth = torch.full_like(rays.x, torch.inf)
    number = torch.full_like(rays.x, -1, dtype=torch.int64)
    for k, body in enumerate(bodies):
        index = rays.within(body.bounds(rays.rig, rays.eye))
        if isinstance(index, Tensor) and not len(index):
            continue
        t, before = body.hit(origin, directions[:, index]), depth[index]
        closer = t < before
        depth[index] = torch.where(closer, t, before)
        number[index] = torch.where(closer, k, number[index])
    return depth, number


def occluded(
    bodies: Sequence[Body], rays: Rays, depth: Tensor, number: Tensor, away: Tensor, eye: float
) -> Tensor:
    """Which of the points seen along `rays` the camera at x = `eye` does not see.

    A point is hidden if it projects outside that camera's picture, if its own surface faces the
    other way there, or if another body stands between. Bodies are convex, so their own
    front never hides a point of them.

    Args:
        bodies: all bodies.
        rays: the N rays of the camera that saw the points.
        depth: (N,) depths of the points.
        number: (N,) bodies of the points.
        away: (N,) the dot product of surface normal and viewing direction at `eye` times that
            at the rays' own camera; negative where one sees the front and the other the back.
        eye: where the other camera stands on the x axis.

    Returns:
        (N,) booleans.
    """
    width = rays.rig.size[1]
    column = rays.x + rays.rig.focal * (rays.eye - eye) / depth
    # The outermost pixels reach half a pixel further than their centres.
    hidden = (column < -0.5) | (column > width - 0.5) | (away < 0)
    other = Rays(rays.rig, eye, column, rays.y)
    origin, directions = other.origin, other.directions
    limit = depth * (1 - _TOUCH)
    for k, body in enumerate(bodies):
        index = other.within(body.bounds(rays.rig, eye))
        if isinstance(index, slice):
            index = torch.arange(len(depth), device=depth.device)
        index = index[(number[index] != k) & ~hidden[index]]
        if len(index):
            hidden[index] = body.hit(origin, directions[:, index]) < limit[index]
    return hidden


def shaded(bodies: Sequence[Body], points: Tensor, number: Tensor, light: Tensor) -> Tensor:
    """Which of `points` (3, N) on the bodies `number` (N,) the light at (3, 1) does not reach."""
    towards = light - points
    heading = unit(towards)
    along, squared = dot(points, heading), dot(points, points)
    dark = torch.zeros_like(number, dtype=torch.bool)
    for k, body in enumerate(bodies):
        if not body.solid.casts_shadow:
            continue
        # Against the bounding sphere: position along the ray and distance from it.
        centre = body.centre[:, 0]
        offset = centre @ heading - along
        gap = squared - 2 * (centre @ points) + centre @ centre - offset.square()
        near = (gap <= body.radius**2) & (offset > -body.radius) & (number != k) & ~dark
        index = near.nonzero()[:, 0]
        if len(index):
            t = body.hit(points[:, index], towards[:, index])
            dark[index] = t < 1 - _TOUCH
    return dark
