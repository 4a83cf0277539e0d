"""Meshes as one point sees them: where the rays through an eye or a lamp first meet triangles.

All such rays cross one plane. For each eye and each lamp the triangles are sorted once into the
cells of a grid on that plane, and a ray is tried with those of its own cell alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from datasets.synthetic.scene import Array, Mesh

_FINE = 1.5
"""Cells a side are this many times the root of the number of triangles."""
_RIM = 1e-3
"""Share of a cell by which triangles reach into the next one: float32 may place a ray there."""


@dataclass(frozen=True, eq=False)
class _Cells:
    """Which triangles each cell holds, cell by cell."""

    triangles: NDArray[np.int32]
    counts: NDArray[np.int64]  # (cells + 1,), of which the last is for rays beside the grid
    starts: NDArray[np.int64]  # likewise


class Sight:
    """A mesh as it is seen from one point; only what faces that point is there.

    What is small is worked out in float64. A ray is told by where it crosses the plane at distance
    1, (p, q), and a point on it by its height: how far it is beyond the mesh's centre along w.
    """

    def __init__(
        self, mesh: Mesh, vertices: Array, frame: Array, depth: float, device: torch.device | str
    ) -> None:
        """Prepare the mesh for rays from one point.

        Args:
            mesh: its faces and normals.
            vertices: (V, 3) coordinates along the axes p, q, w from that point; all w above 0.
            frame: (3, 3) rows of these axes, in the coordinates in which rays are given.
            depth: w of the mesh's centre.
            device: where rays are cast.
        """
        self.depth = depth
        self.frame = _tensor(frame, device)
        faces = mesh.faces.T  # (3 corners, T)
        a, b, c = vertices.T[:, faces].swapaxes(0, 1)  # (3 axes, T) each
        # A ray (p, q, 1) is inside where all of its products with these are positive; divided by
        # their sum they are the corners' shares. Edges of two triangles get equal numbers.
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
        self._rows = _tensor(np.concatenate([*lines, rise]), device)  # (12, T)
        self._normals = _tensor(mesh.normals.T[:, faces].swapaxes(0, 1), device)
        self._triangles, self._counts, self._starts = (
            torch.from_numpy(numbers).to(device)
            for numbers in (cells.triangles, cells.counts, cells.starts)
        )

    def heights(self, p: Tensor, q: Tensor) -> Tensor:
        """(N,) heights at which the rays first meet the mesh; infinite where they do not."""
        ray, _, height = self._hits(p - self.middle[0], q - self.middle[1])
        return torch.full_like(p, torch.inf).scatter_reduce_(0, ray, height, "amin")

    def outward(self, p: Tensor, q: Tensor) -> Tensor:
        """(3, N) outward directions, not normalised, where rays that meet the mesh first do so.

        They bend evenly from corner to corner of a triangle.
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
        """Rays, triangles and heights of all meetings, (M,) each."""
        column = torch.floor(p * self.scale[0] + self.side / 2)
        row = torch.floor(q * self.scale[1] + self.side / 2)
        # Beside the grid, and where a ray is no number at all, there is nothing.
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
    """Products of (p, q, 1) with rows 0 to 2, 3 to 5 and so on of (3 K, N): K of (N,)."""
    return [
        torch.addcmul(torch.addcmul(rows[k + 2], rows[k], p), rows[k + 1], q)
        for k in range(0, len(rows), 3)
    ]


def _sorted(screen: Array, side: int) -> _Cells:
    """The triangles (2 axes, 3 corners, T), in cells, each in all those that its box touches."""
    first = (screen.min(1) - _RIM).clip(0, side - 1).astype(np.int32)
    last = (screen.max(1) + _RIM).clip(0, side - 1).astype(np.int32)
    wide, tall = last - first + 1
    many = wide * tall
    triangle = np.repeat(np.arange(len(many), dtype=np.int32), many)
    nth = np.arange(len(triangle), dtype=np.int32) - np.repeat(many.cumsum() - many, many)
    row, column = np.divmod(nth, wide[triangle])
    cell = (first[1] * side + first[0])[triangle] + row * side + column
    order = cell.astype(np.uint16).argsort(kind="stable")  # by radix, for numbers so short
    counts = np.bincount(cell, minlength=side * side + 1)
    return _Cells(triangle[order], counts, counts.cumsum() - counts)


def _cross(one: Array, other: Array) -> Array:
    """Cross products of (3, T): several times as fast as numpy's own."""
    x, y, z = one
    u, v, w = other
    return np.stack([y * w - z * v, z * u - x * w, x * v - y * u])


def _tensor(array: Array, device: torch.device | str) -> Tensor:
    return torch.as_tensor(np.ascontiguousarray(array), dtype=torch.float32, device=device)
