"""Large blocks on a floor before a far view, and things in mid-air before them.

As in FlyingThings3D three layers lie far apart: a view at almost no disparity, blocks that stand
close together, and furniture, vehicles and sculptures that take up much of the picture.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.synthetic.flying import tumbling
from datasets.synthetic.layout import (
    Layout,
    draw_ambient,
    draw_haze,
    draw_lights,
    floating,
    seen_from,
)
from datasets.synthetic.palette import (
    NO_CUTS,
    UPRIGHT,
    Palette,
    backdrop,
    box,
    card,
    column,
    lit_from,
    moved,
    turn_x,
    turn_y,
    turn_z,
)
from datasets.synthetic.scene import Solid
from datasets.synthetic.things import thing

_NEAREST = 1.0
"""Depth at which things begin."""


def stage(palette: Palette) -> Layout:
    """One or two dozen blocks, and half a dozen things before them."""
    height = palette.between(0.7, 2.0)  # of the camera above the floor
    far = palette.spread(3, 9)  # where the blocks end
    radius = far * palette.spread(4, 40)
    floor = card(np.array([0, height, 0]), UPRIGHT, (radius, radius), palette.material(far / 2))
    structure = [backdrop(_view(palette, radius)), backdrop(floor)]
    blocks: list[Solid] = []
    for _ in range(palette.count(12, 28)):
        blocks += _block(palette, height, far)
    # The horizon is in the upper half of most pictures; the camera leans to one side.
    pose = turn_z(palette.rng.normal(0, 0.2)) @ turn_x(palette.between(0, 0.45))
    solids = seen_from(blocks, structure, pose, 0.2 * far)
    for _ in range(palette.count(2, 5)):
        solids += tumbling(palette, _NEAREST, 0.6 * far)
    solids += [floating(palette, _NEAREST, 0.6 * far) for _ in range(palette.count(1, 6))]
    lights = [lit_from(x, pose) for x in draw_lights(palette, far, palette.chance(0.6))]
    return Layout(solids, lights, draw_ambient(palette), draw_haze(palette, radius, 0.1))


def _view(palette: Palette, radius: float) -> Solid:
    """A dome with a picture on it that is several times as wide as what is seen of it."""
    picture = replace(palette.material(1.0, weak=0.1), glows=True, mirror=0.0)
    picture = replace(picture, density=palette.spread(0.4, 1.5) * palette.focal / radius)
    half = np.full(3, radius)
    return Solid("ellipsoid", np.zeros(3), palette.rotation(), half, picture, NO_CUTS)


def _block(palette: Palette, height: float, far: float) -> list[Solid]:
    """A box, a column or another solid that stands on the floor, 8 to 45 % of the picture wide."""
    depth = palette.between(far / 3, far)
    size = palette.extent(palette.spread(0.08, 0.45), depth)
    x = palette.between(-0.7, 0.7) * palette.extent(1, depth)
    foot = np.array([x, height, depth])
    turn = turn_y(palette.between(0, np.pi))
    if palette.chance(0.25):
        return [moved(part, turn, foot) for part in thing(palette, depth, size)]
    half = size * palette.rng.uniform(0.4, 1, 3) / 2
    half[1] *= palette.spread(0.8, 2.5)
    material = palette.material(depth, weak=0.08)
    middle = np.array([0, -half[1], 0])
    if palette.chance(0.3):
        block = column(middle, half[0], 2 * half[1], material)
    else:
        block = box(middle, half, material)
    return [moved(block, turn, foot)]
