"""The kind of scene nearest to FlyingThings3D: objects in mid-air."""

from __future__ import annotations

import numpy as np

from datasets.synthetic.layout import (
    CLEAR,
    ENDLESS,
    Layout,
    draw_ambient,
    draw_lights,
    floating,
    slanted,
)
from datasets.synthetic.palette import NO_CUTS, Palette, backdrop, card, turn_x, turn_y
from datasets.synthetic.scene import Solid

_NEAREST = 1.0
"""Depth at which objects begin."""


def flying(palette: Palette) -> Layout:
    """Many objects in mid-air before a wall, in a hall or under a dome."""
    far = palette.spread(2, 15)
    solids = [backdrop(_background(palette, far))]
    for _ in range(palette.count(10, 40)):
        solids.append(floating(palette, _NEAREST, far * 0.9))
    lights = draw_lights(palette, far, palette.chance(0.6))
    return Layout(solids, lights, draw_ambient(palette), CLEAR)


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
