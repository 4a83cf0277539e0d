"""Light on surfaces: ambient, point lights with shadows, highlights, mirrored light and haze."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.synthetic.body import Body
from datasets.synthetic.cast import shaded
from datasets.synthetic.rays import Rays
from datasets.synthetic.scene import Light, Scene
from datasets.synthetic.surface import Surface
from datasets.synthetic.textures import Atlas
from datasets.synthetic.vectors import dot, length, unit

_MIRRORED_LEVEL = 3.0
"""Mip level of what is mirrored: coarse, for on a bent surface a pixel takes in a wide angle."""
_MIRRORED_SIZE = 512 / np.pi
"""Texels a radian of the mirrored surroundings."""

DISPLAY_GAMMA = 2.2
"""Textures are encoded as pictures are; light adds up in linear numbers."""


def lit(
    scene: Scene, bodies: Sequence[Body], rays: Rays, seen: Surface, atlas: Atlas
) -> tuple[Tensor, Tensor]:
    """The light that N surface points send to the camera of `rays`.

    Returns:
        (3, N) linear colours, and (N,) int32 numbers that tell apart points that different
        lights reach.
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
        # Only where light falls: a highlight needs a lit surface.
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
    """What the points `index` (M,) mirror: linear colours (3, M) and their shares (M,).

    It depends on where the eye stands, so the two views differ as they do at a car's window. The
    share grows towards grazing angles by Schlick's approximation (1994) of Fresnel's law.
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
    """Share of the light's intensity that falls on each point, (N,), and its direction (3, N).

    None falls on what is not `dull` (N,): it glows.
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
