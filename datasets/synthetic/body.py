"""Solids prepared for ray casting: their tensors on the device, and intersections with rays."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ea_psmnet.datasets.synthetic.outlines import covers
from ea_psmnet.datasets.synthetic.scene import Array, Rig, Solid
from ea_psmnet.datasets.synthetic.shapes import Sight, first_hit, float32, gradient

_NEAR = 1e-3
"""Objects that reach closer than this depth have no bounds on the screen."""
TOUCH = 1e-5
"""Share of the distance within which two surfaces touch and do not occlude one another."""
_SLACK = 1e-4
"""Rounding error of float32 on the screen, as a share of the distance."""
_FOLD = 0.01
"""Share of its radius within which a mesh touches itself and does not occlude itself."""


class Body:
    """A solid prepared for ray casting: its tensors on the device.

    Per-solid values are computed in float64; rays are float32.
    """

    def __init__(self, solid: Solid, device: torch.device | str) -> None:
        half = solid.half.copy()
        if solid.shape == "card":
            half[2] = 1.0  # its thickness is zero: any scale will do
        self.solid = solid
        self.flat = solid.shape == "card"
        self._to_unit = solid.rotation.T / half[:, None]
        self.to_unit = float32(self._to_unit, device)  # (3, 3)
        self.to_world = float32(solid.rotation / half[None, :], device)  # (3, 3), for normals
        self.centre = float32(solid.centre[:, None], device)  # (3, 1)
        self.half = float32(half[:, None], device)  # (3, 1)
        self.cuts = float32(solid.cuts, device)  # (F, 4)
        reach = half * np.array([1, 1, not self.flat])
        unit = np.array(list(product((-1, 1), repeat=3)))
        if solid.mesh is not None:
            unit = solid.mesh.vertices
        from_centre = (unit * reach) @ solid.rotation.T
        self.corners = solid.centre + from_centre  # (8 or V, 3)
        self.radius = float(np.linalg.norm(from_centre, axis=1).max())
        self.own = np.inf if solid.mesh is None else _FOLD * self.radius
        """Smallest distance at which it occludes a point of its own; infinite if convex."""
        self._eyes: dict[float, Tensor] = {}
        self._sights: dict[tuple[float, ...], Sight | None] = {}

    def seen(self, eye: float, directions: Tensor) -> Tensor:
        """Return (N,) parameters of first hits of rays (3, N) from x = `eye`; inf for a miss."""
        if self.solid.mesh is not None:
            x, y, z = directions
            sight = self._from_eye(eye)
            return (sight.depth + sight.heights(x / z, y / z)) / z
        if eye not in self._eyes:
            start = self._to_unit @ (np.array([eye, 0.0, 0.0]) - self.solid.centre)
            self._eyes[eye] = float32(start[:, None], directions.device)  # (3, 1)
        return self._hit(self._eyes[eye], self.to_unit @ directions)

    def shades(self, points: Tensor, light: Tensor) -> Tensor:
        """Return (N,) whether it hides the light (3, 1) from the points (3, N).

        Points of its own must be left out if it is convex.
        """
        if self.solid.mesh is not None:
            return self._shades_by_folds(points, light)
        start = self.to_unit @ (points - self.centre)
        step = self.to_unit @ (light - self.centre) - start
        return self._hit(start, step) < 1 - TOUCH

    def outward(self, eye: float, directions: Tensor, position: Tensor) -> Tensor:
        """Return (3, N) outward directions in the space of the unit shape, not normalised.

        Args:
            eye: Position of the camera on the x axis.
            directions: (3, N) rays to the points.
            position: (3, N) points in the space of the unit shape.
        """
        if self.solid.mesh is not None:
            x, y, z = directions
            return self._from_eye(eye).outward(x / z, y / z)
        return gradient(self.solid.shape, self.cuts, position)

    def _hit(self, start: Tensor, step: Tensor) -> Tensor:
        t = first_hit(self.solid.shape, self.cuts, start, step)
        if not self.flat:
            return t
        x, y = start[0] + t * step[0], start[1] + t * step[1]
        return torch.where(covers(self.solid.outline, x, y), t, torch.inf)

    def _from_eye(self, eye: float) -> Sight:
        sight = self._sight((eye,), np.array([eye, 0.0, 0.0]), np.eye(3))
        if sight is None:
            raise ValueError(f"a mesh at {self.solid.centre} reaches behind the cameras")
        return sight

    def _shades_by_folds(self, points: Tensor, light: Tensor) -> Tensor:
        """Return `shades` for a mesh; a light inside its bounds is never hidden by it."""
        position = light[:, 0].cpu().numpy().astype(np.float64)
        ahead = self.solid.centre - position
        sight = self._sight(tuple(position.tolist()), position, _axes(ahead))
        if sight is None:
            return torch.zeros_like(points[0], dtype=torch.bool)
        x, y, height = sight.frame @ (points - self.centre)
        z = sight.depth + height
        return sight.heights(x / z, y / z) < height - self.own

    def _sight(self, key: tuple[float, ...], point: Array, frame: Array) -> Sight | None:
        """Return the mesh seen from the point along the axes `frame`; None if not in front."""
        mesh = self.solid.mesh
        if key not in self._sights and mesh is not None:
            vertices = (self.corners - point) @ frame.T
            depth = float(frame[2] @ (self.solid.centre - point))
            before = vertices[:, 2].min() > _NEAR
            device = self.centre.device
            self._sights[key] = Sight(mesh, vertices, frame, depth, device) if before else None
        return self._sights[key]


def screen_bounds(bodies: Sequence[Body], rig: Rig, eye: float) -> Array:
    """Return (K, 8) bounds of the bodies on the screen of the camera at x = `eye`, in pixels.

    The columns are a box (x from, x to, y from, y to) and a strip along the longer axis: the points
    (x, y) whose dot product with the unit vector (nx, ny) is in a range (nx, ny, from, to).
    """
    starts = np.cumsum([0, *(len(body.corners) for body in bodies[:-1])])
    x, y, z = np.concatenate([body.corners for body in bodies]).T
    behind = np.minimum.reduceat(z, starts) < _NEAR
    z = np.maximum(z, _NEAR)
    corners = np.stack([x - eye, y]) * (rig.focal / z) + np.array(rig.centre)[:, None]
    counts = np.diff([*starts, len(x)])
    middle = np.add.reduceat(corners, starts, 1) / counts
    u, v = corners - middle.repeat(counts, 1)
    uu, uv, vv = np.add.reduceat(np.stack([u * u, u * v, v * v]), starts, 1)
    angle = np.arctan2(2 * uv, uu - vv) / 2  # of the axis with the largest spread of the corners
    normal = np.stack([-np.sin(angle), np.cos(angle)])
    spread = np.stack([*corners, (normal.repeat(counts, 1) * corners).sum(0)])
    low, high = np.minimum.reduceat(spread, starts, 1), np.maximum.reduceat(spread, starts, 1)
    slack = _SLACK * (1 + np.abs(middle).sum(0))
    bounds = np.stack([low[0], high[0], low[1], high[1], *normal, low[2] - slack, high[2] + slack])
    bounds[:, behind] = np.array([[-np.inf, np.inf, -np.inf, np.inf, 0, 0, -np.inf, np.inf]]).T
    return bounds.T


def _axes(ahead: Array) -> Array:
    """Return (3, 3) rows: two axes orthogonal to `ahead`, and its direction."""
    z = ahead / np.linalg.norm(ahead)
    x = np.cross(np.eye(3)[np.abs(z).argmin()], z)
    x /= np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])
