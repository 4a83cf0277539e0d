"""Indoors: four walls, furniture and lamps, in metres."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.synthetic.growth import bush, cables, sticks
from datasets.synthetic.layout import CLEAR, Layout, draw_ambient, looking_at, seen_from
from datasets.synthetic.palette import (
    FACING,
    SIDEWAYS,
    UPRIGHT,
    Palette,
    backdrop,
    box,
    card,
    moved,
    turn_y,
)
from datasets.synthetic.scene import Array, Light, Solid
from datasets.synthetic.things import fence, lamp, post, rack, shelf, table, thing

_FURNITURE = (*[thing] * 4, *[table] * 3, shelf, shelf, post, fence, lamp, rack)
_FURNITURE += (bush, cables, sticks)
"""What stands in a room, as often as each is met."""
_NEAREST = 0.4
"""Furniture that reaches closer to the camera than this is left out."""


def room(palette: Palette) -> Layout:
    """A room with furniture, pictures on the walls and a lamp."""
    # 2.6 to 8 m wide, 2.2 to 3.4 m high, 3 to 10 m long.
    half = np.array([palette.between(1.3, 4), palette.between(1.1, 1.7), palette.between(1.5, 5)])
    # The camera stands in the back part, away from the walls.
    eye = half * palette.rng.uniform((-0.4, -0.2, -0.8), (0.4, 0.2, -0.3))
    structure = _walls(palette, half)
    things = _furniture(palette, half, eye) + _pictures(palette, half)
    target = things[palette.count(0, len(things) - 1)].centre
    pose = looking_at(palette, target - eye)
    shift = [replace(solid, centre=solid.centre - eye) for solid in things]
    walls = [replace(solid, centre=solid.centre - eye) for solid in structure]
    solids = seen_from(shift, walls, pose, _NEAREST)
    lamps = _lamps(palette, half, eye, pose)
    return Layout(solids, lamps, draw_ambient(palette) * 0.6, CLEAR)


def _walls(palette: Palette, half: Array) -> list[Solid]:
    """The six sides of a room of these half extents around the origin."""
    wide, tall, deep = half
    paint = palette.material(deep, weak=0.5)
    sides = [
        (np.array([0, tall, 0]), UPRIGHT, (wide, deep), palette.material(2.0, weak=0.25)),
        (np.array([0, -tall, 0]), UPRIGHT, (wide, deep), palette.material(2.0, weak=0.7)),
        (np.array([0, 0, -deep]), FACING, (wide, tall), paint),
    ]
    for centre, rotation, size in (
        (np.array([0, 0, deep]), FACING, (wide, tall)),
        (np.array([-wide, 0, 0]), SIDEWAYS, (deep, tall)),
        (np.array([wide, 0, 0]), SIDEWAYS, (deep, tall)),
    ):
        material = palette.material(deep, weak=0.4) if palette.chance(0.4) else paint
        sides.append((centre, rotation, size, material))
    return [backdrop(card(*side)) for side in sides]


def _furniture(palette: Palette, half: Array, eye: Array) -> list[Solid]:
    """Things on the floor, anywhere in the room, textured for the eye's distance."""
    makers = np.array(_FURNITURE, dtype=object)
    solids: list[Solid] = []
    for _ in range(palette.count(8, 15)):
        x, z = palette.rng.uniform(-0.9, 0.9, 2) * half[[0, 2]]
        make = palette.rng.choice(makers)
        distance = max(float(np.hypot(x - eye[0], z - eye[2])), 0.8)
        parts = make(palette, distance, palette.between(0.4, 1.6))
        turn = turn_y(palette.between(0, 2 * np.pi))
        solids += [moved(part, turn, np.array([x, half[1], z])) for part in parts]
    return solids


def _pictures(palette: Palette, half: Array) -> list[Solid]:
    """Thin boxes on the far and the side walls: pictures, windows, doors."""
    wide, tall, deep = half
    solids = []
    for _ in range(palette.count(0, 6)):
        size = palette.rng.uniform(0.15, 0.7, 2)
        y, thick = palette.between(-0.6, 0.4) * tall, palette.between(0.005, 0.03)
        if palette.chance(0.5):
            centre = np.array([palette.between(-0.8, 0.8) * wide, y, deep - thick])
            reach = np.array([size[0], size[1], thick])
        else:
            side = palette.rng.choice([-1, 1])
            centre = np.array([side * (wide - thick), y, palette.between(-0.5, 0.9) * deep])
            reach = np.array([thick, size[1], size[0]])
        solids.append(box(centre, reach, palette.material(deep, weak=0.1)))
    return solids


def _lamps(palette: Palette, half: Array, eye: Array, pose: Array) -> list[Light]:
    """One or two lamps in the room's upper part, in the camera's coordinates."""
    shadows = palette.chance(0.65)
    lamps = []
    for _ in range(palette.count(1, 2)):
        place = half * palette.rng.uniform((-0.8, -0.95, -0.8), (0.8, -0.3, 0.8))
        lamps.append(palette.lamp(pose @ (place - eye), palette.between(0.7, 5), shadows))
    return lamps
