"""Outdoors: a road, houses and what moves or stands along it, in metres."""

from __future__ import annotations

import numpy as np

from datasets.synthetic.growth import bush, sign, sticks, tree
from datasets.synthetic.layout import Layout, draw_ambient, draw_haze, looking_at, seen_from
from datasets.synthetic.outdoors import ground_and_sky
from datasets.synthetic.palette import FACING, Palette, box, lit_from, moved, turn_y
from datasets.synthetic.scene import Solid
from datasets.synthetic.things import car, fence, figure, post, rack, thing

_NEAREST = 3.0
"""What reaches closer to the camera than this is left out."""
_HORIZON = 110
"""Beyond this depth there are no more houses."""
_SIZES = {
    car: (3.6, 5.5),
    post: (2.5, 8),
    tree: (3, 9),
    figure: (1.4, 1.9),
    fence: (3, 12),
    thing: (0.5, 3),
    bush: (0.8, 4),
    sign: (0.5, 2.5),
    sticks: (1, 4),
    rack: (1, 5),
}
"""Range of lengths or heights of what stands on the road."""
_COMMON = (
    *[car] * 4,
    post,
    post,
    *[tree] * 3,
    figure,
    fence,
    thing,
    bush,
    bush,
    sign,
    sticks,
    rack,
)
"""The same, as often as each is met."""


def street(palette: Palette) -> Layout:
    """A road to the horizon between houses, with cars, posts, trees and people."""
    height = palette.between(1.1, 2.4)  # of the camera above the road
    lane = palette.between(3, 12)  # from the camera to the nearest houses
    structure = ground_and_sky(palette, height, palette.between(4, 12))
    things: list[Solid] = []
    for side in (-1, 1):
        things += _houses(palette, side, lane, height)
    things += _traffic(palette, lane, height)
    ahead = np.array([palette.rng.normal(0, 0.1), palette.between(-0.08, 0.1), 1.0])
    pose = looking_at(palette, ahead)
    solids = seen_from(things, structure, pose, _NEAREST)
    lights = [lit_from(palette.sun(palette.chance(0.7)), pose)]
    haze = draw_haze(palette, 50.0, 0.25)
    return Layout(solids, lights, draw_ambient(palette) * 0.8, haze)


def _traffic(palette: Palette, lane: float, height: float) -> list[Solid]:
    """Cars, people, trees and so on, on either side of the middle of the road."""
    makers = np.array(_COMMON, dtype=object)
    solids: list[Solid] = []
    for _ in range(palette.count(6, 16)):
        make = palette.rng.choice(makers)
        z = palette.spread(4, 45)
        x = palette.rng.choice([-1, 1]) * lane * palette.between(0.15, 0.95)
        # Along the road, give or take 6 degrees; every seventh across it.
        along = turn_y(palette.rng.normal(0, 0.1) + np.pi / 2 * palette.chance(0.15))
        parts = make(palette, z, palette.between(*_SIZES[make]))
        solids += [moved(part, along, np.array([x, height, z])) for part in parts]
    return solids


def _houses(palette: Palette, side: int, lane: float, height: float) -> list[Solid]:
    """A row of houses along one side, with gaps, some with roofs; sometimes a hedge or nothing."""
    solids: list[Solid] = []
    z = palette.between(-5, 12)
    while z < _HORIZON and len(solids) < 9:
        long, tall = palette.between(6, 28), palette.between(2.5, 16)
        deep = palette.between(3, 8)
        x = side * (lane * palette.between(0.95, 1.25) + deep)
        # The near end decides how fine the wall looks.
        wall = palette.material(max(z, 0.6 * lane) + 3, weak=0.12)
        middle = np.array([x, height - tall / 2, z + long / 2])
        solids.append(box(middle, np.array([deep, tall / 2, long / 2]), wall))
        if palette.chance(0.3):
            # Two planes cut a flat box into a gable; its eaves stand out by a tenth.
            roof = np.array([[0.7, -0.7, 0, 0.55], [-0.7, -0.7, 0, 0.55]])
            top = np.array([x, height - tall - 1.5, z + long / 2])
            half = np.array([deep * 1.1, 1.5, long / 2])
            solids.append(Solid("box", top, FACING, half, palette.material(z + 12), roof))
        z += long + (palette.between(1, 20) if palette.chance(0.4) else 0)
    return solids
