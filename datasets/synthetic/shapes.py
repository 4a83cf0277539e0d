"""Intersections of rays with the unit shapes and with meshes, and the surface directions there.

Unit shapes are convex: a ray is inside for one interval of its parameter t, and cutting a shape by
planes cuts the interval. A mesh is seen from a fixed point (an eye or a light): all rays from it
cross one plane, on which the triangles are sorted once into the cells of a grid, and a ray is tried
with the triangles of its own cell only.

Vectors are (3, N) tensors, written out over the three rows: torch's reductions over a first
dimension of three are many times slower on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ea_psmnet.datasets.synthetic.scene import Array, Mesh

Interval = tuple[Tensor, Tensor]


def _ball(origin: Sequence[Tensor], direction: Sequence[Tensor]) -> Interval:
    """Return the interval inside the unit circle or sphere, for two or three dimensions.

    It extends equally from the point nearest to the centre: the usual formula, b² - ac, subtracts
    large numbers for a thin rod far away, which is too inexact in float32.
    """
    # The tiny term avoids a division by zero for a ray along a cylinder's axis.
    squared = _total([d * d for d in direction]) + 1e-30
    nearest = -_total([o * d for o, d in zip(origin, direction, strict=True)]) / squared
    gaps = [torch.addcmul(o, nearest, d) for o, d in zip(origin, direction, strict=True)]
    # NaN, for a miss, compares as false below.
    half = ((1 - _total([gap * gap for gap in gaps])) / squared).sqrt()
    return nearest - half, nearest + half


def _total(terms: list[Tensor]) -> Tensor:
    return reduce(torch.add, terms)


def _slabs(origin: Tensor, direction: Tensor) -> Interval:
    """Return the interval between the planes ±1; origin (A, 1 or N), direction (A, N)."""
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
    """Return the interval inside all half spaces `cuts` (F, 4)."""
    pace = cuts[:, :3] @ direction  # (F, N)
    t = (cuts[:, 3:] - cuts[:, :3] @ origin) / pace
    entering = torch.where(pace < 0, t, -torch.inf).amax(0)
    return entering, torch.where(pace < 0, torch.inf, t).amin(0)


_INTERVALS = {"box": _slabs, "ellipsoid": _sphere, "cylinder": _cylinder, "card": _plane}


def first_hit(shape: str, cuts: Tensor, origin: Tensor, direction: Tensor) -> Tensor:
    """Find the smallest t > 0 at which origin + t * direction is on the unit shape.

    Args:
        shape: box, ellipsoid, cylinder, card or mesh.
        cuts: (F, 4) half spaces; F may be 0.
        origin: (3, N), or (3, 1) if all rays start at one point.
        direction: (3, N) directions of the rays.

    Returns:
        (N,) parameters, infinite for a miss.
    """
    enter, leave = _INTERVALS[shape](origin, direction)
    if cuts.numel():
        enter, leave = _intersection((enter, leave), _half_spaces(origin, direction, cuts))
    t = torch.where(enter > 0, enter, leave)
    return torch.where((enter <= leave) & (t > 0), t, torch.inf)


def gradient(shape: str, cuts: Tensor, point: Tensor) -> Tensor:
    """Return the outward direction of the unit shape's surface at `point` (3, N), not normalised.

    The surface is the zero set of the maximum of the level functions of the shape and its cuts.
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


def dot(one: Tensor, other: Tensor) -> Tensor:
    """Return the dot products of the columns, (N,)."""
    return one[0] * other[0] + one[1] * other[1] + one[2] * other[2]


def length(vectors: Tensor) -> Tensor:
    """Return the lengths of the columns, (N,)."""
    return dot(vectors, vectors).sqrt()


def unit(vectors: Tensor) -> Tensor:
    """Return the columns scaled to length 1, (3, N)."""
    return vectors / length(vectors)


def main_axis(vectors: Tensor) -> Tensor:
    """Return (N,) int32, the axis of the largest absolute value of each column."""
    x, y, z = vectors.abs()
    first = (x >= y) & (x >= z)
    return (2 - (y >= z).int()).masked_fill_(first, 0)


_FINE = 1.5
"""Cells per side of the grid, as a multiple of the square root of the number of triangles."""
_RIM = 1e-3
"""Margin of triangles as a share of a cell, which covers rounding errors of float32."""


@dataclass(frozen=True, eq=False)
class _Cells:
    """Triangles of a grid, sorted by cell."""

    triangles: NDArray[np.int32]
    counts: NDArray[np.int64]  # (cells + 1,), the last for rays outside the grid
    starts: NDArray[np.int64]  # (cells + 1,)


