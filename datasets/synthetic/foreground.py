"""What stands close before a scene: large plain blocks, and thin bars and frames.

Both are hard for stereo: a face without texture tells its depth at its edges alone, and a bar of a
few pixels is lost where a network looks coarsely.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.synthetic.layout import slanted, spot
from datasets.synthetic.palette import FACING, NO_CUTS, UPRIGHT, Palette, turn_z
from datasets.synthetic.scene import Array, Material, Solid

_BORDER = (0.44, 0.5)
"""How far aside of the picture's middle, in its widths, things at its border stand."""


def foreground(palette: Palette, near: float) -> list[Solid]:
    """A block, bars or both, behind the depth `near` and before most of the scene."""
    solids: list[Solid] = []
    with_block, with_bars = [(True, False), (False, True), (True, True)][palette.count(0, 2)]
    if with_block:
        solids.append(_block(palette, near))
    if with_bars:
        solids += _frame(palette, near) if palette.chance(0.4) else _bars(palette, near)
    return solids


def _block(palette: Palette, near: float) -> Solid:
    """A plain cupboard, pillar, stone or board, a third to a half of the picture wide."""
    front = near * palette.between(1, 1.6)
    wide = palette.extent(palette.between(0.33, 0.5), front)
    half = wide / 2 * np.array([1, palette.spread(0.5, 2), palette.spread(0.05, 1)])
    shape = str(palette.rng.choice(["box", "cut box", "cylinder"], p=[0.65, 0.15, 0.2]))
    rotation = slanted(palette, 0.4, 0.2, most=0.8)
    if shape == "cylinder":
        rotation, half = rotation @ UPRIGHT, half[[0, 0, 1]]
    cuts = palette.facets(palette.count(1, 3)) if shape == "cut box" else NO_CUTS
    solid = Solid(shape.split()[-1], np.zeros(3), rotation, half, palette.paint(front), cuts)
    return replace(solid, centre=_place(palette, front + solid.depth_reach))


def _bars(palette: Palette, near: float) -> list[Solid]:
    """One to five single bars across much of the picture, most of them upright."""
    solids = []
    for _ in range(palette.count(1, 5)):
        depth = near * palette.between(1.1, 2)
        lean = palette.rng.normal(0, 0.15) + np.pi / 2 * palette.chance(0.25)
        rotation = turn_z(lean) @ slanted(palette, 0.2, 0.2, most=0.5)
        length = palette.extent(palette.spread(0.2, 1.2), depth)
        bar = _bar(palette, depth, rotation, length, _coating(palette, depth))
        solids.append(_behind(bar, _place(palette, depth), near))
    return solids


def _frame(palette: Palette, near: float) -> list[Solid]:
    """Two posts with one to three bars between them: a chair's back, a window, a rail."""
    depth = near * palette.between(1.1, 2)
    wide, tall = (palette.extent(palette.between(0.12, 0.5), depth) for _ in range(2))
    pose = turn_z(palette.rng.normal(0, 0.1)) @ slanted(palette, 0.3, 0.15, most=0.5)
    place, coating = _place(palette, depth), _coating(palette, depth)
    upright = [(np.array([side * wide / 2, 0, 0]), FACING, tall) for side in (-1, 1)]
    levels = [palette.between(-0.5, 0.5) for _ in range(palette.count(1, 3))]
    level = [(np.array([0, y * tall, 0]), turn_z(np.pi / 2), wide) for y in levels]
    solids = []
    for middle, turn, length in upright + level:
        bar = _bar(palette, depth, pose @ turn, length, coating)
        solids.append(_behind(bar, place + pose @ middle, near))
    return solids


def _bar(
    palette: Palette, depth: float, rotation: Array, length: float, coating: Material
) -> Solid:
    """A bar along y, 2 to 6 of 512 pixels thick."""
    thick = palette.extent(palette.spread(0.004, 0.012), depth) / 2
    if palette.chance(0.5):
        half = np.array([thick, thick, length / 2])
        return Solid("cylinder", np.zeros(3), rotation @ UPRIGHT, half, coating, NO_CUTS)
    half = np.array([thick, length / 2, thick * palette.between(0.5, 2)])
    return Solid("box", np.zeros(3), rotation, half, coating, NO_CUTS)


def _coating(palette: Palette, depth: float) -> Material:
    return palette.paint(depth) if palette.chance(0.5) else palette.material(depth, weak=0.4)


def _place(palette: Palette, depth: float) -> Array:
    """Somewhere in the picture, a third of the time at its left or right border."""
    place = spot(palette, depth)
    if palette.chance(1 / 3):
        aside = palette.rng.choice([-1, 1]) * palette.between(*_BORDER)
        place[0] = palette.extent(aside, depth)
    return place


def _behind(solid: Solid, place: Array, near: float) -> Solid:
    """The solid at this place, or further along the way there, so that it is behind `near`."""
    depth = max(place[2], near + solid.depth_reach)
    return replace(solid, centre=place * (depth / place[2]))
