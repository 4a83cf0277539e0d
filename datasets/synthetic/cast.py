"""Ray casting: which object each pixel sees, at what depth, and whether another view sees it too.

Each object is tried only with the rays that pass its box on the screen, so the cost grows with
what is drawn, not with objects times pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.body import TOUCH, Body
from datasets.synthetic.rays import Rays, blocks, members, others, pixels
from datasets.synthetic.vectors import dot

_SLACK = 1.01
"""Factor on the size of bounding spheres, which float32 may place a little aside."""


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
    other way there, or if another body stands between. The front of a convex body never hides a
    point of it; that of a mesh may, and also hides what faces the other way.

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
    hidden = (column < -0.5) | (column > width - 0.5)
    hidden |= (away < 0) & _convex(bodies, number)[number]
    other = Rays(rays.rig, eye, column, rays.y)
    near = other.near([body.bounds(rays.rig, eye) for body in bodies])
    near = others(near, number, _convex(bodies, number))
    limit = depth * (1 - TOUCH)
    for k, (body, index) in enumerate(zip(bodies, members(near, len(depth)), strict=True)):
        if len(index):
            t = body.seen(eye, other.directions[:, index])
            before = (t < limit[index]).nonzero()[:, 0]
            index, t = index[before], t[before]
            hidden[index[(number[index] != k) | (t < depth[index] - body.own)]] = True
    return hidden


def _convex(bodies: Sequence[Body], number: Tensor) -> Tensor:
    """(K,) which bodies never hide themselves, on the device of `number`."""
    return number.new_tensor([np.isinf(body.own) for body in bodies], dtype=torch.bool)


def shaded(bodies: Sequence[Body], points: Tensor, number: Tensor, light: Tensor) -> Tensor:
    """Which of `points` (3, N) on the bodies `number` (N,) the light at (3, 1) does not reach."""
    dark = torch.zeros_like(number, dtype=torch.bool)
    if not len(dark):
        return dark
    between = others(_between(bodies, points, light), number, _convex(bodies, number))
    for k, (body, index) in enumerate(zip(bodies, members(between, len(dark)), strict=True)):
        if len(index):
            index = index[body.shades(points[:, index], light)]
            dark[index[(number[index] != k) | bool(np.isfinite(body.own))]] = True
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
