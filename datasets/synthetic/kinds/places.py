"""Scenes of places in metres: rooms, a street between houses, and a garden on uneven ground.

Two kinds of rooms: `room` is furnished; `bare` has plain or repeating surfaces and wide occlusions,
whose depth is decided by their surroundings.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ea_psmnet.datasets.synthetic.palette import (
    CLEAR,
    FACING,
    NO_CUTS,
    SIDEWAYS,
    UPRIGHT,
    Layout,
    Palette,
    backdrop,
    box,
    card,
    draw_ambient,
    draw_haze,
    draw_lights,
    floating,
    lit_from,
    looking_at,
    moved,
    seen_from,
    slanted,
    turn_x,
    turn_y,
)
from ea_psmnet.datasets.synthetic.patterns import SIZE
from ea_psmnet.datasets.synthetic.scene import Array, Light, Material, Solid
from ea_psmnet.datasets.synthetic.things import (
    Make,
    bush,
    cables,
    car,
    fence,
    figure,
    grass,
    lamp,
    post,
    rack,
    shelf,
    sign,
    sticks,
    stones,
    table,
    thing,
    tree,
)

_SKY = 1e6
"""Radius of the sky; its disparity is below 0.05 pixels even in a 4K image."""


def ground_and_sky(palette: Palette, height: float, middle: float) -> list[Solid]:
    """Draw the plane y = `height`, with a texture scaled for the depth `middle`, and the sky."""
    grey = np.full(3, palette.between(0.2, 0.6))
    soil = palette.material(middle, weak=0.3, base=grey if palette.chance(0.7) else None)
    sky = palette.sky(_SKY)
    dome = Solid("ellipsoid", np.zeros(3), UPRIGHT, np.full(3, _SKY), sky, NO_CUTS)
    # The ground is 1.4 km wide, from 0.7 km behind to 2.1 km in front of the camera.
    plane = card(np.array([0, height, 700]), UPRIGHT, (700, 1400), soil)
    return [backdrop(dome), backdrop(plane)]


_FURNITURE = (*[thing] * 4, *[table] * 3, shelf, shelf, post, fence, lamp, rack)
_FURNITURE += (bush, cables, sticks)
"""Furniture of a room; repetitions are more likely."""
_ROOM_NEAREST = 0.4
"""Furniture closer to the camera is left out."""


def room(palette: Palette) -> Layout:
    """Draw a room with furniture, pictures on the walls and lamps."""
    # 2.6 to 8 m wide, 2.2 to 3.4 m high, 3 to 10 m long.
    half = np.array([palette.between(1.3, 4), palette.between(1.1, 1.7), palette.between(1.5, 5)])
    # The camera is in the rear part, away from the walls.
    eye = half * palette.rng.uniform((-0.4, -0.2, -0.8), (0.4, 0.2, -0.3))
    structure = _walls(palette, half)
    things = _furniture(palette, half, eye) + _pictures(palette, half)
    target = things[palette.count(0, len(things) - 1)].centre
    pose = looking_at(palette, target - eye)
    shift = [replace(solid, centre=solid.centre - eye) for solid in things]
    walls = [replace(solid, centre=solid.centre - eye) for solid in structure]
    solids = seen_from(shift, walls, pose, _ROOM_NEAREST)
    lamps = _lamps(palette, half, eye, pose)
    return Layout(solids, lamps, draw_ambient(palette) * 0.6, CLEAR)


def _walls(palette: Palette, half: Array) -> list[Solid]:
    """Draw the six sides of a room of these half extents around the origin."""
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
    """Draw objects on the floor, with textures scaled for their distance from the eye."""
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
    """Draw thin boxes on the far and the side walls: pictures, windows, doors."""
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
    """Draw one or two lamps in the upper part of the room, in the camera's coordinates."""
    shadows = palette.chance(0.65)
    lamps = []
    for _ in range(palette.count(1, 2)):
        place = half * palette.rng.uniform((-0.8, -0.95, -0.8), (0.8, -0.3, 0.8))
        lamps.append(palette.lamp(pose @ (place - eye), palette.between(0.7, 5), shadows))
    return lamps


