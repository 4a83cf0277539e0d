"""Light on surfaces: ambient, point lights with shadows, highlights and haze."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.synthetic.cast import Body, Rays, shaded
from datasets.synthetic.scene import Light, Scene
from datasets.synthetic.surface import Surface
from datasets.synthetic.vectors import dot, length, unit

DISPLAY_GAMMA = 2.2
"""Textures are encoded as pictures are; light adds up in linear numbers."""


def lit(scene: Scene, bodies: Sequence[Body], rays: Rays, seen: Surface) -> tuple[Tensor, Tensor]:
    """The light that N surface points send to the camera of `rays`.

    Returns:
        (N, 3) linear colours, and (N,) int64 numbers that tell apart points that different
        lights reach.
    """
    albedo = seen.albedo**DISPLAY_GAMMA
    materials = [body.solid.material for body in bodies]
    table = albedo.new_tensor([[m.highlight, m.shininess, m.glows] for m in materials])
    highlight, shininess, glows = table[seen.number].T
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
    return _hazy(scene, colours, seen.points[2]), reached


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
