"""Where rays meet the unit shapes, and which way the surface faces there.

Every shape is convex, so a ray is inside it for one interval of its parameter t, and cutting a
shape by planes cuts the interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from datasets.synthetic.vectors import dot, length, main_axis

Interval = tuple[Tensor, Tensor]


def _ball(origin: Sequence[Tensor], direction: Sequence[Tensor]) -> Interval:
    """Within distance 1 of the origin, of two or of three dimensions.

    From the point nearest to the middle on, both ways alike: the usual formula, b² - ac, takes the
    difference of large numbers where a thin rod is far away, and float32 would not do.
    """
    # The tiny term keeps a ray along a cylinder's axis from dividing by zero.
    squared = _total([d * d for d in direction]) + 1e-30
    nearest = -_total([o * d for o, d in zip(origin, direction, strict=True)]) / squared
    gaps = [torch.addcmul(o, nearest, d) for o, d in zip(origin, direction, strict=True)]
    # NaN, where the ray misses, compares as false below.
    half = ((1 - _total([gap * gap for gap in gaps])) / squared).sqrt()
    return nearest - half, nearest + half


def _total(terms: list[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _slabs(origin: Tensor, direction: Tensor) -> Interval:
    """Between the planes ±1 of every axis; origin (A, 1 or N), direction (A, N)."""
    inverse = direction.reciprocal()
    first, second = (-1 - origin) * inverse, (1 - origin) * inverse
    return torch.minimum(first, second).amax(0), torch.maximum(first, second).amin(0)


def _intersection(one: Interval, other: Interval) -> Interval:
    return torch.maximum(one[0], other[0]), torch.minimum(one[1], other[1])


def _sphere(origin: Tensor, direction: Tensor) -> Interval:
    return _ball(list(origin), list(direction))


def _cylinder(origin: Tensor, direction: Tensor) -> Interval:
    side = _ball(list(origin[:2]), list(direction[:2]))
    return _intersection(side, _slabs(origin[2:], direction[2:]))


def _plane(origin: Tensor, direction: Tensor) -> Interval:
    t = -origin[2] / direction[2]
    return t, t


def _half_spaces(origin: Tensor, direction: Tensor, cuts: Tensor) -> Interval:
    """Inside all of `cuts` (F, 4)."""
    pace = cuts[:, :3] @ direction  # (F, N)
    t = (cuts[:, 3:] - cuts[:, :3] @ origin) / pace
    entering = torch.where(pace < 0, t, -torch.inf).amax(0)
    return entering, torch.where(pace < 0, torch.inf, t).amin(0)


_INTERVALS = {"box": _slabs, "ellipsoid": _sphere, "cylinder": _cylinder, "card": _plane}


def first_hit(shape: str, cuts: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """The smallest t > 0 at which origin + t * direction is on the unit shape.

    Args:
        shape: one of `SHAPES`.
        cuts: (F, 4) half spaces; F may be 0.
        origin: (3, N), or (3, 1) where all rays start at one point.
        direction: (3, N).

    Returns:
        (N,), infinite where the ray misses.
    """
    enter, leave = _INTERVALS[shape](origin, direction)
    if cuts.numel():
        enter, leave = _intersection((enter, leave), _half_spaces(origin, direction, cuts))
    t = torch.where(enter > 0, enter, leave)
    return torch.where((enter <= leave) & (t > 0), t, torch.inf)


def gradient(shape: str, cuts: Tensor, point: Tensor) -> Tensor:
    """The outward direction of the unit shape's surface at `point` (3, N), not normalised.

    The surface is where the largest of the shape's own levels and its cuts' levels is zero.
    """
    if shape == "card":
        normal = torch.zeros_like(point)
        normal[2] = 1
        return normal
    if shape == "ellipsoid":
        level, normal = length(point) - 1, point
    elif shape == "box":
        level, normal = _box_face(point)
    else:
        level, normal = _cylinder_face(point)
    for cut in cuts:
        cut_level = cut[:3] @ point - cut[3]
        nearer = cut_level > level
        level = torch.where(nearer, cut_level, level)
        normal = torch.where(nearer, cut[:3, None], normal)
    return normal


def _box_face(point: Tensor) -> tuple[Tensor, Tensor]:
    axis = main_axis(point)
    normal = torch.stack([(axis == k) * point[k].sign() for k in range(3)])
    return dot(normal, point) - 1, normal


def _cylinder_face(point: Tensor) -> tuple[Tensor, Tensor]:
    radius, height = torch.hypot(point[0], point[1]), point[2].abs()
    on_cap = height > radius
    side = torch.cat([point[:2], torch.zeros_like(point[:1])])
    cap = torch.zeros_like(point)
    cap[2] = point[2].sign()
    return torch.maximum(radius, height) - 1, torch.where(on_cap, cap, side)