_BARE_NEAREST = 1.0
"""Smallest depth of what stands in a bare room."""
_SURFACES = {"paint": 0.4, "weak": 0.25, "repeating": 0.35}
"""Probabilities of the surfaces of a bare room."""
_PERIOD = (12, 90)
"""Range of the distance in pixels after which a repeating surface looks the same."""


def bare(palette: Palette) -> Layout:
    """Draw a hall, often a wall across it, two to five large blocks and a few small things."""
    far = palette.spread(2.5, 8)
    half = far * palette.rng.uniform(0.6, 1.2, 3)
    pose = turn_y(palette.between(-0.6, 0.6)) @ turn_x(palette.between(-0.35, 0.35))
    hall = Solid("box", np.zeros(3), pose, half, _surface(palette, far), NO_CUTS)
    solids = [backdrop(hall)]
    if palette.chance(0.5):
        turn = slanted(palette, 0.5, 0.2, most=0.7)
        place = np.array([palette.between(-0.5, 0.5) * far, 0, 0.6 * far])
        solids.append(card(place, turn, (0.6 * far, 0.6 * far), _surface(palette, far)))
    solids += [_block(palette, far) for _ in range(palette.count(2, 5))]
    solids += [floating(palette, _BARE_NEAREST, 0.7 * far) for _ in range(palette.count(2, 8))]
    lights = draw_lights(palette, far, palette.chance(0.6))
    return Layout(solids, lights, draw_ambient(palette), CLEAR)


def _block(palette: Palette, far: float) -> Solid:
    """Draw a box or a column, 15 to 50 % of the image wide."""
    depth = palette.spread(1.3 * _BARE_NEAREST, 0.6 * far)
    wide = palette.extent(palette.spread(0.15, 0.5), depth) / 2
    x, y = palette.rng.uniform((-0.55, -0.2), (0.55, 0.2)) * palette.extent(1, depth)
    half = wide * np.array([1, palette.spread(0.5, 3), palette.between(0.05, 0.8)])
    if palette.chance(0.25):
        shape, turn, half = "cylinder", UPRIGHT, half[[0, 0, 1]]
    else:
        shape, turn = "box", slanted(palette, 0.5, 0.1, most=0.9)
    block = Solid(shape, np.zeros(3), turn, half, _surface(palette, depth), NO_CUTS)
    depth = max(depth, _BARE_NEAREST + block.depth_reach)
    return replace(block, centre=np.array([x, y, depth]))


def _surface(palette: Palette, depth: float) -> Material:
    """Draw a surface without texture, with little of it, or with a repeating one."""
    name = str(palette.rng.choice(list(_SURFACES), p=list(_SURFACES.values())))
    if name == "paint":
        return palette.paint(depth)
    material = palette.material(depth, weak=float(name == "weak"))
    if name == "weak":
        return material
    density = SIZE / palette.spread(*_PERIOD) * palette.focal / depth
    return replace(material, density=density, turn=0.0, detail_strength=0.0)


_STREET_NEAREST = 3.0
"""Objects closer to the camera are left out."""
_HORIZON = 110
"""Largest depth of houses."""
_STREET_THINGS = {
    car: (4, (3.6, 5.5)),
    post: (2, (2.5, 8)),
    tree: (3, (3, 9)),
    figure: (1, (1.4, 1.9)),
    fence: (1, (3, 12)),
    thing: (1, (0.5, 3)),
    bush: (2, (0.8, 4)),
    sign: (1, (0.5, 2.5)),
    sticks: (1, (1, 4)),
    rack: (1, (1, 5)),
}
"""Frequency of each object along the road, and the range of its size."""


def street(palette: Palette) -> Layout:
    """Draw a road to the horizon between houses, with cars, posts, trees and people."""
    height = palette.between(1.1, 2.4)  # of the camera above the road
    lane = palette.between(3, 12)  # from the camera to the nearest houses
    structure = ground_and_sky(palette, height, palette.between(4, 12))
    things: list[Solid] = []
    for side in (-1, 1):
        things += _houses(palette, side, lane, height)
    things += _traffic(palette, lane, height)
    ahead = np.array([palette.rng.normal(0, 0.1), palette.between(-0.08, 0.1), 1.0])
    pose = looking_at(palette, ahead)
    solids = seen_from(things, structure, pose, _STREET_NEAREST)
    lights = [lit_from(palette.sun(palette.chance(0.7)), pose)]
    haze = draw_haze(palette, 50.0, 0.25)
    return Layout(solids, lights, draw_ambient(palette) * 0.8, haze)


