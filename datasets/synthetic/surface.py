"""What lies at the points that rays hit: position, normal and the colour of the surface itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.body import Body
from datasets.synthetic.rays import Rays
from datasets.synthetic.scene import Material
from datasets.synthetic.textures import Atlas
from datasets.synthetic.vectors import dot, length, main_axis, unit

_GRAZING = 0.05
"""Cosine below which a surface's foreshortening no longer coarsens its texture."""
_ANISOTROPY = 0.65
"""Between 0.5, the area that a pixel covers, and 1, its longer side: shimmer against blur."""


@dataclass(frozen=True, eq=False)
class Surface:
    """N points on bodies, as one camera sees them."""

    points: Tensor
    """(3, N)."""
    normals: Tensor
    """(3, N) unit normals, towards the camera that sees them."""
    number: Tensor
    """(N,) int32 bodies."""
    face: Tensor
    """(N,) int32 from 0 to 2: the part of the body, beyond whose edge the texture starts anew."""
    albedo: Tensor
    """(3, N) in [0, 1], encoded as in a picture."""

    def away(self, eye: float) -> Tensor:
        """(N,) negative where the camera at x = `eye` looks at the back of the surface."""
        x, y, z = self.points
        nx, ny, nz = self.normals
        return -(nx * (x - eye) + ny * y + nz * z)


def surface(
    bodies: Sequence[Body], rays: Rays, depth: Tensor, number: Tensor, atlas: Atlas
) -> Surface:
    """The surface points of rays that each hit a body.

    Args:
        bodies: all bodies.
        rays: N rays.
        depth: (N,) finite depths along them.
        number: (N,) bodies they hit, sorted: the points of one body lie in one slice.
        atlas: the textures.
    """
    directions = rays.directions
    points = rays.origin + depth * directions
    normals = torch.empty_like(points)
    main, fine = depth.new_empty(3, len(depth)), depth.new_empty(3, len(depth))
    face = torch.empty_like(number)
    for body, part in _slices(bodies, number):
        position = body.to_unit @ (points[:, part] - body.centre)
        outward = body.outward(rays.eye, directions[:, part], position)
        normal = unit(body.to_world @ outward)
        slant = dot(normal, directions[:, part])
        # The outside of a mesh is seen, even where its even shading bends a little away.
        normals[:, part] = normal if body.solid.mesh else normal * -slant.sign()
        cosine = slant.abs() / length(directions[:, part])
        covered = depth[part] / rays.rig.focal * cosine.clamp(min=_GRAZING) ** -_ANISOTROPY
        u, v, face[part] = _unrolled(body, position, outward)
        material = body.solid.material
        main[:, part] = _texels(material, material.density, u, v, covered)
        fine[:, part] = _texels(material, material.detail_density, u, v, covered)
    albedo = _albedo(bodies, number, atlas, main, fine)
    return Surface(points, normals, number, face, albedo)


def _slices(bodies: Sequence[Body], number: Tensor) -> list[tuple[Body, slice]]:
    ends = np.cumsum(torch.bincount(number, minlength=len(bodies)).tolist())
    starts = [0, *ends[:-1]]
    return [
        (body, slice(int(start), int(end)))
        for body, start, end in zip(bodies, starts, ends, strict=True)
        if end > start
    ]


def _unrolled(body: Body, position: Tensor, outward: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates on the surface in units of length, from those in the unit shape (3, N).

    The surface is projected along that axis of the body which its normal is nearest to; the side of
    a cylinder is rolled out.

    Returns:
        Two coordinates (N,), and the face (N,): between two faces they jump.
    """
    x, y, z = position * body.half
    axis = main_axis(outward / body.half)
    # Each face starts elsewhere in the texture.
    u = torch.where(axis == 0, y + 0.37 * body.radius, x) + 0.61 * body.radius * (axis == 1)
    v = torch.where(axis == 2, y, z)
    if body.solid.shape == "cylinder":
        side = axis < 2
        around = torch.atan2(position[1], position[0]) * (body.half[0] + body.half[1]) / 2
        u, v = torch.where(side, around, x), torch.where(side, z, y)
        axis = torch.where(side, (y > 0).int(), 2)  # rolled out, the side ends where y turns
    return u, v, axis


def _texels(material: Material, density: float, u: Tensor, v: Tensor, covered: Tensor) -> Tensor:
    """(3, N): column and row in texels, and the mip level."""
    cosine, sine = density * np.cos(material.turn), density * np.sin(material.turn)
    column = cosine * u - sine * v + material.shift[0]
    row = sine * u + cosine * v + material.shift[1]
    return torch.stack([column, row, torch.log2(covered * density)])


def _albedo(
    bodies: Sequence[Body], number: Tensor, atlas: Atlas, main: Tensor, fine: Tensor
) -> Tensor:
    materials = [body.solid.material for body in bodies]
    texture, detail = number.new_tensor([(m.texture, m.detail) for m in materials]).T
    colours = atlas.look_up(texture.index_select(0, number), *main)  # (3, N)
    grain = atlas.look_up_grey(detail.index_select(0, number), *fine)  # (N,)
    for body, part in _slices(bodies, number):
        material = body.solid.material
        mapping = colours.new_tensor(material.colours)  # (3, 4)
        mapped = torch.addmm(mapping[:, 3:], mapping[:, :3], colours[:, part])
        strength = material.detail_strength
        colours[:, part] = mapped * (grain[part] * strength + (1 - strength / 2))
    return colours.clamp_(0.01, 1)
