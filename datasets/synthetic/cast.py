"""Ray casting: which object each pixel sees, at what depth, and whether another view sees it too.

Each object is tried only with the rays that pass its box on the screen, so the cost grows with
what is drawn, not with objects times pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.body import TOUCH, Body, screen_bounds
from datasets.synthetic.rays import BLOCK, Rays, blocks, members, others, pixels

_SLACK = 1.01
"""Factor on the size of bodies, which float32 may place a little aside."""
_FAR_SLACK = 1e-5
"""Share of the distance by which it may, of what is far away."""


def nearest_on_grid(bodies: Sequence[Body], rays: Rays) -> tuple[Tensor, Tensor]:
    """What the rays of all pixels, row by row, meet first: as `nearest`, and faster."""
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
    """What each ray meets first.

    Returns:
        The depth (N,), infinite where nothing is met, and the number (N,) of the body,
        -1 where nothing is met.
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
    """Number, body and the blocks of rays (C,) that `near` (K, B) has it tried on, if any."""
    for k, (body, chosen) in enumerate(zip(bodies, members(near), strict=True)):
        if chosen.numel():
            yield k, body, chosen


def _tried(body: Body, eye: float, directions: Tensor, chosen: Tensor) -> Tensor:
    """(C, BLOCK) parameters at which the rays of the chosen blocks hit the body."""
    through = directions.index_select(1, chosen)
    return body.seen(eye, through.flatten(1)).view(-1, BLOCK)


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
    """(K,) which bodies never hide themselves, on the device of `number`."""
    return number.new_tensor([np.isinf(body.own) for body in bodies], dtype=torch.bool)


def shaded(
    bodies: Sequence[Body], points: Tensor, number: Tensor, wanted: Tensor, light: Tensor
) -> Tensor:
    """Which points the light does not reach.

    Args:
        bodies: all bodies.
        points: (3, N).
        number: (N,) bodies that they lie on.
        wanted: (N,) which of them matter; others may be left out.
        light: (3, 1).

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
    """(K, B) whether a body may stand between the goal (3, 1) and some point of a block.

    The ways from a block's points to the goal are no further from the way of the block's middle
    than the points are from the middle: it must meet the body's own box, made larger by as much.
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
    # Whatever is no number, as along a side of the box, is tried.
    return ~((enter > leave) | (enter > 1) | (leave < 0))
