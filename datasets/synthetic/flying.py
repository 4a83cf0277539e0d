"""Objects in mid-air, the idea of FlyingThings3D."""

from __future__ import annotations

import numpy as np

from datasets.synthetic.growth import bush, sticks, stones, tree
from datasets.synthetic.layout import (
    ENDLESS,
    Layout,
    draw_ambient,
    draw_haze,
    draw_lights,
    floating,
    slanted,
    spot,
)
from datasets.synthetic.palette import NO_CUTS, Palette, backdrop, card, moved, turn_x, turn_y
from datasets.synthetic.scene import Solid
from datasets.synthetic.things import car, figure, lamp, post, rack, shelf, table

_NEAREST = 1.0
"""Depth at which objects begin."""
_THINGS = (table, table, shelf, car, post, figure, rack, lamp, bush, tree, sticks, stones)
"""What tumbles in mid-air beside single solids."""


def flying(palette: Palette) -> Layout:
    """Many objects in mid-air before a wall, in a hall or under a dome."""
    far = palette.spread(2, 15)
    solids = [backdrop(_background(palette, far))]
    for _ in range(palette.count(8, 32)):
        solids.append(floating(palette, _NEAREST, far * 0.9))
    for _ in range(palette.count(0, 7)):
        solids += tumbling(palette, _NEAREST, far * 0.9)
    lights = draw_lights(palette, far, palette.chance(0.6))
    haze = draw_haze(palette, far, 0.1)
    return Layout(solids, lights, draw_ambient(palette), haze)


def tumbling(palette: Palette, near: float, far: float) -> list[Solid]:
    """A piece of furniture, a plant or a vehicle in any pose, behind `near`."""
    make = palette.rng.choice(np.array(_THINGS, dtype=object))
    depth = palette.spread(near, far)
    size = palette.extent(palette.spread(0.12, 0.7), depth)
    depth = max(depth, near + size)  # all of it behind the nearest depth
    pose, place = palette.rotation(), spot(palette, depth)
    lifted = np.array([0, size / 2, 0])  # its middle, not its foot, comes to that place
    return [moved(part, pose, place + pose @ lifted) for part in make(palette, depth, size)]


def _background(palette: Palette, far: float) -> Solid:
    """A wall at about `far`, or a dome or a hall of about that size around the camera."""
    paper = palette.material(far, weak=0.1)
    style = palette.rng.choice(["wall", "dome", "hall"], p=[0.5, 0.2, 0.3])
    if style == "wall":
        wide = far * ENDLESS
        return card(
            np.array([0, 0, far]), slanted(palette, 0.25, 0.2, most=0.5), (wide, wide), paper
        )
    if style == "dome":
        half = far * palette.rng.uniform(0.8, 1.3, 3)
        return Solid("ellipsoid", np.zeros(3), palette.rotation(), half, paper, NO_CUTS)
    half = far * palette.rng.uniform(0.6, 1.2, 3)
    # Up to 34 degrees aside and 29 up or down: a corner, the floor or the ceiling is in view.
    pose = turn_y(palette.between(-0.6, 0.6)) @ turn_x(palette.between(-0.5, 0.5))
    return Solid("box", np.zeros(3), pose, half, paper, NO_CUTS)
