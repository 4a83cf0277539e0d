"""The kinds of scenes. Each draws the solids and the lights around a camera at the origin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from .palette import (
    FACING,
    NO_CUTS,
    SIDEWAYS,
    UPRIGHT,
    Palette,
    backdrop,
    box,
    card,
    lit_from,
    moved,
    turn_x,
    turn_y,
    turn_z,
)
from .scene import Array, Light, Solid
from .things import car, fence, figure, post, shelf, table, thing, tree

CLEAR: Array = np.zeros(4)


@dataclass(frozen=True, eq=False)
class Layout:
    """The solids and lights of a scene, in the coordinates of the left camera."""

    solids: list[Solid]
    lights: list[Light]
    ambient: Array
    haze: Array


def _seen_from(
    solids: list[Solid], structure: list[Solid], pose: Array, near: float
) -> list[Solid]:
    """Structure and solids in the turned camera's coordinates; what is too close is left out."""
    turned = [moved(solid, pose, np.zeros(3)) for solid in solids]
    kept = [solid for solid in turned if solid.centre[2] - solid.depth_reach > near]
    return [moved(solid, pose, np.zeros(3)) for solid in structure] + kept


def _looking_at(palette: Palette, target: Array) -> Array:
    """The turn, from level to camera coordinates, that brings `target` near the picture's middle.

    There is a little roll, as in a picture taken by hand.
    """
    x, y, z = target
    aside, down = np.arctan2(x, z), np.arctan2(y, np.hypot(x, z))
    jitter = palette.rng.normal(0, 0.08, 2) * palette.size[1] / palette.focal
    roll = np.radians(palette.rng.normal(0, 1.5))
    return turn_z(roll) @ turn_x(down + jitter[0]) @ turn_y(jitter[1] - aside)


def _lights(palette: Palette, distance: float, shadows: bool) -> list[Light]:
    """One or two lights before and above what is seen."""
    lights = []
    for _ in range(palette.count(1, 2)):
        if palette.chance(0.5):
            lights.append(palette.sun(shadows))
        else:
            position = distance * np.array(
                [palette.between(-1, 1), palette.between(-1, 0.3), palette.between(-0.3, 0.8)]
            )
            lights.append(palette.lamp(position, distance * palette.spread(0.4, 3), shadows))
    return lights


def _ambient(palette: Palette) -> Array:
    return palette.spread(0.15, 1.2) * (1 + palette.rng.uniform(-0.15, 0.15, 3))


def _spot(palette: Palette, depth: float) -> Array:
    """A point at this depth somewhere in the picture or just outside."""
    height, width = palette.size
    x, y = palette.rng.uniform(-0.55, 0.55, 2) * (width, height) / palette.focal
    return np.array([x, y, 1.0]) * depth


def _floating(palette: Palette, near: float, far: float) -> list[Solid]:
    """A random object of any pose between the two depths."""
    # Uniform in disparity or in the logarithm of depth: near and far crowds alike.
    by_disparity = palette.chance(0.5)
    depth = 1 / palette.between(1 / far, 1 / near) if by_disparity else palette.spread(near, far)
    upright = palette.chance(0.25)
    rotation = turn_z(palette.between(0, np.pi)) if upright else palette.rotation()
    material = palette.material(depth)
    if palette.chance(0.22):
        length = palette.extent(palette.spread(0.15, 0.9), depth)
        solid = palette.rod(np.zeros(3), palette.rotation(), length, material)
    else:
        size = palette.extent(palette.spread(0.05, 0.5), depth)
        half = size * palette.rng.uniform(0.3, 1, 3) / 2
        solid = palette.solid(np.zeros(3), rotation, half, material)
    # Pushed back until all of it is behind `near`.
    depth = max(depth, near + solid.depth_reach)
    return [replace(solid, centre=_spot(palette, depth))]


def flying(palette: Palette) -> Layout:
    """Many objects in mid-air before a wall, in a hall or under a dome."""
    far = palette.spread(2, 15)
    paper = palette.material(far, weak=0.1)
    style = palette.rng.choice(["wall", "dome", "hall"], p=[0.5, 0.2, 0.3])
    if style == "wall":
        slant = turn_y(palette.rng.normal(0, 0.25)) @ turn_x(palette.rng.normal(0, 0.2))
        back = card(np.array([0, 0, far]), slant, (far * 60, far * 60), paper)
    elif style == "dome":
        half = far * palette.rng.uniform(0.8, 1.3, 3)
        back = Solid("ellipsoid", np.zeros(3), palette.rotation(), half, paper, NO_CUTS)
    else:
        half = far * palette.rng.uniform(0.6, 1.2, 3)
        pose = turn_y(palette.between(-0.6, 0.6)) @ turn_x(palette.between(-0.5, 0.5))
        back = Solid("box", np.zeros(3), pose, half, paper, NO_CUTS)
    solids = [backdrop(back)]
    for _ in range(palette.count(10, 40)):
        solids += _floating(palette, 1.0, far * 0.9)
    lights = _lights(palette, far, palette.chance(0.6))
    return Layout(solids, lights, _ambient(palette), CLEAR)


