"""Outdoors without a road: uneven ground with plants, stones, fences and sticks, in metres."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from datasets.synthetic.growth import bush, cables, grass, sign, sticks, stones, tree
from datasets.synthetic.layout import Layout, draw_ambient, draw_haze, looking_at, seen_from
from datasets.synthetic.outdoors import ground_and_sky
from datasets.synthetic.palette import (
    NO_CUTS,
    Palette,
    backdrop,
    box,
    lit_from,
    moved,
    turn_y,
)
from datasets.synthetic.scene import Solid
from datasets.synthetic.things import fence, figure, lamp, post, rack, table, thing

_NEAREST = 0.7
"""What reaches closer to the camera than this is left out."""
_SIZES: dict[Callable[[Palette, float, float], list[Solid]], tuple[float, float]] = {
    bush: (0.5, 3),
    grass: (0.4, 2),
    tree: (2, 8),
    stones: (0.2, 1.5),
    sticks: (0.6, 3),
    cables: (0.5, 2),
    sign: (0.4, 1.5),
    fence: (1.5, 8),
    figure: (1.2, 1.9),
    lamp: (0.8, 2.5),
    post: (1, 5),
    rack: (0.6, 3),
    table: (0.8, 1.6),
    thing: (0.3, 1.5),
}
"""Range of lengths or heights of what is met."""
_OFTEN = (bush, bush, grass, grass, tree, stones, sticks)
"""What is met twice or three times as often as the rest."""


def garden(palette: Palette) -> Layout:
    """Plants, stones and some furniture on a lawn, before a wall, a hedge, hills or the sky."""
    height = palette.between(0.4, 2.0)  # of the camera above the ground
    far = palette.spread(5, 40)
    structure = ground_and_sky(palette, height, far / 3)
    things = _hills(palette, height, far) + _wall(palette, height, far)
    makers = np.array([*_SIZES, *_OFTEN], dtype=object)
    for _ in range(palette.count(10, 24)):
        make = palette.rng.choice(makers)
        z = palette.spread(1.2, far)
        x = palette.between(-0.7, 0.7) * palette.extent(1, z)
        parts = make(palette, z, palette.between(*_SIZES[make]))
        turn = turn_y(palette.between(-np.pi, np.pi) if palette.chance(0.3) else 0.0)
        things += [moved(part, turn, np.array([x, height, z])) for part in parts]
    pose = looking_at(palette, np.array([palette.rng.normal(0, 0.1), height * 0.15, 1.0]))
    solids = seen_from(things, structure, pose, _NEAREST)
    lights = [lit_from(palette.sun(palette.chance(0.7)), pose)]
    return Layout(solids, lights, draw_ambient(palette), draw_haze(palette, max(far, 20.0), 0.25))


def _hills(palette: Palette, height: float, far: float) -> list[Solid]:
    """Flat parts of big ellipsoids that rise from the ground."""
    solids = []
    for _ in range(palette.count(0, 3)):
        wide = far * palette.rng.uniform(0.2, 1, 2)
        tall = min(wide) * palette.between(0.05, 0.4)
        z = palette.between(0.3, 1.2) * far + wide[1]
        middle = np.array([palette.between(-1, 1) * far, height + tall * 0.1, z])
        soil = palette.material(z, weak=0.2)
        half = np.array([wide[0], tall, wide[1]])
        solids.append(Solid("ellipsoid", middle, np.eye(3), half, soil, NO_CUTS))
    return solids


def _wall(palette: Palette, height: float, far: float) -> list[Solid]:
    """In half of the gardens: the wall or the house at its end."""
    if palette.chance(0.5):
        return []
    tall = palette.between(0.5, 6)
    half = np.array([far * palette.between(0.3, 2), tall, 0.3])
    wall = box(np.zeros(3), half, palette.material(far, weak=0.3))
    turn = turn_y(palette.rng.normal(0, 0.25))
    x = palette.between(-0.3, 0.3) * far
    return [backdrop(moved(wall, turn, np.array([x, height - tall / 2, far])))]
