"""Surface points that rays hit, their colours, and the light that they reflect.

Light is ambient light, point lights with shadows, highlights, mirrored surroundings and haze.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ea_psmnet.datasets.synthetic.body import Body
from ea_psmnet.datasets.synthetic.cast import Rays, shaded
from ea_psmnet.datasets.synthetic.scene import Light, Material, Scene
from ea_psmnet.datasets.synthetic.shapes import dot, length, main_axis, unit
from ea_psmnet.datasets.synthetic.textures import Atlas

_GRAZING = 0.05
"""Smallest cosine of the viewing angle used for the mip level."""
_ANISOTROPY = 0.65
"""Trade-off of aliasing and blur: 0.5 filters by the area that a pixel covers, 1 by its length."""


@dataclass(frozen=True, eq=False)
class Surface:
    """N surface points seen by a camera."""

    points: Tensor
    """(3, N) positions."""
    normals: Tensor
    """(3, N) unit normals towards the camera."""
    number: Tensor
    """(N,) int32 index of the body."""
    face: Tensor
    """(N,) int32 from 0 to 2: the face of the body; the texture is discontinuous between faces."""
    albedo: Tensor
    """(3, N) surface colours in [0, 1], gamma-encoded."""

    def away(self, eye: float) -> Tensor:
        """Return (N,) values, negative where the camera at x = `eye` sees the back."""
        x, y, z = self.points
        nx, ny, nz = self.normals
        return -(nx * (x - eye) + ny * y + nz * z)


def surface(
    bodies: Sequence[Body], rays: Rays, depth: Tensor, number: Tensor, atlas: Atlas
) -> Surface:
    """Compute the surface points of rays that all hit a body.

    Args:
        bodies: All bodies.
        rays: N rays.
        depth: (N,) finite depths along the rays.
        number: (N,) index of the body hit, sorted so that the points of a body are a slice.
        atlas: The textures.
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
        # Only the outside of a mesh is seen, even if an interpolated normal points slightly away.
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
    """Compute texture coordinates in units of length from positions in the unit shape (3, N).

    The surface is projected along the axis of the body nearest to its normal; the side of a
    cylinder is unrolled.

    Returns:
        Two coordinates (N,), and the face (N,); coordinates are discontinuous between faces.
    """
    x, y, z = position * body.half
    axis = main_axis(outward / body.half)
    # Each face has another offset in the texture.
    u = torch.where(axis == 0, y + 0.37 * body.radius, x) + 0.61 * body.radius * (axis == 1)
    v = torch.where(axis == 2, y, z)
    if body.solid.shape == "cylinder":
        side = axis < 2
        around = torch.atan2(position[1], position[0]) * (body.half[0] + body.half[1]) / 2
        u, v = torch.where(side, around, x), torch.where(side, z, y)
        axis = torch.where(side, (y > 0).int(), 2)  # unrolled side, cut where y changes sign
    return u, v, axis


def _texels(material: Material, density: float, u: Tensor, v: Tensor, covered: Tensor) -> Tensor:
    """Return (3, N): column and row in texels, and the mip level."""
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


_MIRRORED_LEVEL = 3.0
"""Mip level of reflections: coarse, as a pixel of a curved surface covers a wide angle."""
_MIRRORED_SIZE = 512 / np.pi
"""Texels per radian of the mirrored surroundings."""

DISPLAY_GAMMA = 2.2
"""Exponent that converts encoded textures to linear light."""


def lit(
    scene: Scene, bodies: Sequence[Body], rays: Rays, seen: Surface, atlas: Atlas
) -> tuple[Tensor, Tensor]:
    """Compute the light that N surface points send to the camera of `rays`.

    Returns:
        (3, N) linear colours, and (N,) int32 codes of the set of lights that reach each point.
    """
    albedo = seen.albedo**DISPLAY_GAMMA
    materials = [body.solid.material for body in bodies]
    table = albedo.new_tensor([(m.highlight, m.shininess, m.mirror, m.glows) for m in materials]).T
    highlight, shininess, mirror, glows = table.contiguous().index_select(1, seen.number)
    towards_eye = unit(rays.origin - seen.points)
    diffuse = albedo.new_tensor(scene.ambient)[:, None].expand_as(albedo).contiguous()
    glossy = torch.zeros_like(diffuse)
    reached = torch.zeros_like(seen.number)
    for light in scene.lights:
        falling, towards = _falling(light, bodies, seen, glows == 0)
        colour = albedo.new_tensor(light.colour)[:, None]
        diffuse += falling * colour
        halfway = unit(towards + towards_eye)
        aligned = dot(seen.normals, halfway).clamp(min=0)
        # Only lit surfaces have highlights.
        glossy += highlight * aligned**shininess * (falling > 0) * colour
        reached = 2 * reached + (falling > 0)
    colours = torch.where(glows > 0, albedo, albedo * diffuse + glossy)
    index = (mirror > 0).nonzero()[:, 0]
    if len(index):
        image, share = _mirrored(bodies, atlas, seen, towards_eye, mirror, index)
        brightness = float(scene.ambient.mean() + sum(x.colour.mean() for x in scene.lights) / 2)
        straight = colours.index_select(1, index)
        colours.index_copy_(1, index, torch.lerp(straight, image * brightness, share))
    return _hazy(scene, colours, seen.points[2]), reached


def _mirrored(
    bodies: Sequence[Body],
    atlas: Atlas,
    seen: Surface,
    towards_eye: Tensor,
    mirror: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute reflections at the points `index` (M,): linear colours (3, M) and shares (M,).

    They depend on the position of the camera, so the views differ as on a car's window. The share
    grows towards grazing angles by Schlick's approximation (1994) of Fresnel's equations.
    """
    normals, towards = (v.index_select(1, index) for v in (seen.normals, towards_eye))
    cosine = dot(normals, towards).clamp(0, 1)
    x, y, z = 2 * cosine * normals - towards
    table = seen.number.new_tensor([body.solid.material.surroundings for body in bodies])
    u, v = torch.atan2(x, z) * _MIRRORED_SIZE, torch.asin(y.clamp(-1, 1)) * _MIRRORED_SIZE
    level = torch.full_like(u, _MIRRORED_LEVEL)
    texture = table.index_select(0, seen.number.index_select(0, index))
    image = atlas.look_up(texture, u, v, level) ** DISPLAY_GAMMA
    straight = mirror.index_select(0, index)
    return image, straight + (1 - straight) * (1 - cosine) ** 5


def _falling(
    light: Light, bodies: Sequence[Body], seen: Surface, dull: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the share of a light that reaches each point, (N,), and its direction (3, N).

    The share is 0 where `dull` (N,) is false: the surface glows.
    """
    position = seen.points.new_tensor(light.position)[:, None]
    towards = position - seen.points
    distance = length(towards)
    towards /= distance
    falling = dot(seen.normals, towards).clamp(min=0) / (1 + (distance / light.reach) ** 2) * dull
    if light.shadows:
        lit_side = falling > 0
        falling *= ~shaded(bodies, seen.points, seen.number, lit_side, position)
    return falling, towards


def _hazy(scene: Scene, colours: Tensor, depth: Tensor) -> Tensor:
    if scene.haze[3] == 0:
        return colours
    clear = torch.exp(-scene.haze[3] * depth)
    air = colours.new_tensor(scene.haze[:3])[:, None]
    return torch.lerp(air.expand_as(colours), colours, clear)