def layers(palette: Palette) -> Layout:
    """Cards and curved things before one another within a shallow depth, on or off a table."""
    far = palette.spread(1.25, 3.5)
    slant = turn_y(palette.rng.normal(0, 0.15)) @ turn_x(palette.rng.normal(0, 0.15))
    paper = palette.material(far, weak=0.2)
    structure = [backdrop(card(np.array([0, 0, far]), slant, (far * 60, far * 60), paper))]
    pose, things = FACING, []
    for _ in range(palette.count(3, 9)):
        depth = palette.between(1.1, far)
        half = palette.extent(1, depth) * palette.rng.uniform(0.06, 0.3, 2)
        tilt = turn_y(palette.rng.normal(0, 0.5)) @ turn_x(palette.rng.normal(0, 0.4))
        sheet = card(
            np.zeros(3),
            turn_z(palette.between(0, np.pi)) @ tilt,
            tuple(half),
            palette.material(depth),
        )
        depth = max(depth, 1 + sheet.depth_reach)
        things.append(replace(sheet, centre=_spot(palette, depth), outline=palette.outline()))
    if palette.chance(0.6):
        floor = palette.between(0.2, 1.0)
        middle = (1 + far) / 2
        pose = _looking_at(palette, np.array([0, floor - palette.between(0, 0.2), middle]))
        board = palette.material(1.5, weak=0.3)
        structure.append(card(np.array([0, floor, far]), UPRIGHT, (far * 60, far * 1.5), board))
        for _ in range(palette.count(4, 14)):
            depth = palette.between(1.0, far * 0.95)
            where = np.array([_spot(palette, depth)[0], floor, depth])
            kind = palette.rng.choice(np.array([thing, thing, thing, table, fence], dtype=object))
            parts = kind(palette, depth, palette.extent(palette.spread(0.08, 0.35), depth))
            turn = turn_y(palette.between(-0.8, 0.8))
            things += [moved(part, turn, where) for part in parts]
    else:
        for _ in range(palette.count(2, 12)):
            things += _floating(palette, 1.0, far)
    solids = _seen_from(things, structure, pose, 0.6)
    lights = [lit_from(x, pose) for x in _lights(palette, far, palette.chance(0.6))]
    return Layout(solids, lights, _ambient(palette), CLEAR)


def room(palette: Palette) -> Layout:
    """A room with furniture, pictures on the walls and a lamp."""
    half = np.array([palette.between(1.3, 4), palette.between(1.1, 1.7), palette.between(1.5, 5)])
    eye = half * palette.rng.uniform((-0.4, -0.2, -0.8), (0.4, 0.2, -0.3))
    structure = _walls(palette, half)
    things: list[Solid] = []
    for _ in range(palette.count(8, 16)):
        x, z = palette.rng.uniform(-0.9, 0.9, 2) * half[[0, 2]]
        make = palette.rng.choice(np.array([thing, thing, table, shelf, post, fence], dtype=object))
        distance = max(float(np.hypot(x - eye[0], z - eye[2])), 0.8)
        parts = make(palette, distance, palette.between(0.4, 1.6))
        turn = turn_y(palette.between(0, 2 * np.pi))
        things += [moved(part, turn, np.array([x, half[1], z])) for part in parts]
    things += _pictures(palette, half)
    target = things[palette.count(0, len(things) - 1)].centre
    pose = _looking_at(palette, target - eye)
    shift = [replace(solid, centre=solid.centre - eye) for solid in things]
    walls = [replace(solid, centre=solid.centre - eye) for solid in structure]
    solids = _seen_from(shift, walls, pose, 0.4)
    shadows = palette.chance(0.65)
    lamps = []
    for _ in range(palette.count(1, 2)):
        spot = half * palette.rng.uniform((-0.8, -0.95, -0.8), (0.8, -0.3, 0.8))
        lamps.append(palette.lamp(pose @ (spot - eye), palette.between(0.7, 5), shadows))
    return Layout(solids, lamps, _ambient(palette) * 0.6, CLEAR)


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


