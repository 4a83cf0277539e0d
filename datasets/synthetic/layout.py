"""What a kind of scene draws, and the ways to place things that several kinds share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datasets.synthetic.palette import Palette, moved, turn_x, turn_y, turn_z
from datasets.synthetic.scene import Array, Light, Solid

CLEAR: Array = np.zeros(4)
"""No haze."""
ENDLESS = 60
"""Half extent of a backdrop in its distances: no camera here sees its edge."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The solids and lights of a scene, in the coordinates of the left camera."""

    solids: list[Solid]
    lights: list[Light]
    ambient: Array
    haze: Array


def seen_from(solids: list[Solid], structure: list[Solid], pose: Array, near: float) -> list[Solid]:
    """Structure and solids in the turned camera's coordinates; what is too close is left out."""
    turned = [moved(solid, pose, np.zeros(3)) for solid in solids]
    kept = [solid for solid in turned if solid.centre[2] - solid.depth_reach > near]
    return [moved(solid, pose, np.zeros(3)) for solid in structure] + kept


def looking_at(palette: Palette, target: Array) -> Array:
    """The turn, from level to camera coordinates, that brings `target` near the picture's middle.

    There is a little roll, as in a picture taken by hand.
    """
    x, y, z = target
    aside, down = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    # The middle is missed by 8 % of the width; the camera is level within 1.5 degrees.
    jitter = palette.rng.normal(0, 0.08, 2) * palette.size[1] / palette.focal
    roll = np.radians(palette.rng.normal(0, 1.5))
    return turn_z(roll) @ turn_x(down + jitter[0]) @ turn_y(jitter[1] - aside)


def slanted(palette: Palette, aside: float, down: float, most: float = np.pi) -> Array:
    """A rotation that leans at random: standard deviations and the most, all in radians.

    A backdrop must not lean so far that the picture shows where it ends.
    """
    angles = palette.rng.normal(0, (aside, down)).clip(-most, most)
    return turn_y(angles[0]) @ turn_x(angles[1])


def draw_lights(palette: Palette, distance: float, shadows: bool) -> list[Light]:
    """One or two lights before and above what is seen."""
    lights = []
    for _ in range(palette.count(1, 2)):
        if palette.chance(0.5):
            lights.append(palette.sun(shadows))
        else:
            # Anywhere across, mostly above (y points down), from behind the camera to the far end.
            position = distance * palette.rng.uniform((-1, -1, -0.3), (1, 0.3, 0.8))
            lights.append(palette.lamp(position, distance * palette.spread(0.4, 3), shadows))
    return lights


def draw_ambient(palette: Palette) -> Array:
    """Light from everywhere, slightly coloured; a lamp's is 0.4 to 2."""
    return palette.spread(0.15, 1.2) * (1 + palette.rng.uniform(-0.15, 0.15, 3))


def draw_haze(palette: Palette, distance: float, share: float) -> Array:
    """Grey air in this share of the scenes.

    A tenth to two thirds of the light of what is at `distance` are lost in it.
    """
    grey = palette.rng.uniform(0.5, 0.9, 1).repeat(3)
    hazy = np.array([*grey, palette.spread(0.1, 1.0) / distance])
    return hazy if palette.chance(share) else CLEAR


def spot(palette: Palette, depth: float) -> Array:
    """A point at this depth somewhere in the picture or just outside."""
    height, width = palette.size
    x, y = palette.rng.uniform(-0.55, 0.55, 2) * (width, height) / palette.focal
    return np.array([x, y, 1.0]) * depth


def floating(palette: Palette, near: float, far: float) -> Solid:
    """A random object of any pose between the two depths."""
    # Uniform in disparity or in the logarithm of depth: near and far crowds alike.
    by_disparity = palette.chance(0.5)
    depth = 1 / palette.between(1 / far, 1 / near) if by_disparity else palette.spread(near, far)
    upright = palette.chance(0.25)
    rotation = turn_z(palette.between(0, np.pi)) if upright else palette.rotation()
    material = palette.material(depth)
    # Sizes are shares of the picture's width, whatever the depth.
    if palette.chance(0.22):
        length = palette.extent(palette.spread(0.15, 0.9), depth)
        solid = palette.rod(np.zeros(3), palette.rotation(), length, material)
    else:
        size = palette.extent(palette.spread(0.05, 0.5), depth)
        half = size * palette.rng.uniform(0.3, 1, 3) / 2
        solid = palette.solid(np.zeros(3), rotation, half, material)
    # Pushed back until all of it is behind `near`.
    depth = max(depth, near + solid.depth_reach)
    return replace(solid, centre=spot(palette, depth))