class Sight:
    """A mesh seen from one point; only triangles that face the point are kept.

    Per-triangle values are computed in float64. A ray is given by its intersection (p, q) with the
    plane at distance 1, a point on it by its height: the distance beyond the mesh's centre along w.
    """

    def __init__(
        self, mesh: Mesh, vertices: Array, frame: Array, depth: float, device: torch.device | str
    ) -> None:
        """Prepare the mesh for rays from one point.

        Args:
            mesh: Faces and normals.
            vertices: (V, 3) coordinates along the axes p, q, w from the point; all w above 0.
            frame: (3, 3) rows of these axes, in the coordinates of the rays.
            depth: Coordinate w of the mesh's centre.
            device: Device of the rays.
        """
        self.depth = depth
        self.frame = float32(frame, device)
        faces = mesh.faces.T  # (3 corners, T)
        a, b, c = vertices.T[:, faces].swapaxes(0, 1)  # (3 axes, T) each
        # A ray (p, q, 1) is inside if its dot products with all lines are positive; divided by
        # their sum they are barycentric coordinates. A shared edge gets equal numbers.
        lines = np.stack([_cross(c, b), _cross(a, c), _cross(b, a)])  # (3 lines, 3 axes, T)
        volume = (lines[0] * a).sum(0)
        front = (volume > 0).nonzero()[0]
        lines, volume, faces = lines[..., front], volume[front], faces[:, front]
        screen = (vertices[:, :2] / vertices[:, 2:]).T[:, faces]  # (2 axes, 3 corners, T)
        low, high = screen.min((1, 2), keepdims=True), screen.max((1, 2), keepdims=True)
        self.middle = tuple(((low + high) / 2).flatten().tolist())
        lines[:, 2] += self.middle[0] * lines[:, 0] + self.middle[1] * lines[:, 1]
        rise = -depth * lines.sum(0)
        rise[2] += volume
        self.side = min(int(_FINE * np.sqrt(len(front))) + 1, 255)
        self.scale = tuple((self.side / (high - low)).flatten().tolist())
        cells = _sorted((screen - low) * (self.side / (high - low)), self.side)
        self._rows = float32(np.concatenate([*lines, rise]), device)  # (12, T)
        self._normals = float32(mesh.normals.T[:, faces].swapaxes(0, 1), device)
        self._triangles, self._counts, self._starts = (
            torch.from_numpy(numbers).to(device)
            for numbers in (cells.triangles, cells.counts, cells.starts)
        )

    def heights(self, p: Tensor, q: Tensor) -> Tensor:
        """Return (N,) heights at which the rays first hit the mesh; infinite for a miss."""
        ray, _, height = self._hits(p - self.middle[0], q - self.middle[1])
        return torch.full_like(p, torch.inf).scatter_reduce_(0, ray, height, "amin")

    def outward(self, p: Tensor, q: Tensor) -> Tensor:
        """Return (3, N) outward directions, not normalised, at the first hits of the rays.

        They are interpolated between the vertices of a triangle.
        """
        p, q = p - self.middle[0], q - self.middle[1]
        ray, triangle, height = self._hits(p, q)
        first = torch.full_like(p, torch.inf).scatter_reduce_(0, ray, height, "amin")
        chosen = (height == first.index_select(0, ray)).nonzero()[:, 0]
        met = torch.zeros_like(p, dtype=torch.int32)
        met[ray[chosen]] = triangle[chosen]
        shares = _products(self._rows[:9].index_select(1, met), p, q)
        x, y, z = (share * self._normals[k].index_select(1, met) for k, share in enumerate(shares))
        return x + y + z

    def _hits(self, p: Tensor, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return rays, triangles and heights of all hits, (M,) each."""
        column = torch.floor(p * self.scale[0] + self.side / 2)
        row = torch.floor(q * self.scale[1] + self.side / 2)
        # Rays outside the grid or with NaN coordinates miss.
        inside = (column >= 0) & (column < self.side) & (row >= 0) & (row < self.side)
        cell = (row * self.side + column).where(inside, self.side**2).long()
        counts = self._counts.index_select(0, cell)
        ray = torch.repeat_interleave(counts)
        skipped = self._starts.index_select(0, cell) - (counts.cumsum(0) - counts)
        place = torch.arange(len(ray), device=p.device)
        triangle = self._triangles.index_select(0, skipped.index_select(0, ray) + place)
        rows = self._rows.index_select(1, triangle)
        one, two, three, rise = _products(rows, p.index_select(0, ray), q.index_select(0, ray))
        total = one + two + three
        met = ((torch.minimum(one, torch.minimum(two, three)) >= 0) & (total > 0)).nonzero()[:, 0]
        ray, triangle, rise, total = (v.index_select(0, met) for v in (ray, triangle, rise, total))
        return ray, triangle, rise / total


def _products(rows: Tensor, p: Tensor, q: Tensor) -> list[Tensor]:
    """Return the K dot products (N,) of (p, q, 1) with each three rows of (3 K, N)."""
    return [
        torch.addcmul(torch.addcmul(rows[k + 2], rows[k], p), rows[k + 1], q)
        for k in range(0, len(rows), 3)
    ]


def _sorted(screen: Array, side: int) -> _Cells:
    """Sort triangles (2 axes, 3 corners, T) into all cells that their bounding boxes touch."""
    first = (screen.min(1) - _RIM).clip(0, side - 1).astype(np.int32)
    last = (screen.max(1) + _RIM).clip(0, side - 1).astype(np.int32)
    wide, tall = last - first + 1
    many = wide * tall
    triangle = np.repeat(np.arange(len(many), dtype=np.int32), many)
    nth = np.arange(len(triangle), dtype=np.int32) - np.repeat(many.cumsum() - many, many)
    row, column = np.divmod(nth, wide[triangle])
    cell = (first[1] * side + first[0])[triangle] + row * side + column
    order = cell.astype(np.uint16).argsort(kind="stable")  # radix sort for 16 bits
    counts = np.bincount(cell, minlength=side * side + 1)
    return _Cells(triangle[order], counts, counts.cumsum() - counts)


def _cross(one: Array, other: Array) -> Array:
    """Return cross products of (3, T); several times as fast as NumPy's."""
    x, y, z = one
    u, v, w = other
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u])


def float32(array: Array, device: torch.device | str) -> Tensor:
    """Copy a float64 array to a float32 tensor on the device."""
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=device)