def _traffic(palette: Palette, lane: float, height: float) -> list[Solid]:
    """Draw cars, people, trees and so on, on both sides of the road."""
    makers = np.array([m for m, (often, _) in _STREET_THINGS.items() for _ in range(often)])
    solids: list[Solid] = []
    for _ in range(palette.count(6, 16)):
        make = palette.rng.choice(makers)
        z = palette.spread(4, 45)
        x = palette.rng.choice([-1, 1]) * lane * palette.between(0.15, 0.95)
        # Along the road with a standard deviation of 6 degrees; every seventh across it.
        along = turn_y(palette.rng.normal(0, 0.1) + np.pi / 2 * palette.chance(0.15))
        parts = make(palette, z, palette.between(*_STREET_THINGS[make][1]))
        solids += [moved(part, along, np.array([x, height, z])) for part in parts]
    return solids


def _houses(palette: Palette, side: int, lane: float, height: float) -> list[Solid]:
    """Draw a row of houses along one side, with gaps; some have roofs."""
    solids: list[Solid] = []
    z = palette.between(-5, 12)
    while z < _HORIZON and len(solids) < 9:
        long, tall = palette.between(6, 28), palette.between(2.5, 16)
        deep = palette.between(3, 8)
        x = side * (lane * palette.between(0.95, 1.25) + deep)
        # The near end determines the scale of the texture.
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


_GARDEN_NEAREST = 0.7
"""Objects closer to the camera are left out."""
_GARDEN_SIZES: dict[Make, tuple[float, float]] = {
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
"""Range of the size of each object."""
_GARDEN_OFTEN = (bush, bush, grass, grass, tree, stones, sticks)
"""Objects that are two or three times as likely as the others."""


def garden(palette: Palette) -> Layout:
    """Draw plants, stones and some furniture on a lawn, in front of a wall, hills or the sky."""
    height = palette.between(0.4, 2.0)  # of the camera above the ground
    far = palette.spread(5, 40)
    structure = ground_and_sky(palette, height, far / 3)
    things = _hills(palette, height, far) + _wall(palette, height, far)
    makers = np.array([*_GARDEN_SIZES, *_GARDEN_OFTEN], dtype=object)
    for _ in range(palette.count(10, 24)):
        make = palette.rng.choice(makers)
        z = palette.spread(1.2, far)
        x = palette.between(-0.7, 0.7) * palette.extent(1, z)
        parts = make(palette, z, palette.between(*_GARDEN_SIZES[make]))
        turn = turn_y(palette.between(-np.pi, np.pi) if palette.chance(0.3) else 0.0)
        things += [moved(part, turn, np.array([x, height, z])) for part in parts]
    pose = looking_at(palette, np.array([palette.rng.normal(0, 0.1), height * 0.15, 1.0]))
    solids = seen_from(things, structure, pose, _GARDEN_NEAREST)
    lights = [lit_from(palette.sun(palette.chance(0.7)), pose)]
    return Layout(solids, lights, draw_ambient(palette), draw_haze(palette, max(far, 20.0), 0.25))


def _hills(palette: Palette, height: float, far: float) -> list[Solid]:
    """Draw large flat ellipsoids that rise from the ground."""
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
    """Draw the wall or house at the end of half of the gardens."""
    if palette.chance(0.5):
        return []
    tall = palette.between(0.5, 6)
    half = np.array([far * palette.between(0.3, 2), tall, 0.3])
    wall = box(np.zeros(3), half, palette.material(far, weak=0.3))
    turn = turn_y(palette.rng.normal(0, 0.25))
    x = palette.between(-0.3, 0.3) * far
    return [backdrop(moved(wall, turn, np.array([x, height - tall / 2, far])))]
