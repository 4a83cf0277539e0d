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
        (N, 3) linear colours, and (N,) int64 numbers that tell apart points that different
        lights reach.
    """
    albedo = seen.albedo**DISPLAY_GAMMA
    materials = [body.solid.material for body in bodies]
    table = albedo.new_tensor([[m.highlight, m.shininess, m.mirror, m.glows] for m in materials])
    highlight, shininess, mirror, glows = table[seen.number].T
    towards_eye = unit(rays.origin - seen.points).float()
    normals = seen.normals.float()
    diffuse = albedo.new_tensor(scene.ambient).repeat(len(albedo), 1)
    glossy = torch.zeros_like(diffuse)
    reached = torch.zeros_like(seen.number)
    for light in scene.lights:
        falling, towards = _falling(light, bodies, seen)
        colour = albedo.new_tensor(light.colour)
        diffuse += falling[:, None] * colour
        halfway = unit(towards + towards_eye)
        aligned = dot(normals, halfway).clamp(min=0)
        # Only where light falls: a highlight needs a lit surface.
        shine = highlight * aligned**shininess * (falling > 0)
        glossy += shine[:, None] * colour
        reached = 2 * reached + (falling > 0)
    colours = torch.where(glows[:, None] > 0, albedo, albedo * diffuse + glossy)
    index = (mirror > 0).nonzero()[:, 0]
    if len(index):
        image, share = _mirrored(bodies, atlas, seen, towards_eye, mirror, index)
        brightness = float(scene.ambient.mean() + sum(x.colour.mean() for x in scene.lights) / 2)
        colours[index] = torch.lerp(colours[index], image * brightness, share)
    return _hazy(scene, colours, seen.points[2]), reached


def _mirrored(
    bodies: Sequence[Body],
    atlas: Atlas,
    seen: Surface,
    towards_eye: Tensor,
    mirror: Tensor,
    index: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the points `index` (M,) mirror: linear colours (M, 3) and their shares (M, 1).

    It depends on where the eye stands, so the two views differ as they do at a car's window. The
    share grows towards grazing angles by Schlick's approximation (1994) of Fresnel's law.
    """
    normals, towards = seen.normals[:, index].float(), towards_eye[:, index]
    cosine = dot(normals, towards).clamp(0, 1)
    x, y, z = 2 * cosine * normals - towards
    table = index.new_tensor([body.solid.material.surroundings for body in bodies])
    u, v = torch.atan2(x, z) * _MIRRORED_SIZE, torch.asin(y.clamp(-1, 1)) * _MIRRORED_SIZE
    level = torch.full_like(u, _MIRRORED_LEVEL)
    image = atlas.look_up(table[seen.number[index]], u, v, level) ** DISPLAY_GAMMA
    straight = mirror[index]
    return image, (straight + (1 - straight) * (1 - cosine) ** 5)[:, None]


def _falling(light: Light, bodies: Sequence[Body], seen: Surface) -> tuple[Tensor, Tensor]:
    """Share of the light's intensity that falls on each point, (N,), and its direction (3, N)."""
    position = seen.points.new_tensor(light.position)[:, None]
    towards = position - seen.points
    distance = length(towards)
    cosine = dot(seen.normals, towards) / distance
    falling = cosine.clamp(min=0) / (1 + (distance / light.reach) ** 2)
    if light.shadows:
        index = (falling > 0).nonzero()[:, 0]
        dark = shaded(bodies, seen.points[:, index], seen.number[index], position)
        falling[index[dark]] = 0
    return falling.float(), (towards / distance).float()


def _hazy(scene: Scene, colours: Tensor, depth: Tensor) -> Tensor:
    if scene.haze[3] == 0:
        return colours
    clear = torch.exp(-scene.haze[3] * depth).float()[:, None]
    return torch.lerp(colours.new_tensor(scene.haze[:3]).expand_as(colours), colours, clear)