def _pictures(palette: Palette, half: Array) -> list[Solid]:
    """Thin boxes on the far and the side walls: pictures, windows, doors."""
    wide, tall, deep = half
    solids = []
    for _ in range(palette.count(0, 6)):
        size = palette.rng.uniform(0.15, 0.7, 2)
        y, thick = palette.between(-0.6, 0.4) * tall, 0.02
        if palette.chance(0.5):
            centre = np.array([palette.between(-0.8, 0.8) * wide, y, deep - thick])
            reach = np.array([size[0], size[1], thick])
        else:
            side = palette.rng.choice([-1, 1])
            centre = np.array([side * (wide - thick), y, palette.between(-0.5, 0.9) * deep])
            reach = np.array([thick, size[1], size[0]])
        solids.append(box(centre, reach, palette.material(deep, weak=0.1)))
    return solids


def street(palette: Palette) -> Layout:
    """A road to the horizon between houses, with cars, posts, trees and people."""
    height = palette.between(1.1, 2.4)
    lane = palette.between(3, 12)
    grey = np.full(3, palette.between(0.2, 0.6))
    road = palette.material(palette.between(4, 12), weak=0.3, base=grey)
    dome = Solid("ellipsoid", np.zeros(3), UPRIGHT, np.full(3, 1500.0), palette.sky(), NO_CUTS)
    structure = [
        backdrop(dome),
        backdrop(card(np.array([0, height, 700]), UPRIGHT, (700, 1400), road)),
    ]
    things: list[Solid] = []
    for side in (-1, 1):
        things += _houses(palette, side, lane, height)
    kinds = np.array([car, car, car, post, post, tree, tree, figure, fence, thing], dtype=object)
    sizes = {
        car: (3.6, 5.5),
        post: (2.5, 8),
        tree: (3, 9),
        figure: (1.4, 1.9),
        fence: (3, 12),
        thing: (0.5, 3),
    }
    for _ in range(palette.count(5, 14)):
        kind = palette.rng.choice(kinds)
        z = palette.spread(4, 45)
        x = palette.rng.choice([-1, 1]) * lane * palette.between(0.15, 0.95)
        along = turn_y(palette.rng.normal(0, 0.1) + np.pi / 2 * palette.chance(0.15))
        parts = kind(palette, z, palette.between(*sizes[kind]))
        things += [moved(part, along, np.array([x, height, z])) for part in parts]
    ahead = np.array([palette.rng.normal(0, 0.1), palette.between(-0.08, 0.1), 1.0])
    pose = _looking_at(palette, ahead)
    solids = _seen_from(things, structure, pose, 3.0)
    lights = [lit_from(palette.sun(palette.chance(0.7)), pose)]
    hazy = np.array([*palette.rng.uniform(0.5, 0.9, 1).repeat(3), palette.spread(0.002, 0.01)])
    haze = hazy if palette.chance(0.25) else CLEAR
    return Layout(solids, lights, _ambient(palette) * 0.8, haze)


def _houses(palette: Palette, side: int, lane: float, height: float) -> list[Solid]:
    """A row of houses along one side, with gaps, some with roofs; sometimes a hedge or nothing."""
    solids: list[Solid] = []
    z = palette.between(-5, 12)
    while z < 110 and len(solids) < 9:
        long, tall = palette.between(6, 28), palette.between(2.5, 16)
        deep = palette.between(3, 8)
        x = side * (lane * palette.between(0.95, 1.25) + deep)
        # The near end decides how fine the wall looks.
        wall = palette.material(max(z, 0.6 * lane) + 3, weak=0.12)
        middle = np.array([x, height - tall / 2, z + long / 2])
        solids.append(box(middle, np.array([deep, tall / 2, long / 2]), wall))
        if palette.chance(0.3):
            roof = np.array([[0.7, -0.7, 0, 0.55], [-0.7, -0.7, 0, 0.55]])
            top = np.array([x, height - tall - 1.5, z + long / 2])
            half = np.array([deep * 1.1, 1.5, long / 2])
            solids.append(Solid("box", top, FACING, half, palette.material(z + 12), roof))
        z += long + (palette.between(1, 20) if palette.chance(0.4) else 0)
    return solids


@dataclass(frozen=True)
class Kind:
    """A kind of scene, how often it is drawn and through which lenses it is seen."""

    draw: Callable[[Palette], Layout]
    share: float
    focal: tuple[float, float]
    """Range of the focal length, in widths of the picture."""


KINDS: dict[str, Kind] = {
    "flying": Kind(flying, 0.38, (0.6, 2.0)),
    "layers": Kind(layers, 0.24, (0.8, 2.2)),
    "room": Kind(room, 0.2, (0.5, 1.2)),
    "street": Kind(street, 0.18, (0.5, 1.3)),
}
