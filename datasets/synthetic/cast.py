"""Ray casting: which object each pixel sees, at what depth, and whether another view sees it too.

Each object is tried only with the rays that pass its box on the screen, so the cost grows with
what is drawn, not with objects times pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.outlines import covers
from datasets.synthetic.rays import Bounds, Rays, blocks, members, others, pixels
from datasets.synthetic.scene import Rig, Solid
from datasets.synthetic.shapes import first_hit
from datasets.synthetic.vectors import dot

_NEAR = 1e-3
"""An object that reaches behind this depth has no box on the screen and is tried everywhere."""
_TOUCH = 1e-5
"""Share of the distance within which two surfaces touch rather than hide one another."""
_SLACK = 1.01
"""Factor on the size of bounding spheres, which float32 may place a little aside."""


class Body:
    """A solid made ready for casting: its tensors on the device.

    What is small is worked out in float64; the many rays are float32.
    """

    def __init__(self, solid: Solid, device: torch.device | str) -> None:
        half = solid.half.copy()
        if solid.shape == "card":
            half[2] = 1.0  # its thickness is nought: any scale will do
        self.solid = solid
        self.flat = solid.shape == "card"
        self._to_unit = solid.rotation.T / half[:, None]
        self.to_unit = _tensor(self._to_unit, device)  # (3, 3)
        self.to_world = _tensor(solid.rotation / half[None, :], device)  # (3, 3), for normals
        self.centre = _tensor(solid.centre[:, None], device)  # (3, 1)
        self.half = _tensor(half[:, None], device)  # (3, 1)
        self.cuts = _tensor(solid.cuts, device)  # (F, 4)
        reach = half * np.array([1, 1, not self.flat])
        signs = np.array(list(product((-1, 1), repeat=3)))
        self.corners = solid.centre + (signs * reach) @ solid.rotation.T  # (8, 3)
        self.radius = float(np.linalg.norm(reach))
        self._eyes: dict[float, Tensor] = {}

    def seen(self, eye: float, directions: Tensor) -> Tensor:
        """(N,) parameters at which rays (3, N) from x = `eye` first hit it; inf for a miss."""
        if eye not in self._eyes:
            start = self._to_unit @ (np.array([eye, 0.0, 0.0]) - self.solid.centre)
            self._eyes[eye] = _tensor(start[:, None], directions.device)  # (3, 1)
        return self._hit(self._eyes[eye], self.to_unit @ directions)

    def met(self, points: Tensor, goal: Tensor) -> Tensor:
        """(N,) shares of the ways from points (3, N) to (3, 1) at which they first hit it."""
        start = self.to_unit @ (points - self.centre)
        return self._hit(start, self.to_unit @ (goal - self.centre) - start)

    def _hit(self, start: Tensor, step: Tensor) -> Tensor:
        t = first_hit(self.solid.shape, self.cuts, start, step)
        if not self.flat:
            return t
        x, y = start[0] + t * step[0], start[1] + t * step[1]
        return torch.where(covers(self.solid.outline, x, y), t, torch.inf)

    def bounds(self, rig: Rig, eye: float) -> Bounds:
        """Its box on the screen of the camera that stands at x = `eye`."""
        x, y, z = self.corners.T
        if z.min() < _NEAR:
            return -np.inf, np.inf, -np.inf, np.inf
        column = rig.focal * (x - eye) / z + rig.centre[0]
        row = rig.focal * y / z + rig.centre[1]
        return float(column.min()), float(column.max()), float(row.min()), float(row.max())


def _tensor(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=device)


def nearest_on_grid(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """What the rays of all pixels, row by row, meet first: as `nearest`, and faster."""
    size = rays.rig.size
    directions = rays.directions.view(3, *size)
    depth = torch.full_like(directions[0], torch.inf)
    number = torch.full_like(directions[0], -1, dtype=torch.int64)
    for k, body in enumerate(bodies):
        rows, columns = pixels(body.bounds(rays.rig, rays.eye), size)
        through = directions[:, rows, columns]
        if not through.numel():
            continue
        t = body.seen(rays.eye, through.flatten(1)).view(through.shape[1:])
        before = depth[rows, columns]
        number[rows, columns].masked_fill_(t < before, k)
        torch.minimum(t, before, out=before)
    return depth.flatten(), number.flatten()


def nearest(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """What each ray meets first.

    Returns:
        The depth (N,), infinite where nothing is met, and the number (N,) of the body,
        -1 where nothing is met.
    """
    depth = torch.full_like(rays.x, torch.inf)
    number = torch.full_like(rays.x, -1, dtype=torch.int64)
    near = rays.near([body.bounds(rays.rig, rays.eye) for body in bodies])
    for k, (body, index) in enumerate(zip(bodies, members(near, len(depth)), strict=True)):
        if len(index):
            t = body.seen(rays.eye, rays.directions[:, index])
            closer = (t < depth[index]).nonzero()[:, 0]
            index = index[closer]
            depth[index], number[index] = t[closer], k
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
    limit = depth * (1 - _TOUCH)
    near = others(other.near([body.bounds(rays.rig, eye) for body in bodies]), number)
    for k, (body, index) in enumerate(zip(bodies, members(near, len(depth)), strict=True)):
        if len(index):
            before = body.seen(eye, other.directions[:, index]) < limit[index]
            _mark(hidden, index[before], number, k)
    return hidden


def _mark(marks: Tensor, index: Tensor, number: Tensor, k: int) -> None:
    """Mark the points `index`, but for those of the body `k` itself."""
    marks[index[number[index] != k]] = True


def shaded(bodies: Sequence[Body], points: Tensor, number: Tensor, light: Tensor) -> Tensor:
    """Which of `points` (3, N) on the bodies `number` (N,) the light at (3, 1) does not reach."""
    dark = torch.zeros_like(number, dtype=torch.bool)
    if not len(dark):
        return dark
    between = others(_between(bodies, points, light), number)
    for k, (body, index) in enumerate(zip(bodies, members(between, len(dark)), strict=True)):
        if len(index):
            before = body.met(points[:, index], light) < 1 - _TOUCH
            _mark(dark, index[before], number, k)
    return dark


def _between(bodies: Sequence[Body], points: Tensor, light: Tensor) -> Tensor:
    """(K, B) whether a body may stand between the light and some point of a block.

    The ways from a block's points to the light are no further from the way of the block's middle
    than the middle is from the points.
    """
    low, high = blocks(points).aminmax(dim=2)  # (3, B)
    middle = (low + high) / 2
    way = light - middle
    from_middle = torch.cat([body.centre for body in bodies], 1).T[:, :, None] - middle  # (K, 3, B)
    share = (from_middle * way).sum(1) / dot(way, way)
    beside = from_middle - share.clamp(0, 1)[:, None] * way
    radius = points.new_tensor([[b.radius if b.solid.casts_shadow else -np.inf] for b in bodies])
    reach = radius + (high - low).square().sum(0).sqrt() / 2  # (K, B)
    return (beside.square().sum(1) <= (_SLACK * reach).square()) & (reach > 0)
